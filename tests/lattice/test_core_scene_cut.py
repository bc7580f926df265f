"""Cuts between generated scenes, and everything that is not a cut."""

from itertools import permutations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vision.lattice.core.scene_cut import (
    SceneCutDetector,
    histogram_distance,
    layout_correlation,
)

SHAPE = (90, 160)


def scene(seed, shape=SHAPE):
    """Large and small structure, like a photograph; (h, w) in [0, 1]."""
    rng = np.random.default_rng(seed)
    grey = sum(gaussian_filter(rng.normal(size=shape), sigma) * sigma for sigma in (20, 6, 2))
    return np.interp(grey, (grey.min(), grey.max()), (0.05, 0.95)).astype(np.float32)


def test_most_joins_of_two_scenes_are_found():
    """Not all: two scenes may be laid out alike by chance (here blobs of a fifth of the frame)."""
    detector, scenes = SceneCutDetector(), [scene(seed) for seed in range(12)]
    found = [detector(here, there) for here, there in permutations(scenes, 2)]
    assert np.mean(found) > 0.9 and len(found) == 132


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('change', [
    lambda g: g, lambda g: np.clip(g * 1.3, 0, 1), lambda g: g * 0.5, lambda g: g * 0.6 + 0.3,
    lambda g: np.roll(g, 8, axis=1), lambda g: np.roll(g, -4, axis=0),
    lambda g: gaussian_filter(g, 3),
    lambda g: np.clip(g + np.random.default_rng(0).normal(0, 0.1, g.shape), 0, 1)],
    ids=['same', 'bright', 'dark', 'fog', 'pan', 'tilt', 'defocus', 'noise'])
def test_flicker_camera_and_noise_are_no_cuts(change, seed):
    grey = scene(seed)
    assert not SceneCutDetector()(grey, change(grey))


@pytest.mark.parametrize('background', [0.0, 0.5])
@pytest.mark.parametrize('side', [10, 30])
def test_an_object_that_jumps_over_a_plain_ground_is_no_cut(background, side):
    before, after = (np.full(SHAPE, background, np.float32) for _ in range(2))
    before[20:20 + side, 10:10 + side] = after[40:40 + side, 100:100 + side] = 1.0
    assert not SceneCutDetector()(before, after)


def test_a_scene_after_black_is_a_cut_and_one_plain_frame_after_another_is_none():
    black, grey, detector = np.zeros(SHAPE), np.full(SHAPE, 0.5), SceneCutDetector()
    assert detector(black, scene(0)) and detector(scene(0), black)
    assert not detector(black, grey) and not detector(black, black)


def test_the_two_measures_by_hand():
    left_half = np.zeros((16, 16))
    left_half[:, :8] = 1.0
    assert layout_correlation(left_half, left_half) == pytest.approx(1)
    assert layout_correlation(left_half, left_half[:, ::-1]) == pytest.approx(-1)
    assert layout_correlation(left_half, np.zeros((16, 16))) == 0
    assert layout_correlation(np.ones((16, 16)), np.zeros((16, 16))) == 1
    assert histogram_distance(left_half, left_half * 0.3 + 0.1) == 0
    assert histogram_distance(left_half, left_half[:, ::-1]) == 1
    one_block = left_half.copy()
    one_block[:4, :4] = 0.0  # 1 of 16 blocks changes; the deviation of the frame hardly does
    assert histogram_distance(left_half, one_block) == pytest.approx(1 / 16)


@pytest.mark.parametrize('seed', range(4))
def test_frames_of_bytes_are_judged_as_those_of_floats(seed):
    detector, bytes_ = SceneCutDetector(), np.round(scene(seed) * 255).astype(np.uint8)
    others = [np.round(scene(seed + 1) * 255).astype(np.uint8), bytes_ // 2,
              np.roll(bytes_, 8, axis=1), np.zeros(SHAPE, np.uint8), np.full(SHAPE, 1, np.uint8)]
    verdicts = [detector(bytes_, other) for other in others]
    assert verdicts == [detector(bytes_ / np.float32(255), other / np.float32(255))
                        for other in others]
    assert verdicts == [True, False, False, True, True]
    # A step of 1 / 255 on black is no layout: of raw bytes it would be judged as 255 times that.
    ramp = (np.arange(SHAPE[1]) * 2 // SHAPE[1]).astype(np.uint8) * np.ones(SHAPE, np.uint8)
    assert detector(np.zeros(SHAPE, np.uint8), ramp) == detector(np.zeros(SHAPE), ramp / 255)


def test_tiny_frames_are_compared_too():
    tiny = np.array([[0.1, 0.9], [0.4, 0.6]])
    assert not SceneCutDetector()(tiny, tiny)
    assert layout_correlation(tiny, tiny) == pytest.approx(1)
