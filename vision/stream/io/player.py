"""A source through an engine into files, with an overlay and perhaps a window."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from vision.lattice.core.engine import LatticeEngine
from vision.lattice.core.structures import FrameResult
from vision.stream.core.session import StreamSession, StreamStats
from vision.stream.io.opening import Source
from vision.stream.io.overlay import Overlay
from vision.stream.io.sinks import CsvSink, JsonLinesSink, VideoSink
from vision.stream.io.sources import SourceFrame

Rescore = Callable[[list[FrameResult]], list[FrameResult]]
WINDOW = 'vision: q closes'


@dataclass(frozen=True)
class PlayOptions:
    """What is written and shown. Boxes below ``score_threshold`` are left out everywhere."""

    stem: Path
    score_threshold: float = 0.3
    with_video: bool = True
    show: bool = False
    max_frames: int | None = None


@dataclass(frozen=True)
class Played:
    stats: StreamStats
    paths: list[Path]
    num_dropped: int
    num_reconnects: int


class Player:
    """Plays one source.

    Args:
        on_frame: called with the count of frames read (a progress bar).
        warn: called with a sentence for the user.
    """

    def __init__(self, source: Source, engine: LatticeEngine, classes: tuple[str, ...],
                 options: PlayOptions, *, on_frame: Callable[[int], None] = lambda _: None,
                 warn: Callable[[str], None] = print) -> None:
        self._source, self._options, self._classes = source, options, classes
        self.session = StreamSession(engine)
        self._on_frame, self._warn = on_frame, warn
        self._stop = threading.Event()
        self._overlay = Overlay(classes)
        self._show = options.show and self._has_display()
        self._pending: dict[int, SourceFrame] = {}
        self._video: VideoSink | None = None
        self._tables: list[JsonLinesSink | CsvSink] = []

    def stop(self) -> None:
        """End after this frame and finish the files; safe from a signal handler."""
        self._stop.set()
        if self._source.is_live:
            self._source.stop()

    def play(self) -> Played:
        """Frames as they come, each result as soon as it is ready (buffered mode)."""
        with self._outputs() as paths:
            for frame_id, frame in self._frames():
                self._pending[frame_id] = frame
                self._emit(self.session.push(frame.image_bgr, frame.timestamp_s,
                                             frame.arrival_s))
            self._emit(self.session.flush())
        return self._played(paths)

    def play_offline(self, rescore: Rescore | None = None) -> Played:
        """The whole file first, boxes only; then it is read again and drawn."""
        results: list[FrameResult] = []
        with self._outputs() as paths:
            for _, frame in self._frames():
                results += self.session.push(frame.image_bgr, frame.timestamp_s,
                                             frame.arrival_s)
            results += self.session.flush()
            problem = self._source.problem
            if rescore is not None:
                results = rescore(results)
            for result, frame in zip(results, self._source, strict=False):
                self._pending[result.frame_id] = frame
                self._emit([result])
            self._source.problem = self._source.problem or problem
        return self._played(paths)

    def _played(self, paths: list[Path]) -> Played:
        return Played(self.session.stats(), paths, self._source.num_dropped,
                      self._source.num_reconnects)

    def _frames(self) -> Iterator[tuple[int, SourceFrame]]:
        for frame_id, frame in enumerate(self._source):
            self._on_frame(frame_id + 1)
            yield frame_id, frame
            if self._stop.is_set() or frame_id + 1 == self._options.max_frames:
                return

    @contextlib.contextmanager
    def _outputs(self) -> Iterator[list[Path]]:
        """The sinks; whatever happens inside, what was written is finished under its name."""
        stem, paths = self._options.stem, []
        self._tables = [JsonLinesSink(stem.with_name(f'{stem.name}.jsonl'), self._classes),
                        CsvSink(stem.with_name(f'{stem.name}.csv'), self._classes)]
        if self._options.with_video:
            self._video = VideoSink(stem.with_name(f'{stem.name}.mp4'), fps=self._source.fps)
            if self._video.encoder == 'mpeg4':
                self._warn('no H.264 encoder here: the mp4 is MPEG-4, browsers do not play it')
        try:
            yield paths
        finally:
            sinks = [*([self._video] if self._video else []), *self._tables]
            paths += [path for sink in sinks if (path := sink.close()) is not None]
            if self._show:
                cv2.destroyAllWindows()

    def _emit(self, results: list[FrameResult]) -> None:
        for result in results:
            frame = self._pending.pop(result.frame_id)
            is_shown = result.boxes.scores >= self._options.score_threshold
            result = replace(result, boxes=result.boxes.select(is_shown))
            for table in self._tables:
                table.write(result, frame.timestamp_s)
            if self._video is None and not self._show:
                continue
            canvas = self._overlay.draw(frame.image_bgr, result, self.session.stats().fps)
            if self._video is not None:
                self._video.write(canvas, frame.timestamp_s)
            if self._show:
                self._show_window(canvas)

    def _show_window(self, canvas: np.ndarray) -> None:
        try:
            cv2.imshow(WINDOW, canvas)
            if cv2.waitKey(1) & 0xFF == ord('q'):
                self.stop()
        except cv2.error as error:
            self._show = False
            self._warn(f'--show has no window here ({error.err or error}); the files are written')

    def _has_display(self) -> bool:
        """Asked before OpenCV, which would end the process without a display."""
        if sys.platform != 'linux' or os.environ.get('DISPLAY') \
                or os.environ.get('WAYLAND_DISPLAY'):
            return True
        self._warn('--show: there is no display (DISPLAY is not set); look at the files instead')
        return False
