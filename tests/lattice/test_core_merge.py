"""Merges by hand: what becomes of two boxes of one object, of one, of none."""

import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.lattice.core.interpolate import Knot, between, interpolate_frames
from vision.lattice.core.merge import MERGES, Meeting, Side, get_merge

LINEAR = np.array([10.0, 10, 30, 30])


def side(shifts):
    """Boxes at LINEAR moved right by each shift; None is a box that was not propagated."""
    is_known = np.array([shift is not None for shift in shifts], bool)
    moves = np.array([[shift or 0, 0, shift or 0, 0] for shift in shifts], float).reshape(-1, 4)
    return Side(np.where(is_known[:, None], LINEAR + moves, 0), is_known * 1.0, is_known)


def meeting(left, right, *, left_scores=None, right_scores=None, left_weight=0.5, labels=None):
    count = len(left)
    ones = np.ones(count)
    return Meeting(side(left), side(right), Knot(np.tile(LINEAR, (count, 1)), ones > 0, ones),
                   left_weight, ones if left_scores is None else np.array(left_scores),
                   ones if right_scores is None else np.array(right_scores),
                   np.zeros(count, int) if labels is None else np.array(labels))


@pytest.mark.parametrize('name', MERGES)
def test_one_side_speaks_alone_and_without_any_the_linear_box_stays(name):
    # Different classes, so that the suppression of union_nms has nothing to do.
    boxes, is_known = MERGES[name](meeting([4, None, None], [None, 6, None], labels=[0, 1, 2]))
    assert (boxes[:, 0] - LINEAR[0]).tolist() == [4, 6, 0] and is_known.all()


@pytest.mark.parametrize('name', MERGES)
def test_sides_that_agree_with_the_line_change_nothing(name):
    boxes, is_known = MERGES[name](meeting([0], [0]))
    assert np.allclose(boxes, LINEAR) and is_known.all()


@pytest.mark.parametrize('name', MERGES)
def test_no_objects(name):
    boxes, is_known = MERGES[name](meeting([], []))
    assert boxes.shape == (0, 4) and is_known.shape == (0,)


@pytest.mark.parametrize('left, right, expected', [
    (4, 8, 4), (-6, 8, 0), (50, -1, 0), (5, 5, 5), (100, 3, 3)])
def test_the_median_ignores_a_side_that_went_astray(left, right, expected):
    boxes, _ = MERGES['median'](meeting([left], [right]))
    assert np.allclose(boxes, LINEAR + [expected, 0, expected, 0])


@pytest.mark.parametrize('scores, left_weight, expected', [
    ((1, 1), 0.5, 5), ((0.9, 0.3), 0.5, 2.5), ((1, 1), 0.75, 2.5), ((0, 1), 0.5, 10),
    ((0, 0), 0.25, 7.5)])  # without any score, closeness in time alone
def test_the_mean_weighs_score_and_closeness(scores, left_weight, expected):
    boxes, _ = MERGES['pair'](meeting([0], [10], left_scores=[scores[0]],
                                      right_scores=[scores[1]], left_weight=left_weight))
    assert boxes[0, 0] - LINEAR[0] == pytest.approx(expected)


def test_the_union_keeps_the_better_box_of_a_row_and_drops_duplicates_of_its_class():
    # Row 0 and row 1 are one object twice; row 2 is of another class; row 3 is elsewhere.
    boxes, is_known = MERGES['union_nms'](meeting(
        [0, 1, 0, 60], [2, 1, 0, 100], labels=[0, 0, 1, 0],
        left_scores=[0.5, 0.4, 0.3, 0.2], right_scores=[0.9, 0.4, 0.3, 0.8]))
    assert is_known.tolist() == [True, False, True, True]
    assert (boxes[:, 0] - LINEAR[0])[[0, 2, 3]].tolist() == [2, 0, 100]


def test_an_unknown_merge_lists_the_names():
    with pytest.raises(VisionError, match='VIS-CONFIG-104') as caught:
        get_merge('mean')
    assert all(name in str(caught.value) for name in MERGES)


def test_a_row_that_is_not_there_borrows_nothing_from_another():
    taken = side([3, 5]).take(np.array([1, -1, 0]))
    assert taken.is_known.tolist() == [True, False, True]
    assert taken.visibility.tolist() == [1, 0, 1]
    assert taken.boxes_xyxy[[0, 2], 0].tolist() == [LINEAR[0] + 5, LINEAR[0] + 3]
    assert not side([]).take(np.array([-1, -1])).is_known.any()


def knot(x, score=1.0, known=True):
    return Knot(np.array([[x, 0.0, x + 10, 10]]), np.array([known]), np.array([score]))


def test_between_moves_what_both_sides_know_and_holds_what_one_knows():
    assert between(knot(0, 1.0), knot(10, 0.5), 0.3).boxes_xyxy[0, 0] == pytest.approx(3)
    assert between(knot(0, 1.0), knot(10, 0.5), 0.3).scores[0] == pytest.approx(0.85)
    held = between(knot(4), knot(0, 0.0, known=False), 0.75)
    assert held.boxes_xyxy[0, 0] == 4 and held.scores[0] == pytest.approx(0.25)
    assert not between(knot(0, known=False), knot(0, known=False), 0.5).is_known[0]


def test_frames_lie_between_their_nearest_knots():
    knots = {0: knot(0), 3: knot(9), 8: knot(19)}
    table = interpolate_frames(knots, np.arange(9), np.arange(9.0))
    assert np.allclose(table.boxes_xyxy[:, 0, 0], [0, 3, 6, 9, 11, 13, 15, 17, 19])


def test_frames_lie_between_their_knots_in_time_not_in_number():
    times = np.array([0.0, 1, 5, 9, 10, 11, 12, 18, 19])
    table = interpolate_frames({0: knot(0), 3: knot(9), 8: knot(19)}, np.arange(9), times)
    assert np.allclose(table.boxes_xyxy[:, 0, 0], [0, 1, 5, 9, 10, 11, 12, 18, 19])
