"""Paths of points against loops over single points, and their laws."""

import numpy as np
import pytest

from vision.lattice.core.paths import (
    DRIFT_SHARE,
    DRIFT_SIZES,
    END_SIGMA,
    GROWTH_NOISE,
    GROWTH_STRICTNESS,
    LINE_DOUBT_POINTS,
    LINE_POINTS,
    MAX_GROWTH,
    MIN_SHARE,
    STRAY_WEIGHT,
    Paths,
    bends,
    end_weights,
    follow,
    grid_points,
    mean_bend,
)

SIDE = 4
NUM_POINTS = SIDE * SIDE


def random_paths(seed, num_frames=7, num_boxes=5):
    """Boxes (N, 4) and paths of their grids; points get lost one after the other, for good."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 100, (num_boxes, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 60, (num_boxes, 2))], axis=1)
    steps = rng.normal(0, 4, (num_frames, num_boxes, NUM_POINTS, 2))
    steps[0] = 0
    xy = (grid_points(boxes, SIDE) + np.cumsum(steps, axis=0)).astype(np.float32)
    lost_at = rng.integers(0, 3 * num_frames, (num_boxes, NUM_POINTS))
    lost_at[0] = 99  # all of the first box's points stay, none of the last box's is ever there
    lost_at[-1] = 0
    is_good = np.arange(num_frames)[:, None, None] < lost_at
    return boxes, Paths(xy, is_good)


def slow_median(values, weights):
    """The value with half of the weight on either side; the middle of two such values."""
    rows = sorted((float(value), weight) for value, weight in zip(values, weights, strict=True))
    half, below, low = sum(weights) / 2, 0.0, None
    for value, weight in rows:
        below += weight
        if low is None and below >= half - 1e-7:
            low = value
        if below > half + 1e-7:
            return (low + value) / 2
    return low


def slow_follow(box, xy, is_good, drift=None):
    """One box, frame by frame: (F, 4) boxes and (F,) trust."""
    boxes, trust, is_lost = [], [], False
    width, height = box[2] - box[0], box[3] - box[1]
    size = np.sqrt(max(width, 1) * max(height, 1))
    centre = (box[:2] + box[2:]) / 2
    for t in range(len(xy)):
        good = [p for p in range(xy.shape[1]) if is_good[t, p]]
        is_lost = is_lost or len(good) < MIN_SHARE * xy.shape[1]
        if is_lost:
            boxes.append(boxes[-1] if boxes else list(box))
            trust.append(0.0)
            continue
        moved = {p: xy[t, p].astype(float) - xy[0, p] for p in good}
        weights = [1.0] * len(good)
        if drift is not None and not np.isnan(drift).any():
            off = [np.hypot(*(moved[p] - t * drift))
                   / (DRIFT_SIZES * size + DRIFT_SHARE * np.hypot(*(t * drift))) for p in good]
            weights = [STRAY_WEIGHT + (1 - STRAY_WEIGHT) * np.exp(-one**2) for one in off]
        shift = np.array([slow_median([moved[p][c] for p in good], weights) for c in (0, 1)])
        ratios = [np.log(max(np.hypot(*(xy[t, p] - centre - shift)), 0.5)
                         / max(np.hypot(*(xy[0, p] - centre)), 0.5)) for p in good]
        growth = slow_median(ratios, weights)
        spread = 1.4826 * slow_median([abs(ratio - growth) for ratio in ratios], weights)
        doubt = spread**2 / max(sum(weights), 1) + GROWTH_NOISE**2
        growth *= max(0, 1 - GROWTH_STRICTNESS * doubt / max(growth**2, 1e-12))
        half = np.array([width, height]) / 2 * np.clip(np.exp(growth), 1 / MAX_GROWTH, MAX_GROWTH)
        boxes.append([*(centre + shift - half), *(centre + shift + half)])
        trust.append(len(good) / xy.shape[1])
    return np.array(boxes), np.array(trust)


@pytest.mark.parametrize('seed', range(12))
@pytest.mark.parametrize('num_frames', [1, 2, 9])
@pytest.mark.parametrize('has_drift', [False, True])
def test_follow_equals_one_box_after_the_other(seed, num_frames, has_drift):
    boxes, paths = random_paths(seed, num_frames)
    drift = None
    if has_drift:
        drift = np.random.default_rng(seed).normal(0, 4, (len(boxes), 2))
        drift[1] = np.nan
    found, trust = follow(boxes, paths, drift)
    for i, box in enumerate(boxes):
        expected, expected_trust = slow_follow(box, paths.xy[:, i], paths.is_good[:, i],
                                               drift[i] if has_drift else None)
        np.testing.assert_allclose(found[:, i], expected, atol=1e-4)
        np.testing.assert_allclose(trust[:, i], expected_trust)
    some, some_trust = follow(boxes, paths, drift, frames=[-1, 0])
    np.testing.assert_array_equal(some, found[[-1, 0]])
    np.testing.assert_array_equal(some_trust, trust[[-1, 0]])


@pytest.mark.parametrize('seed', range(6))
def test_the_shift_is_the_median_of_numpy_over_the_points_that_are_left(seed):
    boxes, paths = random_paths(seed)
    shifts = np.where(paths.is_good[..., None], paths.xy - paths.xy[:1], np.nan)
    found, trust = follow(boxes, paths)
    counted = trust > 0
    assert 0 < counted.sum() < counted.size
    moved = (found - boxes)[counted]
    np.testing.assert_allclose((moved[:, :2] + moved[:, 2:]) / 2,
                               np.nanmedian(shifts[counted], axis=1), atol=1e-4)


def scaled_paths(box, factor, *, noise=0.0):
    """Points of a box that move away from its centre by a factor, each with an error, px."""
    start = grid_points(box, SIDE)
    centre = (box[:, None, :2] + box[:, None, 2:]) / 2
    error = np.random.default_rng(0).normal(0, noise, start.shape)
    xy = np.stack([start, centre + factor * (start - centre) + error]).astype(np.float32)
    return Paths(xy, np.ones((2, 1, NUM_POINTS), bool))


@pytest.mark.parametrize('factor', [0.6, 1.3, 1.8])
def test_a_box_grows_with_its_points(factor):
    box = np.array([[100.0, 100, 180, 160]])
    found, _ = follow(box, scaled_paths(box, factor))
    np.testing.assert_allclose((found[1, 0, 2:] - found[1, 0, :2]) / [80, 60], factor, rtol=0.03)
    np.testing.assert_allclose((found[1, 0, :2] + found[1, 0, 2:]) / 2, [140, 130], atol=1e-3)
    far, _ = follow(box, scaled_paths(box, 5.0))
    np.testing.assert_allclose((far[1, 0, 2:] - far[1, 0, :2]) / [80, 60], MAX_GROWTH)


def test_growth_that_points_do_not_agree_on_is_left_alone():
    box = np.array([[100.0, 100, 180, 160]])
    for paths in (scaled_paths(box, 1.05), scaled_paths(box, 1.1, noise=12)):
        found, _ = follow(box, paths)
        np.testing.assert_allclose(found[1, 0, 2:] - found[1, 0, :2], [80, 60])


def sticking_paths(num_stuck, way):
    """A box whose first points stick to the ground while the others go the way, px a frame."""
    box = np.array([[100.0, 100, 140, 160]])
    moves = np.arange(5)[:, None, None] * np.tile(np.asarray(way, float), (NUM_POINTS, 1))
    moves[:, :num_stuck] = 0
    xy = (grid_points(box, SIDE) + moves[:, None]).astype(np.float32)
    return box, Paths(xy, np.ones((5, 1, NUM_POINTS), bool))


def test_points_that_go_where_the_object_was_going_outvote_those_that_stick_to_the_ground():
    box, paths = sticking_paths(10, (6, 1))
    for drift, expected in ((None, [0, 0]), ([[np.nan, np.nan]], [0, 0]), ([[6.5, 1]], [24, 4])):
        found, _ = follow(box, paths, None if drift is None else np.array(drift))
        moved = (found[-1, 0] - box[0]).reshape(2, 2).mean(axis=0)
        np.testing.assert_allclose(moved, expected, atol=1e-3)


def test_an_object_that_turns_is_followed_wherever_it_was_going():
    box, paths = sticking_paths(3, (-5, 4))
    found, _ = follow(box, paths, np.array([[6.0, 0]]))
    moved = (found[-1, 0] - box[0]).reshape(2, 2).mean(axis=0)
    np.testing.assert_allclose(moved, [-20, 16], atol=1e-3)


def test_an_outlier_and_lost_points_do_not_move_a_box():
    box = np.array([[10.0, 10, 50, 50]])
    xy = np.repeat(grid_points(box, SIDE)[None], 3, axis=0).astype(np.float32)
    xy[1:] += [5, -2]
    xy[1:, 0, :6] += 300
    is_good = np.ones((3, 1, NUM_POINTS), bool)
    is_good[2, 0, 10:] = False  # six of the ten that are left went astray
    is_good[2, 0, :3] = False
    found, trust = follow(box, Paths(xy, is_good))
    np.testing.assert_allclose(found[1:, 0], np.repeat([[15, 8, 55, 48]], 2, axis=0), atol=1e-5)
    assert trust[:, 0].tolist() == [1, 1, 7 / 16]


def slow_weight(start_xy, end_xy, start, end, is_good):
    place = [(start_xy[c] - start[c]) / max(start[c + 2] - start[c], 1) for c in (0, 1)]
    sides = [max(end[c + 2] - end[c], 1) for c in (0, 1)]
    off = [end_xy[c] - (end[c] + place[c] * sides[c]) for c in (0, 1)]
    size = np.sqrt(sides[0] * sides[1])
    return float(is_good) * np.exp(-((np.hypot(*off) / size) / END_SIGMA) ** 2)


@pytest.mark.parametrize('seed', range(6))
def test_weights_and_bends_equal_loops_over_points(seed):
    boxes, paths = random_paths(seed)
    rng = np.random.default_rng(seed + 100)
    ends = boxes + rng.normal(0, 8, boxes.shape)
    ends[:, 2:] = np.maximum(ends[:, 2:], ends[:, :2] + 0.3)  # sides below 1 px among them
    weights = end_weights(paths, boxes, ends)
    times = np.sort(rng.uniform(0, 1, len(paths.xy)))
    times[[0, -1]] = 0, 1
    found, found_squares = bends(paths, weights, times)
    for i in range(len(boxes)):
        total, squares = np.zeros((len(times), 2)), np.zeros(len(times))
        for p in range(NUM_POINTS):
            xy = paths.xy[:, i, p].astype(float)
            expected = slow_weight(xy[0], xy[-1], boxes[i], ends[i], paths.is_good[-1, i, p])
            assert weights[i, p] == pytest.approx(expected, abs=1e-4)
            for t, share in enumerate(times):
                line = (1 - share) * xy[0] + share * xy[-1]
                total[t] += weights[i, p] * (xy[t] - line)
                squares[t] += weights[i, p] * ((xy[t] - line)**2).sum()
        np.testing.assert_allclose(found[:, i], total, atol=1e-3)
        np.testing.assert_allclose(found_squares[:, i], squares, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('gap', [4, 8, 24])
def test_the_line_counts_as_few_points_where_they_agree_and_more_where_they_do_not(gap):
    way = np.sin(np.linspace(0, np.pi, gap + 1))[:, None] * [0, 40.0]
    times = np.linspace(0, 1, gap + 1)
    shares = []
    for noise in (0, 0.3, 1, 3):
        scale = 1 + np.random.default_rng(0).normal(0, noise, NUM_POINTS)
        scale += 1 - scale.mean()  # they agree on the mean alone
        xy = (way[:, None, None] * scale[:, None]).astype(np.float32)
        paths = Paths(xy, np.ones(xy.shape[:3], bool))
        bend = mean_bend(*bends(paths, np.ones((1, NUM_POINTS)), times), np.array([NUM_POINTS]))
        shares.append(bend[gap // 2, 0, 1] / 40)
    assert shares[0] == pytest.approx(NUM_POINTS / (NUM_POINTS + LINE_POINTS * 8 / gap))
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] > NUM_POINTS / (NUM_POINTS + (LINE_POINTS + LINE_DOUBT_POINTS) * 8 / gap)
    assert mean_bend(np.zeros((gap + 1, 1, 2)), np.zeros((gap + 1, 1)), np.zeros(1)).max() == 0


@pytest.mark.parametrize('seed', range(4))
def test_a_bend_is_nothing_at_both_ends_and_the_same_told_backwards(seed):
    boxes, paths = random_paths(seed)
    weights = np.random.default_rng(seed).uniform(0, 1, (len(boxes), NUM_POINTS))
    times = np.array([0, 0.1, 0.15, 0.5, 0.6, 0.9, 1])
    there, squares = bends(paths, weights, times)
    np.testing.assert_allclose(there[[0, -1]], 0, atol=1e-4)
    assert np.abs(there[1:-1]).max() > 1
    back, squares_back = bends(Paths(paths.xy[::-1], paths.is_good[::-1]), weights,
                               1 - times[::-1])
    np.testing.assert_allclose(back[::-1], there, atol=1e-3)
    np.testing.assert_allclose(squares_back[::-1], squares, rtol=1e-3, atol=1e-3)


def test_even_movement_has_no_bend_whatever_the_times():
    boxes, paths = random_paths(0)
    times = np.array([0, 0.3, 0.31, 0.5, 0.52, 0.9, 1])
    speed = np.random.default_rng(0).normal(0, 30, (len(boxes), NUM_POINTS, 2))
    straight = Paths((paths.xy[:1] + times[:, None, None, None] * speed).astype(np.float32),
                     paths.is_good)
    for sums in bends(straight, np.ones((len(boxes), NUM_POINTS)), times):
        np.testing.assert_allclose(sums, 0, atol=1e-3)


@pytest.mark.parametrize('end', [[10, 10, 30, 30], [60, 25, 80, 45], [0, 0, 200, 7]])
def test_points_that_end_at_their_own_place_weigh_one(end):
    start, end = np.array([[10.0, 10, 30, 30]]), np.array([end], float)
    xy = np.stack([grid_points(start, SIDE), grid_points(end, SIDE)])
    is_good = np.ones((2, 1, NUM_POINTS), bool)
    is_good[1, 0, 3] = False
    weights = end_weights(Paths(xy, is_good), start, end)
    np.testing.assert_allclose(np.delete(weights, 3), 1)
    assert weights[0, 3] == 0


def test_background_points_that_stand_weigh_nothing_when_the_box_is_two_sizes_away():
    start = np.array([[10.0, 10, 30, 30]])
    xy = np.repeat(grid_points(start, SIDE)[None], 2, axis=0)
    paths = Paths(xy, np.ones((2, 1, NUM_POINTS), bool))
    assert end_weights(paths, start, start + [40, 0, 40, 0]).max() < 1e-20
    assert end_weights(paths, start, start + [5, 0, 5, 0]) == pytest.approx(np.exp(-1))
    weights = [end_weights(paths, start, start + [x, 0, x, 0])[0, 0] for x in range(0, 50, 5)]
    assert weights == sorted(weights, reverse=True)


def test_the_grid_is_even_and_inside():
    boxes = np.array([[10.0, 20, 50, 30], [0, 0, 1, 100]])
    points = grid_points(boxes, SIDE).reshape(2, SIDE, SIDE, 2)
    assert (points > boxes[:, None, None, :2]).all() and (points < boxes[:, None, None, 2:]).all()
    np.testing.assert_allclose(points.mean(axis=(1, 2)), (boxes[:, :2] + boxes[:, 2:]) / 2)
    for axis in (1, 2):
        second = np.diff(points, 2, axis=axis)
        np.testing.assert_allclose(second, 0, atol=1e-12)


def test_no_boxes():
    paths = Paths(np.zeros((5, 0, NUM_POINTS, 2), np.float32), np.zeros((5, 0, NUM_POINTS), bool))
    none = np.zeros((0, 4))
    boxes, trust = follow(none, paths)
    assert boxes.shape == (5, 0, 4) and trust.shape == (5, 0)
    weights = end_weights(paths, none, none)
    sums = bends(paths, weights, np.linspace(0, 1, 5))
    assert mean_bend(*sums, weights.sum(axis=1)).shape == (5, 0, 2)
