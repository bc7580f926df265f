"""Scene cuts by comparing consecutive small grey frames.

Our choice. One histogram of the whole frame is not enough (two outdoor scenes often have the same
one, and a light switched on changes it more than a cut does), so histograms are taken per block,
and joined with how much the coarse layout of the picture changed. Both are blind to a change of
brightness or contrast of the whole frame, and neither moves much when objects or the camera move.
``benchmarks/scene_cuts.py`` counts misses and false alarms on one's own films.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

LAYOUT_BLOCKS = 8  # a side of the grid whose block means are the layout
HISTOGRAM_BLOCKS = 4  # a side of the grid of blocks that have a histogram each
NUM_BINS = 8
LAYOUT_WEIGHT = 0.5
# Frames whose mean difference is below this share of their deviation hold one scene for certain:
# their layouts correlate by more than 0.9. Most frames of a video are told apart by this alone.
CALM_SHARE = 0.3
MIN_DEVIATION = 1 / 255  # a frame flatter than this holds nothing but rounding


def histogram_distance(before: np.ndarray, after: np.ndarray) -> float:
    """Mean over the blocks of half the L1 distance of their histograms, in [0, 1].

    Of frames before and after (h, w) brought to mean 0 and deviation 1; bins from -2 to 2
    deviations, what lies outside in the last ones.
    """
    return float(np.abs(_histograms(before) - _histograms(after)).sum(axis=1).mean() / 2)


def layout_correlation(before: np.ndarray, after: np.ndarray) -> float:
    """Correlation of the block means of two frames (h, w), in [-1, 1]; 1 for equal layouts.

    Two frames without any layout count as equal; one without and one with, as unrelated (0).
    """
    layouts = [_block_means(grey) for grey in (before, after)]
    is_flat = [means.std() < MIN_DEVIATION for means in layouts]
    if any(is_flat):
        return float(all(is_flat))
    return float(np.mean(_standardised(layouts[0]) * _standardised(layouts[1])))


class SceneCutDetector:
    """Says whether a cut lies between two consecutive grey frames (h, w) in [0, 1], or uint8.

    A cut is where histogram_distance + 0.5 (1 - layout_correlation) is above ``min_change`` and
    the histograms alone differ by more than ``min_distance`` (a small bright object that moves
    over a black ground changes the whole layout, but few histograms).
    """

    def __init__(self, *, min_change: float = 0.65, min_distance: float = 0.18) -> None:
        self.min_change = min_change
        self.min_distance = min_distance

    def __call__(self, before: np.ndarray, after: np.ndarray) -> bool:
        if before.dtype == np.uint8:
            before, after = before / np.float32(255), after / np.float32(255)
        if np.abs(before - after).mean() < CALM_SHARE * min(before.std(), after.std()):
            return False
        distance = histogram_distance(before, after)
        if distance <= self.min_distance:
            return False
        layout = 1 - layout_correlation(before, after)
        return distance + LAYOUT_WEIGHT * layout > self.min_change


def _standardised(grey: np.ndarray) -> np.ndarray:
    return (grey - grey.mean()) / max(float(grey.std()), MIN_DEVIATION)


@lru_cache(maxsize=8)
def _block_of_pixels(h: int, w: int, num_blocks: int) -> np.ndarray:
    """(h * w,) index of the block that each pixel lies in, row by row."""
    rows, columns = (np.arange(length) * num_blocks // length for length in (h, w))
    return (rows[:, None] * num_blocks + columns).ravel()


def _block_means(grey: np.ndarray) -> np.ndarray:
    block = _block_of_pixels(*grey.shape, LAYOUT_BLOCKS)
    counts = np.bincount(block, minlength=LAYOUT_BLOCKS**2)
    means = np.bincount(block, np.ravel(grey), LAYOUT_BLOCKS**2)
    return means[counts > 0] / counts[counts > 0]


def _histograms(grey: np.ndarray) -> np.ndarray:
    """(blocks, bins) shares; a tiny frame has fewer blocks."""
    level = np.clip((_standardised(np.ravel(grey)) + 2) * (NUM_BINS / 4), 0, NUM_BINS - 1)
    cells = _block_of_pixels(*grey.shape, HISTOGRAM_BLOCKS) * NUM_BINS + level.astype(np.intp)
    table = np.bincount(cells, minlength=HISTOGRAM_BLOCKS**2 * NUM_BINS).reshape(-1, NUM_BINS)
    table = table[table.any(axis=1)]
    return table / table.sum(axis=1, keepdims=True)
