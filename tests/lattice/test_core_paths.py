"""Paths of points against loops over single points, and their laws."""

import numpy as np
import pytest

from vision.lattice.core.paths import (
    END_SIGMA,
    MIN_SHARE,
    Paths,
    bends,
    end_weights,
    follow,
    grid_points,
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


def slow_follow(box, xy, is_good):
    """One box, frame by frame: (F, 4) boxes and (F,) trust."""
    boxes, trust, is_lost = [], [], False
    for t in range(len(xy)):
        good = [p for p in range(xy.shape[1]) if is_good[t, p]]
        is_lost = is_lost or len(good) < MIN_SHARE * xy.shape[1]
        if is_lost:
            boxes.append(boxes[-1] if boxes else list(box))
            trust.append(0.0)
            continue
        shift = [float(np.nanmedian([float(xy[t, p, c]) - float(xy[0, p, c]) for p in good]))
                 for c in (0, 1)]
        boxes.append([box[0] + shift[0], box[1] + shift[1], box[2] + shift[0], box[3] + shift[1]])
        trust.append(len(good) / xy.shape[1])
    return np.array(boxes), np.array(trust)


@pytest.mark.parametrize('seed', range(12))
@pytest.mark.parametrize('num_frames', [1, 2, 9])
def test_follow_equals_one_box_after_the_other(seed, num_frames):
    boxes, paths = random_paths(seed, num_frames)
    found, trust = follow(boxes, paths)
    for i, box in enumerate(boxes):
        expected, expected_trust = slow_follow(box, paths.xy[:, i], paths.is_good[:, i])
        np.testing.assert_allclose(found[:, i], expected, atol=1e-4)
        np.testing.assert_allclose(trust[:, i], expected_trust)


@pytest.mark.parametrize('seed', range(6))
def test_the_shift_is_the_median_of_numpy_over_the_points_that_are_left(seed):
    boxes, paths = random_paths(seed)
    shifts = np.where(paths.is_good[..., None], paths.xy - paths.xy[:1], np.nan)
    found, trust = follow(boxes, paths)
    counted = trust > 0
    assert 0 < counted.sum() < counted.size
    np.testing.assert_allclose((found - boxes)[counted][:, :2],
                               np.nanmedian(shifts[counted], axis=1), atol=1e-4)


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
    found = bends(paths, weights, times)
    for i in range(len(boxes)):
        total = np.zeros((len(times), 2))
        for p in range(NUM_POINTS):
            xy = paths.xy[:, i, p].astype(float)
            expected = slow_weight(xy[0], xy[-1], boxes[i], ends[i], paths.is_good[-1, i, p])
            assert weights[i, p] == pytest.approx(expected, abs=1e-4)
            for t, share in enumerate(times):
                line = (1 - share) * xy[0] + share * xy[-1]
                total[t] += weights[i, p] * (xy[t] - line)
        np.testing.assert_allclose(found[:, i], total, atol=1e-3)


@pytest.mark.parametrize('seed', range(4))
def test_told_backwards_twice_is_told_forwards(seed):
    _, paths = random_paths(seed)
    again = paths.reversed().reversed()
    np.testing.assert_array_equal(again.xy, paths.xy)
    np.testing.assert_array_equal(again.is_good, paths.is_good)
    np.testing.assert_array_equal(paths.reversed().xy[0], paths.xy[-1])


@pytest.mark.parametrize('seed', range(4))
def test_a_bend_is_nothing_at_both_ends_and_the_same_told_backwards(seed):
    boxes, paths = random_paths(seed)
    weights = np.random.default_rng(seed).uniform(0, 1, (len(boxes), NUM_POINTS))
    times = np.array([0, 0.1, 0.15, 0.5, 0.6, 0.9, 1])
    there = bends(paths, weights, times)
    np.testing.assert_allclose(there[[0, -1]], 0, atol=1e-4)
    assert np.abs(there[1:-1]).max() > 1
    back = bends(paths.reversed(), weights, 1 - times[::-1])
    np.testing.assert_allclose(back[::-1], there, atol=1e-3)


def test_even_movement_has_no_bend_whatever_the_times():
    boxes, paths = random_paths(0)
    times = np.array([0, 0.3, 0.31, 0.5, 0.52, 0.9, 1])
    speed = np.random.default_rng(0).normal(0, 30, (len(boxes), NUM_POINTS, 2))
    straight = Paths((paths.xy[:1] + times[:, None, None, None] * speed).astype(np.float32),
                     paths.is_good)
    np.testing.assert_allclose(bends(straight, np.ones((len(boxes), NUM_POINTS)), times), 0,
                               atol=1e-3)


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
    assert bends(paths, weights, np.linspace(0, 1, 5)).shape == (5, 0, 2)
