"""What a detector found, on a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vision.common.runtime.drawing import class_colour, draw_boxes
from vision.lattice.core.structures import FrameBoxes


def draw_found(image_bgr: np.ndarray, boxes: FrameBoxes, classes: Sequence[str], *,
               score_thr: float = 0.0) -> np.ndarray:
    """A copy of the picture (H, W, 3) uint8 BGR with the boxes from ``score_thr`` on, the best
    above; colours are those of classes, or of tracks where the boxes have ids."""
    rows = np.flatnonzero(boxes.scores >= score_thr)[::-1]
    boxes = boxes.select(rows)
    texts = [f'{classes[label]}{f" #{track}" if track > 0 else ""} {score:.2f}'
             for label, track, score in zip(boxes.labels, boxes.track_ids, boxes.scores,
                                            strict=True)]
    colours = [class_colour(int(track if track > 0 else label))
               for label, track in zip(boxes.labels, boxes.track_ids, strict=True)]
    return draw_boxes(image_bgr, boxes.boxes_xyxy, texts, colours)
