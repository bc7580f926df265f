import numpy as np
import pytest

from vision.lattice.core.motion import MOTION_THRESHOLD, active_steps, activity, motion_history


def recursion(greys, threshold=MOTION_THRESHOLD):
    """The definition, step by step and pixel by pixel."""
    num_steps = len(greys) - 1
    padded = np.pad(greys, ((0, 0), (1, 1), (1, 1)), mode='edge').astype(np.float64)
    height, width = greys.shape[1:]
    history = np.zeros((height, width))
    for step in range(1, num_steps + 1):
        for y in range(height):
            for x in range(width):
                means = [padded[i, y:y + 3, x:x + 3].mean() for i in (step - 1, step)]
                history[y, x] = 1 if abs(means[1] - means[0]) > threshold \
                    else max(0, history[y, x] - 1 / num_steps)
    return history


@pytest.mark.parametrize('num_steps', [1, 2, 5, 8])
def test_closed_form_equals_the_recursion(num_steps):
    rng = np.random.default_rng(num_steps)
    greys = np.where(rng.random((num_steps + 1, 7, 9)) < 0.7, 0.5,
                     rng.random((num_steps + 1, 7, 9))).astype(np.float32)
    assert np.allclose(motion_history(greys), recursion(greys), atol=1e-6)


def test_newer_motion_is_brighter_and_time_reversal_turns_it_round():
    greys = np.zeros((5, 12, 60), np.float32)
    for t in range(5):  # a bar that moves right
        greys[t, :, 10 * t:10 * t + 10] = 1
    forward, backward = motion_history(greys), motion_history(greys[::-1])
    assert forward[6, 45] == 1 and forward[6, 2] == pytest.approx(1 - 3 / 4)
    assert backward[6, 2] == 1 and backward[6, 45] == pytest.approx(1 - 3 / 4)


def test_still_frames_have_no_history():
    greys = np.full((4, 5, 5), 0.3, np.float32)
    assert not motion_history(greys).any() and activity(greys) == 0
    assert not motion_history(greys[:1]).any()


def test_uneven_times_count_by_their_distance():
    greys = np.zeros((3, 4, 4), np.float32)
    greys[1:] = 1  # everything changes in the first step, nothing in the second
    assert np.allclose(motion_history(greys, times=np.array([0.0, 3.0, 4.0])), 1 - 1 / 4)


def test_brightness_below_the_threshold_is_no_motion():
    greys = np.stack([np.zeros((6, 6)), np.full((6, 6), 24 / 255)]).astype(np.float32)
    assert not active_steps(greys).any()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match='shape'):
        motion_history(np.zeros((4, 4)))
    with pytest.raises(ValueError, match='times'):
        motion_history(np.zeros((3, 4, 4)), times=np.zeros(2))
