"""Boxes, track colours, figures and a thin bar of keyframes drawn on a frame."""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np
import supervision as sv

from vision.lattice.core.structures import FrameResult
from vision.stream.io.sources import LIVE

KEY_COLOUR, OTHER_COLOUR = (60, 200, 255), (110, 110, 110)  # BGR
LOSS_COLOUR = (80, 80, 255)
BAR_FRAMES, BAR_HEIGHT = 120, 6


class Overlay:
    """Draws on a copy. Boxes of keyframes are thick, others thin; colours follow the tracks."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self._classes = classes
        lookup = sv.ColorLookup.TRACK
        self._boxes = {key: sv.BoxAnnotator(color_lookup=lookup, thickness=width)
                       for key, width in ((True, 3), (False, 1))}
        self._labels = sv.LabelAnnotator(color_lookup=lookup, text_scale=0.4, text_padding=3,
                                         smart_position=True)
        self._history: deque[bool] = deque(maxlen=BAR_FRAMES)

    def draw(self, image_bgr: np.ndarray, result: FrameResult, fps: float,
             status: str = '') -> np.ndarray:
        """``status`` of a live source gets a line of its own unless it is ``live``."""
        self._history.append(result.is_keyframe)
        canvas, boxes = image_bgr.copy(), result.boxes
        if len(boxes):
            detections = sv.Detections(xyxy=boxes.boxes_xyxy, confidence=boxes.scores,
                                       class_id=boxes.labels,
                                       tracker_id=np.maximum(boxes.track_ids, 0))
            texts = [f'{self._classes[label]} #{track} {score:.2f}' for label, track, score in
                     zip(boxes.labels, boxes.track_ids, boxes.scores, strict=True)]
            canvas = self._boxes[result.is_keyframe].annotate(canvas, detections)
            canvas = self._labels.annotate(canvas, detections, texts)
        latency = '-' if result.latency_ms is None else f'{result.latency_ms:.0f} ms'
        self._header(canvas, f'{fps:.1f} fps  {latency}  frame {result.frame_id}  '
                             f'{"KEYFRAME" if result.is_keyframe else result.source}',
                     KEY_COLOUR if result.is_keyframe else (255, 255, 255))
        self.mark_status(canvas, status)
        self._bar(canvas)
        return canvas

    def mark_status(self, canvas: np.ndarray, status: str) -> None:
        """Write into the second line of a canvas that the stream is, or was, lost."""
        if status not in ('', LIVE):
            self._header(canvas, status, LOSS_COLOUR, line=1)

    @staticmethod
    def _header(canvas: np.ndarray, text: str, colour: tuple[int, int, int],
                line: int = 0) -> None:
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
        top = line * (height + 10)
        cv2.rectangle(canvas, (0, top), (width + 10, top + height + 10), (0, 0, 0), -1)
        cv2.putText(canvas, text, (5, top + height + 4), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour,
                    1, cv2.LINE_AA)

    def _bar(self, canvas: np.ndarray) -> None:
        """The last frames along the lower edge, the newest at the right."""
        height, width = canvas.shape[:2]
        for age, is_key in enumerate(reversed(self._history)):
            right = width - age * width // BAR_FRAMES
            left = width - (age + 1) * width // BAR_FRAMES
            canvas[height - BAR_HEIGHT:, left:max(right - 1, left + 1)] = \
                KEY_COLOUR if is_key else OTHER_COLOUR
