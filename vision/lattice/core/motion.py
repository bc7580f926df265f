"""Motion history: where pixels changed between two frames, and how long ago.

Scale-Time Lattice (arXiv:1804.05472) feeds motion history images, not optical flow, to its
propagation. Shapes: n + 1 grey frames (n + 1, h, w) in [0, 1]; step i goes from frame i - 1 to i.
"""

from __future__ import annotations

import numpy as np

# Smallest change of a blurred pixel that counts as motion (our choice: above sensor noise).
MOTION_THRESHOLD = 25 / 255


def box_blur(greys: np.ndarray) -> np.ndarray:
    """3x3 mean of greys (..., h, w), edge pixels repeated outwards; of the same shape."""
    padded = np.pad(greys, [(0, 0)] * (greys.ndim - 2) + [(1, 1), (1, 1)], mode='edge')
    rows = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


def active_steps(greys: np.ndarray, *, threshold: float = MOTION_THRESHOLD) -> np.ndarray:
    """(n, h, w) bool of greys (n + 1, h, w): the blurred pixel changed by more than ``threshold``
    in step i + 1."""
    blurred = box_blur(np.asarray(greys, np.float32))
    return np.abs(blurred[1:] - blurred[:-1]) > np.float32(threshold)


def motion_history(greys: np.ndarray, *, threshold: float = MOTION_THRESHOLD,
                   duration: float | None = None,
                   times: np.ndarray | None = None) -> np.ndarray:
    """Motion history image (h, w) float32 in [0, 1] of the last frame; newer motion is brighter.

    Step by step: H = 1 where the pixel moves, else max(0, H - dt / duration). A pixel's value is
    thus decided by its last active step k alone: max(0, 1 - (t_n - t_k) / duration), which is
    what is computed here. Reversing the frames gives the history towards the first frame.

    Args:
        greys: (n + 1, h, w) consecutive frames in [0, 1], n >= 0.
        duration: time until a movement is forgotten; by default from the first to the last frame.
        times: (n + 1,) when the frames were taken, increasing or (time-reversed) decreasing, in
            the unit of ``duration``; by default 0, 1, ..., n.

    Raises:
        ValueError: shapes disagree, or duration <= 0.
    """
    greys = np.asarray(greys, np.float32)
    if greys.ndim != 3 or len(greys) < 1:
        raise ValueError(f'greys must be (n + 1, h, w) with n >= 0, got shape {greys.shape}')
    num_steps = len(greys) - 1
    times = np.arange(num_steps + 1.0) if times is None else np.asarray(times, np.float64)
    if times.shape != (num_steps + 1,):
        raise ValueError(f'times must be ({num_steps + 1},), got shape {times.shape}')
    duration = abs(times[-1] - times[0]) if duration is None else duration
    if num_steps and not duration > 0:
        raise ValueError(f'duration must be > 0, got {duration}')
    history = np.zeros(greys.shape[1:], np.float32)
    for step, is_active in enumerate(active_steps(greys, threshold=threshold), start=1):
        age = abs(times[-1] - times[step]) / duration
        np.copyto(history, np.float32(max(0.0, 1 - age)), where=is_active)
    return history


def activity(greys: np.ndarray, *, threshold: float = MOTION_THRESHOLD) -> float:
    """Share of the pixels of greys (n + 1, h, w) in [0, 1] that moved in any step, in [0, 1]."""
    return float(active_steps(greys, threshold=threshold).any(axis=0).mean())
