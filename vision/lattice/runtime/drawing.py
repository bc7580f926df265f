"""What a detector found, on a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vision.common.runtime.drawing import captions, draw_boxes
from vision.lattice.core.structures import FrameBoxes


def draw_found(image_bgr: np.ndarray, boxes: FrameBoxes, classes: Sequence[str], *,
               score_thr: float = 0.0) -> np.ndarray:
    """A copy of the picture (H, W, 3) uint8 BGR with the boxes from ``score_thr`` on, the best
    above; colours are those of classes, or of tracks where the boxes have ids."""
    best_last = boxes.select(np.flatnonzero(boxes.scores >= score_thr)[::-1])
    return draw_boxes(image_bgr, best_last.boxes_xyxy, *captions(
        classes, best_last.labels, best_last.track_ids, best_last.scores))
