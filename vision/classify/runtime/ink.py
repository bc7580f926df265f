"""A written character brought to one place, size and colour: what the network sees of it."""

from __future__ import annotations

import cv2
import numpy as np

BLANK = 24  # grey levels between paper and ink; below it there is nothing to read
INK_LEVEL = 0.35  # of the strongest ink: what counts for the box round the character


def fit_ink(image: np.ndarray, size: int = 32, ink_px: int = 26) -> np.ndarray:
    """White ink on black, its box in the middle with ``ink_px`` px as the longer side.

    Dark on light and light on dark give the same: the paper is the median of the picture's edge,
    ink is what differs from it. The proportions of the ink stay; its size and place are lost, as
    they are in a picture that somebody cut out.

    Args:
        image: (H, W), (H, W, 1), or (H, W, 3) BGR, uint8.
        size: px of the result's sides.

    Returns:
        (size, size) uint8; all zero for a picture without ink.
    """
    grey = image if image.ndim == 2 else image[:, :, 0] if image.shape[2] == 1 else \
        cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ink = cv2.absdiff(grey, np.full_like(grey, int(np.median(edge))))
    strongest = int(ink.max())
    result = np.zeros((size, size), dtype=np.uint8)
    if strongest < BLANK:
        return result
    left, top, width, height = cv2.boundingRect(
        (ink >= INK_LEVEL * strongest).astype(np.uint8))
    scale = ink_px / max(width, height)
    to = max(1, round(width * scale)), max(1, round(height * scale))
    box = ink[top:top + height, left:left + width]
    part = cv2.resize(box, to, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    y, x = (size - to[1]) // 2, (size - to[0]) // 2
    result[y:y + to[1], x:x + to[0]] = cv2.convertScaleAbs(part, alpha=255 / strongest)
    return result
