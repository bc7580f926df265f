"""merge='agree': departs from the linear box only where both directions say so."""

import numpy as np
import pytest

from vision.lattice.core.interpolate import Knot
from vision.lattice.core.merge import Meeting, Side, get_merge

LINEAR = np.array([[10.0, 20, 30, 40]])  # sqrt(w h) = 20


def merged(left_shift: float, right_shift: float, *, left=True, right=True) -> np.ndarray:
    ones = np.ones(1)

    def side(shift: float, known: bool) -> Side:
        return Side(LINEAR + np.array([shift, 0, shift, 0]), ones, np.array([known]))

    meeting = Meeting(side(left_shift, left), side(right_shift, right),
                      Knot(LINEAR, np.array([True]), ones), 0.5, ones, ones, np.zeros(1, int))
    boxes, is_known = get_merge('agree')(meeting)
    assert is_known.all()
    return boxes


@pytest.mark.parametrize('shift', [0.0, 0.5, 1.0, -1.4])  # below noise: 0.05 x sqrt 2 x 20 px
def test_small_departures_leave_the_linear_box_exactly(shift):
    np.testing.assert_array_equal(merged(shift, shift), LINEAR)


@pytest.mark.parametrize('shift', [2.0, 6.0, -9.0])
def test_opposite_departures_leave_the_linear_box_exactly(shift):
    np.testing.assert_array_equal(merged(shift, -shift), LINEAR)


def test_shared_departure_by_hand():
    # m = 10 px = 0.5 sizes, d = 0: factor 1 - 2 x 0.0025 / 0.25 = 0.98
    np.testing.assert_allclose(merged(10, 10), LINEAR + [9.8, 0, 9.8, 0])


def test_factor_grows_with_agreement():
    moves = [merged(10 - spread, 10 + spread)[0, 0] - 10 for spread in (0, 2, 4, 6, 10)]
    assert moves == sorted(moves, reverse=True) and moves[-1] == 0


def test_one_side_alone_speaks_for_itself():
    np.testing.assert_allclose(merged(5, 99, right=False), LINEAR + [5, 0, 5, 0])
    np.testing.assert_allclose(merged(99, -5, left=False), LINEAR + [-5, 0, -5, 0])


def test_mirrored_sides_give_the_same_box():
    np.testing.assert_allclose(merged(7, 4), merged(4, 7))
