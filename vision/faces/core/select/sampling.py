"""Uniform draws of rows, repeatable from (seed, step) and O(rows drawn)."""

from __future__ import annotations

import numpy as np


def draw_outside(taken: np.ndarray, num_rows: int, count: int, *words: int) -> np.ndarray:
    """``count`` rows of 0..num_rows-1 without replacement and without those of ``taken``.

    Args:
        taken: sorted unique int64.
        words: whole numbers >= 0 that fix the draw, e.g. seed and step.
    Returns:
        sorted unique int64; all that are left when fewer than ``count``.
    """
    num_free = num_rows - len(taken)
    if count >= num_free:
        ranks = np.arange(num_free)
    else:
        generator = np.random.default_rng(words)
        ranks = generator.choice(num_free, count, replace=False, shuffle=False)
        ranks.sort()
    # The r-th free row is r plus the number of taken rows before it.
    return ranks + np.searchsorted(taken - np.arange(len(taken)), ranks, side='right')
