"""One finished frame as a user gets it."""

from __future__ import annotations

import numpy as np

from vision.common.core.extras import import_extra
from vision.lattice.core.structures import FrameBoxes, FrameResult
from vision.stream.io.overlay import draw_tracks
from vision.stream.io.sinks import COLUMNS


class VideoFrame:
    """What is known of one frame; row i of every array is box i.

    Attributes:
        frame_id: index of the frame in its video, from 0.
        timestamp_s: presentation time, s.
        boxes_xyxy: (N, 4) float32, x1 y1 x2 y2 in pixels of the frame.
        scores: (N,) float32 in [0, 1].
        labels: (N,) int64, index into ``classes``.
        track_ids: (N,) int64, the same for one object in all frames, from 1; -1 without tracks.
        names: class name of each box.
        classes: all class names, in label order.
        source: ``detected``, ``propagated`` or ``interpolated``.
        is_keyframe: the detector ran on this frame.
        latency_ms: from the arrival of the frame to this result; None for a single picture.
        status: ``provisional`` when a final result of this frame will follow, else ``final``.
    """

    def __init__(self, result: FrameResult, image_bgr: np.ndarray, classes: tuple[str, ...],
                 timestamp_s: float = 0.0) -> None:
        self._boxes, self._picture, self._copy = result.boxes, image_bgr, None
        self.frame_id, self.timestamp_s, self.classes = result.frame_id, timestamp_s, classes
        self.source, self.is_keyframe = result.source, result.is_keyframe
        self.latency_ms, self.status = result.latency_ms, result.status

    @property
    def image_bgr(self) -> np.ndarray:
        """The picture, (H, W, 3) uint8 BGR: the caller's own copy, made when it is asked for."""
        if self._copy is None:
            self._copy = self._picture.copy()
        return self._copy

    @property
    def boxes_xyxy(self) -> np.ndarray:
        """(N, 4) float32, x1 y1 x2 y2 in pixels of the frame."""
        return self._boxes.boxes_xyxy

    @property
    def scores(self) -> np.ndarray:
        """(N,) float32 in [0, 1]."""
        return self._boxes.scores

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64, index into ``classes``."""
        return self._boxes.labels

    @property
    def track_ids(self) -> np.ndarray:
        """(N,) int64, the same for one object in all frames, from 1; -1 without tracks."""
        return self._boxes.track_ids

    @property
    def names(self) -> list[str]:
        """Class name of each box."""
        return [self.classes[label] for label in self.labels]

    def __len__(self) -> int:
        return len(self._boxes)

    def __bool__(self) -> bool:  # a frame without boxes is a frame
        return True

    def __repr__(self) -> str:
        found = {name: self.names.count(name) for name in self.names}
        text = ', '.join(f'{count} {name}' for name, count in found.items()) or 'nothing'
        return f'<VideoFrame {self.frame_id} at {self.timestamp_s:.2f} s: {text}>'

    def rows(self) -> list[tuple]:
        """A tuple for each box, in the order of ``vision.stream.io.sinks.COLUMNS``."""
        return [(self.frame_id, self.timestamp_s, int(track), self.classes[label], float(score),
                 *map(float, box), self.source, self.is_keyframe, self.latency_ms)
                for box, score, label, track in zip(self.boxes_xyxy, self.scores, self.labels,
                                                    self.track_ids, strict=True)]

    def to_pandas(self):
        """A ``pandas.DataFrame`` with a row for each box, columns as in the CSV file.

        Raises:
            VisionError: VIS-ENV-1713 without pandas.
        """
        pandas = import_extra('pandas', extra='results', needed_for='to_pandas()')
        return pandas.DataFrame(self.rows(), columns=COLUMNS)

    def to_supervision(self):
        """``supervision.Detections`` with ``tracker_id`` (where there are tracks) and
        ``data['class_name']``.

        Raises:
            VisionError: VIS-ENV-1713 without supervision.
        """
        supervision = import_extra('supervision', extra='results', needed_for='to_supervision()')
        has_tracks = (self.track_ids > 0).all()
        return supervision.Detections(
            xyxy=self.boxes_xyxy.copy(), confidence=self.scores.copy(),
            class_id=self.labels.astype(int), data=dict(class_name=np.array(self.names, str)),
            tracker_id=self.track_ids.astype(int) if has_tracks else None)

    def draw(self) -> np.ndarray:
        """The picture with boxes, class names, track ids and scores: a new (H, W, 3) uint8 BGR."""
        canvas = self._picture.copy()
        draw_tracks(canvas, self._boxes, self.classes, width=3 if self.is_keyframe else 1)
        return canvas


def frame_of(boxes: FrameBoxes, image_bgr: np.ndarray, classes: tuple[str, ...]) -> VideoFrame:
    """A single picture (H, W, 3) uint8 BGR, as the detector alone sees it."""
    return VideoFrame(FrameResult(0, boxes, 'detected', True), image_bgr, classes)
