"""A source through an engine into files, with an overlay and perhaps a window.

Reading, computing, drawing, and encoding have a thread each, the detector perhaps one more (the
engine's executor): OpenCV, PyAV and onnxruntime let other threads run meanwhile. The queues
between them are short, so memory is constant and the slowest one sets the pace: the encoder, which
therefore does nothing else.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
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
from vision.stream.io.stages import ReadAhead, Stage

Rescore = Callable[[list[FrameResult]], list[FrameResult]]
WINDOW = 'vision: q closes'
# Frames that may wait before and after the engine, and drawn ones before the encoder. A keyframe
# gap's worth of results comes at once, and shall not hold the engine up.
READ_AHEAD, WRITE_BEHIND, ENCODE_BEHIND = 4, 16, 4
# A thread that wants to go on in Python is let in after so long, s. Python's own 5 ms are as long
# as a whole frame, for which the engine stood still while numbers were formatted (our choice: in
# five of six pairs of runs on two busy cores the shorter interval was faster).
SWITCH_INTERVAL_S = 5e-4


@dataclass(frozen=True)
class PlayOptions:
    """What is written and shown. Boxes below ``score_threshold`` are left out everywhere.

    Args:
        stem: of the output files, without their suffixes; None: no files.
        deadline_ms: as of ``StreamSession``.
        encoder_threads: as of ``VideoSink``.
    """

    stem: Path | None
    score_threshold: float = 0.3
    with_video: bool = True
    show: bool = False
    max_frames: int | None = None
    deadline_ms: float | None = None
    encoder_threads: int = 0


@dataclass(frozen=True)
class Played:
    """What came of it. Args: duration_s, from the first frame until all files were finished."""

    stats: StreamStats
    paths: list[Path]
    num_dropped: int
    num_reconnects: int
    duration_s: float

    @property
    def fps(self) -> float:
        """End to end: frames per second, drawing and encoding included."""
        return self.stats.num_finished / self.duration_s if self.duration_s else 0.0


@dataclass(frozen=True, eq=False)
class _Job:
    """What the writing thread does for one result.

    Args:
        is_first: of its frame; a later one goes into the tables alone.
        is_free: nobody else looks at the frame any more, so it may be drawn into.
    """

    result: FrameResult
    frame: SourceFrame
    fps: float
    is_first: bool
    is_free: bool


class Player:
    """Plays one source.

    An error in any thread ends all of them, finishes the files and is raised by ``play``, or
    where ``results`` are iterated over.

    Args:
        engine: a new one. In mode ``causal+revise`` the video shows the provisional results, and
            the tables have both, told apart by ``status``.
        on_frame: called with the count of frames read (a progress bar).
        warn: called with a sentence for the user.
    """

    def __init__(self, source: Source, engine: LatticeEngine, classes: tuple[str, ...],
                 options: PlayOptions, *, on_frame: Callable[[int], None] = lambda _: None,
                 warn: Callable[[str], None] = print) -> None:
        self._source, self._options, self._classes = source, options, classes
        self.session = StreamSession(engine, deadline_ms=options.deadline_ms)
        self._mode = engine.mode
        self._on_frame, self._warn = on_frame, warn
        self._stop = threading.Event()
        self._overlay = Overlay(classes)
        self._show = options.show and self._has_display()
        self._newest: np.ndarray | None = None  # drawn and not shown yet
        self._shown: np.ndarray | None = None
        if source.is_live:
            source.on_wait = self._show_waiting
        self._pending: dict[int, SourceFrame] = {}
        self._start_s = self._ready_s = 0.0
        self._num_answered = 0  # frames with a result; the first results come in order
        self._video: VideoSink | None = None
        self._tables: list[JsonLinesSink | CsvSink] = []
        self._paths: list[Path] = []

    def stop(self) -> None:
        """End after this frame and finish the files; safe from a signal handler."""
        self._stop.set()
        if self._source.is_live:
            self._source.stop()

    def play(self) -> Played:
        """Frames as they come, each result as soon as it is ready."""
        for _ in self._as_they_come(hands_out=False):
            pass
        return self.played()

    def play_offline(self, rescore: Rescore | None = None) -> Played:
        """The whole file first, boxes only; then it is read again and drawn."""
        for _ in self._offline(rescore, hands_out=False):
            pass
        return self.played()

    def results(self, rescore: Rescore | None = None, *, is_offline: bool = False
                ) -> Iterator[tuple[FrameResult, SourceFrame]]:
        """What ``play`` or ``play_offline`` makes, with the frames, for whoever wants to look.

        Boxes below the threshold are left out. Nothing is drawn into these frames. Whoever
        leaves early closes this generator: the files are finished then.
        """
        return self._offline(rescore, hands_out=True) if is_offline \
            else self._as_they_come(hands_out=True)

    def _as_they_come(self, *, hands_out: bool) -> Iterator[tuple[FrameResult, SourceFrame]]:
        with (self._quick_switches(), self._outputs(), self._writer(hands_out) as write,
              self._reader() as frames):
            for frame_id, frame in enumerate(self._until_stopped(frames)):
                self._pending[frame_id] = frame
                yield from self._emitted(write, self._push(frame))
            yield from self._emitted(write, self.session.flush())

    def _offline(self, rescore: Rescore | None, *, hands_out: bool
                 ) -> Iterator[tuple[FrameResult, SourceFrame]]:
        results: list[FrameResult] = []
        with self._quick_switches(), self._outputs():
            with self._reader() as frames:
                for frame in self._until_stopped(frames):
                    results += self._push(frame)
            results += self.session.flush()
            problem = self._source.problem
            if rescore is not None:
                results = rescore(results)
            self._stop.clear()  # what was analysed before a stop is drawn; the next stop ends that
            with self._writer(hands_out) as write, self._reader() as frames:
                for result, frame in zip(results, self._until_stopped(frames), strict=False):
                    self._pending[result.frame_id] = frame
                    yield from self._emitted(write, [result])
            self._source.problem = self._source.problem or problem

    def _push(self, frame: SourceFrame) -> list[FrameResult]:
        # What was read ahead of a file has waited for nobody: its frames arrive when they can be
        # taken. What a camera saw is late from the moment it was seen.
        arrival_s = frame.arrival_s if self._source.is_live \
            else max(frame.arrival_s, self._ready_s)
        results = self.session.push(frame.image_bgr, frame.timestamp_s, arrival_s)
        self._ready_s = time.monotonic()
        return results

    def played(self) -> Played:
        """What came of it so far; all of it once ``play`` or ``results`` has ended."""
        return Played(self.session.stats(), list(self._paths), self._source.num_dropped,
                      self._source.num_reconnects,
                      time.monotonic() - self._start_s if self._start_s else 0.0)

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Iterable[SourceFrame]]:
        limit = self._options.max_frames
        if self._source.is_live:  # has a thread of its own, and a queue that drops the oldest
            with contextlib.closing(iter(self._source)) as frames:
                yield islice(frames, limit)
        else:
            frames = islice(self._source, limit)
            with ReadAhead(frames, READ_AHEAD, f'reader of {self._source.path}') as ahead:
                yield ahead

    @contextlib.contextmanager
    def _writer(self, hands_out: bool) -> Iterator[Callable[[_Job], None]]:
        """Takes ``_Job``: tables and drawing; behind it, in a thread of its own, the encoder.
        Where frames are handed out none is free to be drawn into."""
        if self._options.stem is None and not self._show:
            yield lambda job: None
            return
        name = self._options.stem.name if self._options.stem else 'the window'
        with (Stage(self._encode, ENCODE_BEHIND, f'encoder of {name}') as encoder,
              Stage(partial(self._write, encoder), WRITE_BEHIND, f'writer of {name}') as writer):
            yield (lambda job: writer.put(replace(job, is_free=False))) if hands_out \
                else writer.put

    def _until_stopped(self, frames: Iterable[SourceFrame]) -> Iterator[SourceFrame]:
        for count, frame in enumerate(frames, 1):
            self._start_s = self._start_s or frame.arrival_s
            self._on_frame(count)
            yield frame
            self._show_newest()
            if self._stop.is_set():
                return

    @staticmethod
    @contextlib.contextmanager
    def _quick_switches() -> Iterator[None]:
        before = sys.getswitchinterval()
        sys.setswitchinterval(min(before, SWITCH_INTERVAL_S))
        try:
            yield
        finally:
            sys.setswitchinterval(before)

    @contextlib.contextmanager
    def _outputs(self) -> Iterator[None]:
        """The sinks; whatever happens inside, what was written is finished under its name."""
        stem = self._options.stem

        def close(sink: VideoSink | JsonLinesSink | CsvSink) -> None:
            if (path := sink.close()) is not None:
                self._paths.append(path)

        with contextlib.ExitStack() as stack:  # one that fails to close does not stop the others
            if stem is not None:
                self._open_sinks(stem, lambda sink: stack.callback(close, sink))
            yield
        if self._show:
            cv2.destroyAllWindows()

    def _open_sinks(self, stem: Path, opened: Callable) -> None:
        for kind, suffix in ((CsvSink, 'csv'), (JsonLinesSink, 'jsonl')):
            self._tables.insert(0, kind(_named(stem, suffix), self._classes,
                                        with_status=self._mode == 'causal+revise'))
            opened(self._tables[0])
        if self._options.with_video:
            self._video = VideoSink(_named(stem, 'mp4'), fps=self._source.fps,
                                    threads=self._options.encoder_threads)
            opened(self._video)
            if self._video.encoder == 'mpeg4':
                self._warn('no H.264 encoder here: the mp4 is MPEG-4, browsers do not play it')

    def _emitted(self, write: Callable[[_Job], None], results: list[FrameResult]
                 ) -> Iterator[tuple[FrameResult, SourceFrame]]:
        fps = self.session.stats().fps if results else 0.0
        for result in results:
            frame_id = result.frame_id
            frame = self._pending[frame_id]
            if result.status == 'final':
                del self._pending[frame_id]
            is_first = frame_id == self._num_answered
            self._num_answered += is_first
            is_shown = result.boxes.scores >= self._options.score_threshold
            result = replace(result, boxes=result.boxes.select(is_shown))
            # The engine goes on from its last keyframe; without look-ahead, from every frame.
            is_free = self._mode == 'buffered' and not result.is_keyframe
            write(_Job(result, frame, fps, is_first, is_free))
            yield result, frame

    def _write(self, encoder: Stage, job: _Job) -> None:
        """In the writing thread: tables and drawing."""
        result, frame = job.result, job.frame
        for table in self._tables:
            table.write(result, frame.timestamp_s, frame.status)
        if not job.is_first or self._video is None and not self._show:
            return
        canvas = frame.image_bgr if job.is_free else frame.image_bgr.copy()
        self._overlay.draw(canvas, result, job.fps, frame.status)
        if self._video is not None:
            encoder.put((canvas, frame.timestamp_s))
        self._newest = canvas

    def _encode(self, drawn: tuple[np.ndarray, float]) -> None:
        self._video.write(*drawn)

    def _show_newest(self) -> None:
        """Windows belong to the main thread; pictures that it has no time for are not shown."""
        canvas = self._newest
        if self._show and canvas is not None and canvas is not self._shown:
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
