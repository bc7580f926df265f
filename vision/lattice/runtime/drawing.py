"""Boxes on a picture, drawn by OpenCV alone; found ones beside true ones."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from vision.lattice.core.structures import FrameBoxes

FONT, SCALE, PADDING = cv2.FONT_HERSHEY_SIMPLEX, 0.4, 2
WHITE, BLACK, GREY = (255, 255, 255), (0, 0, 0), (128, 128, 128)
MISSED, EXTRA, CONFUSED = (0, 0, 255), (0, 0, 255), (0, 165, 255)  # BGR
Colour = tuple[int, int, int]


def class_colour(label: int) -> Colour:
    """BGR; hues of neighbouring labels are far apart (steps of the golden ratio)."""
    hsv = (label * 0.618034 % 1, (0.85, 0.6)[label % 2], (1.0, 0.85)[label // 2 % 2])
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(*hsv))[::-1]


def draw_boxes(image_bgr: np.ndarray, boxes_xyxy: np.ndarray, texts: Sequence[str],
               colours: Sequence[Colour], *, width: int = 2) -> np.ndarray:
    """A copy of (H, W, 3) uint8 with boxes (N, 4) in its pixels; later ones lie above."""
    image = np.ascontiguousarray(image_bgr).copy()
    corners = np.rint(np.asarray(boxes_xyxy)).astype(int).reshape(-1, 4).tolist()
    for (x1, y1, x2, y2), colour in zip(corners, colours, strict=True):
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, width)
    for (x1, y1, _, _), text, colour in zip(corners, texts, colours, strict=True):
        if text:
            _plate(image, text, (x1, y1), colour)
    return image


def draw_found(image_bgr: np.ndarray, boxes: FrameBoxes, classes: Sequence[str], *,
               score_thr: float = 0.0) -> np.ndarray:
    """A copy with the boxes from ``score_thr`` on, the best above; colours are those of classes,
    or of tracks where the boxes have ids."""
    rows = np.flatnonzero(boxes.scores >= score_thr)[::-1]
    boxes = boxes.select(rows)
    texts = [f'{classes[label]}{f" #{track}" if track > 0 else ""} {score:.2f}'
             for label, track, score in zip(boxes.labels, boxes.track_ids, boxes.scores,
                                            strict=True)]
    colours = [class_colour(int(track if track > 0 else label))
               for label, track in zip(boxes.labels, boxes.track_ids, strict=True)]
    return draw_boxes(image_bgr, boxes.boxes_xyxy, texts, colours)


def side_by_side(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Pictures of one height in a row, each under its title."""
    bar = 20
    parts = []
    for picture, title in zip(pictures, titles, strict=True):
        canvas = np.full((picture.shape[0] + bar, picture.shape[1], 3), 32, np.uint8)
        canvas[bar:] = picture
        cv2.putText(canvas, title, (4, bar - 6), FONT, SCALE, WHITE, 1, cv2.LINE_AA)
        parts += [canvas, np.full((len(canvas), 4, 3), 32, np.uint8)]
    return np.concatenate(parts[:-1], axis=1)


def _plate(image: np.ndarray, text: str, corner: tuple[int, int], colour: Colour) -> None:
    """A label above the corner of a box; inside the picture at its edges."""
    (width, height), _ = cv2.getTextSize(text, FONT, SCALE, 1)
    width, height = width + 2 * PADDING, height + 2 * PADDING + 1
    left = max(0, min(corner[0], image.shape[1] - width))
    bottom = corner[1] if corner[1] >= height else corner[1] + height
    cv2.rectangle(image, (left, bottom - height), (left + width, bottom), colour, -1)
    is_bright = colour[0] * 0.11 + colour[1] * 0.59 + colour[2] * 0.3 > 140
    cv2.putText(image, text, (left + PADDING, bottom - PADDING - 1), FONT, SCALE,
                BLACK if is_bright else WHITE, 1, cv2.LINE_AA)
