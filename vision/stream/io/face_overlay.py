"""Boxes, names and landmarks of faces, drawn by OpenCV alone."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import cv2
import numpy as np

# BGR. A face that nobody looked up has no name and the third colour.
KNOWN, STRANGER, FOUND = (80, 200, 60), (60, 60, 220), (200, 140, 40)
WHITE = (255, 255, 255)


def draw_faces(image_bgr: np.ndarray, faces: Sequence[dict], unknown: str = 'unknown'
               ) -> np.ndarray:
    """A copy of (H, W, 3) uint8 with boxes, texts and landmarks; they grow with the picture.

    Args:
        faces: dicts with ``box`` (x1 y1 x2 y2 px), and perhaps ``landmarks`` (5, 2) px; ``name``
            and ``cosine`` of a face that was looked up, otherwise ``score``.
        unknown: the name that means nobody.
    """
    canvas = image_bgr.copy()
    scale = max(0.4, max(image_bgr.shape[:2]) / 1600)
    width = max(1, round(2 * scale))
    for face in faces:
        name = face.get('name')
        colour = FOUND if name is None else STRANGER if name == unknown else KNOWN
        left, top, right, bottom = (round(value) for value in face['box'])
        cv2.rectangle(canvas, (left, top), (right, bottom), colour, width)
        for x, y in face.get('landmarks', ()):
            cv2.circle(canvas, (round(x), round(y)), width + 1, colour, -1, cv2.LINE_AA)
        text = f'{face["score"]:.2f}' if name is None else f'{latin(name)} {face["cosine"]:.2f}'
        _plate(canvas, text, (left, top, bottom), colour, scale, width)
    return canvas


def _plate(canvas: np.ndarray, text: str, place: tuple[int, int, int],
           colour: tuple[int, int, int], scale: float, width: int) -> None:
    """Text on a filled plate above the box, or below it at the picture's upper edge."""
    left, top, bottom = place
    (length, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, width)
    x = max(0, min(left, canvas.shape[1] - length))
    y = top - below if top > height + 2 * below else min(bottom + height + below,
                                                         canvas.shape[0] - below)
    cv2.rectangle(canvas, (x, y - height - 2), (x + length, y + below), colour, -1)
    cv2.putText(canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, WHITE, width, cv2.LINE_AA)


def latin(name: str) -> str:
    """What OpenCV's font can draw of a name; tables and JSON lines keep it whole."""
    plain = unicodedata.normalize('NFKD', name).encode('ascii', 'ignore').decode()
    return plain.replace('_', ' ') or '?'
