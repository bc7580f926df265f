"""A source through an engine into files, with an overlay and perhaps a window."""

from __future__ import annotations

import contextlib
import os
import subprocess
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
        self._shown: np.ndarray | None = None
        if source.is_live:
            source.on_wait = self._show_waiting
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
            self._stop.clear()  # what was analysed before a stop is drawn; the next stop ends that
            for count, (result, frame) in enumerate(zip(results, self._source, strict=False), 1):
                self._pending[result.frame_id] = frame
                self._emit([result])
                self._on_frame(count)
                if self._stop.is_set():
                    break
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

        def close(sink: VideoSink | JsonLinesSink | CsvSink) -> None:
            if (path := sink.close()) is not None:
                paths.append(path)

        with contextlib.ExitStack() as stack:  # one that fails to close does not stop the others
            for kind, suffix in ((CsvSink, 'csv'), (JsonLinesSink, 'jsonl')):
                self._tables.insert(0, kind(_named(stem, suffix), self._classes))
                stack.callback(close, self._tables[0])
            if self._options.with_video:
                self._video = VideoSink(_named(stem, 'mp4'), fps=self._source.fps)
                stack.callback(close, self._video)
                if self._video.encoder == 'mpeg4':
                    self._warn('no H.264 encoder here: the mp4 is MPEG-4, browsers do not play it')
            yield paths
        if self._show:
            cv2.destroyAllWindows()

    def _emit(self, results: list[FrameResult]) -> None:
        for result in results:
            frame = self._pending.pop(result.frame_id)
            is_shown = result.boxes.scores >= self._options.score_threshold
            result = replace(result, boxes=result.boxes.select(is_shown))
            for table in self._tables:
                table.write(result, frame.timestamp_s, frame.status)
            if self._video is None and not self._show:
                continue
            canvas = self._overlay.draw(frame.image_bgr, result, self.session.stats().fps,
                                        frame.status)
            if self._video is not None:
                self._video.write(canvas, frame.timestamp_s)
            if self._show:
                self._shown = canvas
                self._show_window(canvas)

    def _show_waiting(self, status: str) -> None:
        """The last picture of a lost stream, marked: a window that stands still says why."""
        if self._show and self._shown is not None:
            canvas = self._shown.copy()
            self._overlay.mark_status(canvas, status)
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
        """Tried in a child process: OpenCV ends the process that has no display."""
        code = "import cv2; cv2.namedWindow('x'); cv2.waitKey(1)"
        child = subprocess.run([sys.executable, '-c', code], capture_output=True)
        if child.returncode:
            self._warn('--show: there is no display that OpenCV can use (DISPLAY is '
                       f'{os.environ.get("DISPLAY") or "not set"}); look at the files instead')
        return not child.returncode


def _named(stem: Path, suffix: str) -> Path:
    return stem.with_name(f'{stem.name}.{suffix}')
