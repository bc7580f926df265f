"""The grey frames on which motion is measured; the same in training and in the engine."""

from __future__ import annotations

import cv2
import numpy as np

from vision.lattice.core.motion import motion_history

GREY_LONG_SIDE = 320  # px: small objects of a few pixels vanish below, cost grows above
HISTORY_FRACTION = 2  # motion history is taken at half of that: a quarter of its cost


def grey_frame(image_bgr: np.ndarray, long_side: int = GREY_LONG_SIDE) -> np.ndarray:
    """(H, W, 3) uint8 BGR -> (h, w) float32 in [0, 1], longer side ``long_side``; never enlarged.

    Sides are multiples of ``HISTORY_FRACTION``.
    """
    height, width = image_bgr.shape[:2]
    scale = min(1.0, long_side / max(height, width))
    size = [max(HISTORY_FRACTION, round(side * scale / HISTORY_FRACTION) * HISTORY_FRACTION)
            for side in (width, height)]
    grey = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY)
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return grey.astype(np.float32) / 255


def small_history(greys: np.ndarray) -> np.ndarray:
    """Motion history (h / 2, w / 2) of grey frames (n + 1, h, w) at half their size."""
    size = greys.shape[2] // HISTORY_FRACTION, greys.shape[1] // HISTORY_FRACTION
    return motion_history(np.stack([cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
                                    for grey in greys]))
