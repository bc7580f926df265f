"""Boxes, track colours, figures and a thin bar of keyframes, drawn by OpenCV alone."""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np

from vision.common.runtime.drawing import BLACK, FONT, WHITE, captions, draw_boxes_into
from vision.lattice.core.structures import FrameBoxes, FrameResult
from vision.stream.io.sources import LIVE

KEY_COLOUR, OTHER_COLOUR = (60, 200, 255), (110, 110, 110)  # BGR
LOSS_COLOUR = (80, 80, 255)
BAR_FRAMES, BAR_HEIGHT = 120, 6
HEADER_SCALE = 0.45


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
        draw_tracks(image_bgr, result.boxes, self._classes, width=3 if result.is_keyframe else 1)
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


def draw_tracks(image_bgr: np.ndarray, boxes: FrameBoxes, classes: tuple[str, ...], *,
                width: int = 2) -> None:
    """Draw boxes with class, track id and score into ``image_bgr`` (H, W, 3) uint8; boxes of one
    track have one colour, boxes without tracks that of their class."""
    draw_boxes_into(image_bgr, boxes.boxes_xyxy, *captions(
        classes, boxes.labels, boxes.track_ids, boxes.scores), width=width)


def _header(image_bgr: np.ndarray, text: str, colour: tuple[int, int, int],
            line: int = 0) -> None:
    (width, height), _ = cv2.getTextSize(text, FONT, HEADER_SCALE, 1)
    top = line * (height + 10)
    cv2.rectangle(image_bgr, (0, top), (width + 10, top + height + 10), BLACK, -1)
    cv2.putText(image_bgr, text, (5, top + height + 4), FONT, HEADER_SCALE, colour, 1,
                cv2.LINE_AA)
