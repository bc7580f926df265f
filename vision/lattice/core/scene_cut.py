"""Scene cuts by comparing consecutive small grey frames."""

from __future__ import annotations

import numpy as np

NUM_BINS = 32
BLOCKS = 8


def _standardised(grey: np.ndarray) -> np.ndarray:
    """Mean 0, deviation 1: what a change of brightness or contrast leaves alone."""
    grey = np.asarray(grey, np.float32)
    return (grey - grey.mean()) / max(float(grey.std()), 1 / 255)


def histogram_distance(before: np.ndarray, after: np.ndarray) -> float:
    """Half the L1 distance of the histograms of two standardised frames, in [0, 1]."""
    shares = []
    for grey in (before, after):
        bins = np.clip((_standardised(grey) + 3) * (NUM_BINS / 6), 0, NUM_BINS - 1).astype(np.intp)
        shares.append(np.bincount(bins.ravel(), minlength=NUM_BINS) / bins.size)
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


class SceneCutDetector:
    """Says whether a cut lies between two consecutive grey frames (h, w) in [0, 1]."""

    def __init__(self, *, min_distance: float = 0.3) -> None:
        self.min_distance = min_distance

    def __call__(self, before: np.ndarray, after: np.ndarray) -> bool:
        return histogram_distance(before, after) > self.min_distance
