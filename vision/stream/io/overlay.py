"""Boxes, track colours, figures and a thin bar of keyframes, drawn by OpenCV alone."""

from __future__ import annotations

import colorsys
from collections import deque

import cv2
import numpy as np

from vision.lattice.core.structures import FrameBoxes, FrameResult
from vision.stream.io.sources import LIVE

KEY_COLOUR, OTHER_COLOUR = (60, 200, 255), (110, 110, 110)  # BGR
LOSS_COLOUR, WHITE, BLACK = (80, 80, 255), (255, 255, 255), (0, 0, 0)
BAR_FRAMES, BAR_HEIGHT = 120, 6
FONT, LABEL_SCALE, HEADER_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.4, 0.45
LABEL_PADDING = 3
# Neighbouring ids get hues far apart: steps of the golden ratio around the circle of colours.
PALETTE = [tuple(round(255 * part) for part in
                 colorsys.hsv_to_rgb(i * 0.618034 % 1, (0.75, 0.55)[i % 2], 1.0))[::-1]
           for i in range(32)]


class Overlay:
    """Boxes of keyframes are thick, others thin; colours follow the tracks.

    It draws into the frame it is given: the longest part of drawing on a copy was the copy.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        self._classes = classes
        self._history: deque[bool] = deque(maxlen=BAR_FRAMES)
        self._ages, self._is_gap = np.zeros(0, np.intp), np.zeros(0, bool)

    def draw(self, image_bgr: np.ndarray, result: FrameResult, fps: float,
             status: str = '') -> None:
        """Draw into ``image_bgr`` (H, W, 3) uint8. ``status`` of a live source gets a line of its
        own unless it is ``live``."""
        self._history.append(result.is_keyframe)
        draw_boxes(image_bgr, result.boxes, self._classes, width=3 if result.is_keyframe else 1)
        latency = '-' if result.latency_ms is None else f'{result.latency_ms:.0f} ms'
        _header(image_bgr, f'{fps:.1f} fps  {latency}  frame {result.frame_id}  '
                           f'{"KEYFRAME" if result.is_keyframe else result.source}',
                KEY_COLOUR if result.is_keyframe else WHITE)
        self.mark_status(image_bgr, status)
        self._bar(image_bgr)

    def mark_status(self, image_bgr: np.ndarray, status: str) -> None:
        """Write into the second line of a picture (H, W, 3) uint8 BGR that the stream is, or was,
        lost."""
        if status not in ('', LIVE):
            _header(image_bgr, status, LOSS_COLOUR, line=1)

    def _bar(self, image_bgr: np.ndarray) -> None:
        """The last frames along the lower edge, the newest at the right, gaps between them."""
        height, width = image_bgr.shape[:2]
        if len(self._ages) != width:
            edges = width - np.arange(BAR_FRAMES + 1) * width // BAR_FRAMES
            self._ages = np.searchsorted(-edges, -np.arange(width), side='left') - 1
            ends = edges[:-1][np.diff(-edges) > 1] - 1
            self._is_gap = np.isin(np.arange(width), ends)
        is_known = self._ages < len(self._history)
        is_key = np.array(self._history)[::-1][np.minimum(self._ages, len(self._history) - 1)]
        row = np.where(is_key[:, None], np.uint8(KEY_COLOUR), np.uint8(OTHER_COLOUR))
        shown = is_known & ~self._is_gap
        image_bgr[height - BAR_HEIGHT:, shown] = row[shown]


def draw_boxes(image_bgr: np.ndarray, boxes: FrameBoxes, classes: tuple[str, ...], *,
               width: int = 2) -> None:
    """Draw boxes with class, track id and score into ``image_bgr`` (H, W, 3) uint8; boxes of one
    track have one colour, boxes without tracks that of their class."""
    corners = np.rint(boxes.boxes_xyxy).astype(int).tolist()
    tracks, labels = boxes.track_ids.tolist(), boxes.labels.tolist()
    colours = [PALETTE[(track if track > 0 else label) % len(PALETTE)]
               for track, label in zip(tracks, labels, strict=True)]
    for (x1, y1, x2, y2), colour in zip(corners, colours, strict=True):
        cv2.rectangle(image_bgr, (x1, y1), (x2, y2), colour, width)
    for corner, colour, label, track, score in zip(  # above all boxes
            corners, colours, labels, tracks, boxes.scores.tolist(), strict=True):
        name = f'{classes[label]} #{track}' if track > 0 else classes[label]
        _label(image_bgr, f'{name} {score:.2f}', corner, colour)


def _label(image_bgr: np.ndarray, text: str, corner: list[int],
           colour: tuple[int, int, int]) -> None:
    """A filled plate over the upper left corner of a box; inside the picture at its edges."""
    (width, height), _ = cv2.getTextSize(text, FONT, LABEL_SCALE, 1)
    plate_width, plate_height = width + 2 * LABEL_PADDING, height + 2 * LABEL_PADDING
    left = max(0, min(corner[0], image_bgr.shape[1] - plate_width))
    bottom = corner[1] if corner[1] >= plate_height else corner[1] + plate_height
    cv2.rectangle(image_bgr, (left, bottom - plate_height), (left + plate_width, bottom), colour,
                  -1)
    is_bright = colour[0] * 0.11 + colour[1] * 0.59 + colour[2] * 0.3 > 140
    cv2.putText(image_bgr, text, (left + LABEL_PADDING, bottom - LABEL_PADDING), FONT, LABEL_SCALE,
                BLACK if is_bright else WHITE, 1, cv2.LINE_AA)


def _header(image_bgr: np.ndarray, text: str, colour: tuple[int, int, int],
            line: int = 0) -> None:
    (width, height), _ = cv2.getTextSize(text, FONT, HEADER_SCALE, 1)
    top = line * (height + 10)
    cv2.rectangle(image_bgr, (0, top), (width + 10, top + height + 10), BLACK, -1)
    cv2.putText(image_bgr, text, (5, top + height + 4), FONT, HEADER_SCALE, colour, 1,
                cv2.LINE_AA)
