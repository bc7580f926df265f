"""A camera of a visitor: one picture in, the same picture with boxes out, at once."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np

from vision.stream.io.overlay import Overlay
from vision.web.overlays import Overlays
from vision.web.video import ClipOptions, as_result

_END = None
PAUSE_S = 3.0


class LiveView:
    """One look through a camera; without look-ahead, so each picture is answered at once.

    Args:
        borrowed: context of a ``vision.stream.api.VideoModel``, left by ``close``.
        options: the mode is ``causal``, whatever they say: a visitor waits for each picture.
    """

    def __init__(self, borrowed, options: ClipOptions, *, find_faces=None) -> None:
        self._frames: queue.SimpleQueue = queue.SimpleQueue()
        self._lock = threading.Lock()  # a page may be closed while a picture is worked on
        self._start_s = self._last_s = time.monotonic()
        self.num_frames = self.num_keyframes = 0
        with ExitStack() as stack:
            model = stack.enter_context(borrowed)
            self._overlays = Overlays(options.overlays, model.classes, find_faces=find_faces)
            self._overlay, self._with_boxes = Overlay(model.classes), options.overlays.with_boxes
            self._results = iter(model.video(
                self._feed(), mode='causal', target_fps=options.target_fps,
                score_thr=options.score_thr, progress=False))
            self._stack = stack.pop_all()

    @property
    def is_stale(self) -> bool:
        """Whether no picture came for so long that the next one begins another look."""
        return time.monotonic() - self._last_s > PAUSE_S

    def show(self, image_bgr: np.ndarray) -> np.ndarray:
        """The picture (H, W, 3) uint8 with boxes, ids and overlays."""
        with self._lock:
            self._frames.put(image_bgr)
            frame = next(self._results)
            result, canvas = as_result(frame), frame.image_bgr
            self.num_frames += 1
            self.num_keyframes += frame.is_keyframe
            self._overlays.draw(canvas, result.boxes)
            if self._with_boxes:
                self._overlay.draw(canvas, result, self.fps)
            self._last_s = time.monotonic()
            return canvas

    @property
    def fps(self) -> float:
        """Pictures answered per second since the look began."""
        return self.num_frames / max(time.monotonic() - self._start_s, 1e-6)

    def counts(self) -> dict[str, int]:
        """As of ``Overlays.counts``."""
        return self._overlays.counts()

    def close(self) -> None:
        """End the run and give the model back."""
        self._frames.put(_END)
        with self._lock, self._stack:
            if self.num_frames:  # otherwise nothing has begun that waits for the end
                for _ in self._results:
                    pass

    def _feed(self) -> Iterator[np.ndarray]:
        while (image := self._frames.get()) is not _END:
            yield image
