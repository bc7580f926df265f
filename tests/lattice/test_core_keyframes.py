import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.lattice.core.easiness import interval_easiness, pair_easiness
from vision.lattice.core.keyframes import (
    AdaptiveKeyframes,
    BudgetKeyframes,
    Interval,
    RandomKeyframes,
    UniformKeyframes,
)
from vision.lattice.core.structures import FrameBoxes

FRAME = (240, 320)


def boxes(*rows, score=0.9):
    return FrameBoxes(np.array(rows, float).reshape(-1, 4), np.full(len(rows), score),
                      np.zeros(len(rows)))


def interval(shift, gap=8):
    greys = [np.zeros((6, 8), np.float32)] * (gap + 1)
    left, right = boxes([10, 10, 80, 80]), boxes([10 + shift, 10, 80 + shift, 80])
    return Interval(left, right, gap, lambda size_cap: interval_easiness(
        left, right, greys, FRAME, size_cap=size_cap))


def test_big_and_still_is_easy_and_speed_or_smallness_make_it_hard():
    big, small = np.array([[0, 0, 80, 80.]]), np.array([[0, 0, 8, 8.]])
    assert pair_easiness(big, big, FRAME)[0] == pytest.approx(1)
    assert pair_easiness(small, small, FRAME)[0] < 0.2
    assert pair_easiness(big, big + [40, 0, 40, 0], FRAME)[0] == pytest.approx(1 / 3)


def test_births_ask_for_a_keyframe_and_clutter_does_not():
    greys = [np.zeros((6, 8), np.float32)] * 9
    still = boxes([0, 0, 80, 80])
    assert interval_easiness(still, still, greys, FRAME) == pytest.approx(1)
    born = boxes([0, 0, 80, 80], [200, 100, 280, 180])
    assert interval_easiness(still, born, greys, FRAME) == pytest.approx(0.5)
    clutter = FrameBoxes(born.boxes_xyxy, [0.9, 0.05], [0, 0])
    assert interval_easiness(still, clutter, greys, FRAME) == pytest.approx(1)


def test_nothing_seen_is_easy_unless_the_picture_moves():
    none, rng = FrameBoxes.empty(), np.random.default_rng(0)
    assert interval_easiness(none, none, [np.zeros((9, 9), np.float32)] * 3, FRAME) == 1
    noisy = [rng.random((9, 9)).astype(np.float32) for _ in range(3)]
    assert interval_easiness(none, none, noisy, FRAME) == 0


def test_adaptive_splits_hard_intervals_only():
    policy = AdaptiveKeyframes(8, 0.5)
    assert not policy.split(interval(2)) and policy.split(interval(60))
    assert not policy.split(interval(60, gap=1))
    assert not UniformKeyframes(8).split(interval(60))


def test_a_policy_asks_for_easiness_with_its_own_size_cap_and_only_where_it_may_split():
    asked = []

    def measure(size_cap):
        asked.append(size_cap)
        return 0.3
    none = FrameBoxes.empty()
    assert AdaptiveKeyframes(8, 0.5, beta=0.1).split(Interval(none, none, 8, measure))
    assert not AdaptiveKeyframes(8, 0.5).split(Interval(none, none, 1, measure))
    assert not UniformKeyframes(8).split(Interval(none, none, 8, measure))
    assert asked == [0.1]


@pytest.mark.parametrize('rate', [0.13, 0.17, 0.2, 0.24])
@pytest.mark.parametrize('make', [BudgetKeyframes, RandomKeyframes])
def test_a_budget_is_met_within_five_percent(make, rate):
    policy, rng = make(8, rate), np.random.default_rng(1)
    policy.start_segment()
    keyframes, frames = 1, 1
    for _ in range(600):
        keyframes += 1 + policy.split(interval(float(rng.uniform(0, 70))))
        frames += 8
    assert keyframes / frames == pytest.approx(rate, rel=0.05)


def test_a_budget_goes_to_the_hard_intervals():
    policy, rng = BudgetKeyframes(8, 0.19), np.random.default_rng(1)
    shifts = rng.uniform(0, 70, 600)
    picked = np.array([policy.split(interval(float(s))) for s in shifts])
    assert shifts[picked].mean() > shifts[~picked].mean() + 20


@pytest.mark.parametrize('make', [lambda: UniformKeyframes(0), lambda: UniformKeyframes(2.5),
                                  lambda: AdaptiveKeyframes(8, 1.5),
                                  lambda: AdaptiveKeyframes(8, 0.5, max_depth=0),
                                  lambda: BudgetKeyframes(8, 0.5),
                                  lambda: RandomKeyframes(8, 0.01)])
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(VisionError, match='VIS-CONFIG-105'):
        make()
