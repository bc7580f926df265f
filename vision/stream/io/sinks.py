"""Where results go: H.264 video, JSON lines, CSV. Temporary names until they are closed."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.files import TEMPORARY
from vision.lattice.core.structures import FrameResult

TIME_BASE = Fraction(1, 90_000)  # the clock of MPEG: exact for every usual frame rate
# Best first. A browser plays the H.264 ones only.
ENCODERS = ('libx264', 'libopenh264', 'mpeg4')
COLUMNS = ('frame_id', 'timestamp', 'track_id', 'label', 'score', 'x1', 'y1', 'x2', 'y2',
           'source', 'is_keyframe', 'latency_ms')


class _Renamed:
    """A file that has a temporary name until ``close``.

    Whatever the disk refuses is a VisionError; what had reached the file by then is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._temporary = self.path.with_name(f'{TEMPORARY}{os.getpid()}-{self.path.name}')
        with self._disk():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.touch()

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # PyAV's errors of the operating system are OSErrors too
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise VisionError(
                'VIS-ENV-508', f'{self.path} cannot be written', where=str(self.path.parent),
                why='the disk is full' if is_full else str(error),
                do='make room there, or name another folder with --out-dir') from error

    def _rename(self) -> None:
        with self._disk():
            os.replace(self._temporary, self.path)


class _Lines(_Renamed):
    """A text file that grows by lines."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self._disk():
            self._file = self._temporary.open('w', newline='', encoding='utf-8')

    def close(self) -> Path:
        try:
            with self._disk():
                self._file.close()
        finally:  # on a full disk, the lines that fitted keep their name
            self._rename()
        return self.path


def pick_encoder(names: tuple[str, ...] = ENCODERS) -> str:
    """The first encoder that this PyAV has.

    Raises:
        VisionError: VIS-ENV-509, it has none of them.
    """
    for name in names:
        if name in av.codecs_available:
            return name
    raise VisionError('VIS-ENV-509', 'PyAV has no video encoder', why=f'none of {names}',
                      do='pip install --force-reinstall av, or run with --no-video')


class VideoSink(_Renamed):
    """mp4, yuv420p, index in front (faststart); odd sizes get one more row or column.

    Args:
        fps: frames per second that the header tells; each frame has its own time.
        threads: of the encoder; 0 lets it decide.
    """

    def __init__(self, path: Path, *, fps: float, threads: int = 0) -> None:
        super().__init__(path)
        self.encoder, self._fps, self._threads = pick_encoder(), fps, threads
        with self._disk():  # opened by name: faststart reads the file again to move its index
            self._container = av.open(str(self._temporary), 'w', format='mp4',
                                      options={'movflags': '+faststart'})
        self._stream = None
        self._first = self._last_pts = None

    def write(self, image_bgr: np.ndarray, timestamp_s: float) -> None:
        """Append a frame (H, W, 3) uint8 BGR, of the size of the first one.

        Args:
            timestamp_s: when it is shown; the first one's is the video's beginning. Two frames of
                the same time are a tick apart.
        """
        height, width = image_bgr.shape[:2]
        if self._stream is None:
            self._begin(height, width)
        if height % 2 or width % 2:
            image_bgr = np.pad(image_bgr, ((0, height % 2), (0, width % 2), (0, 0)), 'edge')
        # OpenCV turns the colours faster than PyAV's reformat, and by the same rule (BT.601).
        planes = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2YUV_I420)
        # PyAV takes heights that are no multiple of 4 for less than they are, unless it copies.
        wrap = av.VideoFrame.from_ndarray if len(planes) % 6 else av.VideoFrame.from_numpy_buffer
        frame = wrap(planes, format='yuv420p')
        self._first = timestamp_s if self._first is None else self._first
        pts = round((timestamp_s - self._first) / TIME_BASE)
        if self._last_pts is not None:
            pts = max(pts, self._last_pts + 1)
        frame.pts, frame.time_base, self._last_pts = pts, TIME_BASE, pts
        with self._disk():
            self._container.mux(self._stream.encode(frame))

    def _begin(self, height: int, width: int) -> None:
        rate = Fraction(self._fps).limit_denominator(1001)
        self._stream = self._container.add_stream(self.encoder, rate=rate)
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = 'yuv420p'
        self._stream.codec_context.time_base = TIME_BASE
        self._stream.codec_context.thread_count = self._threads
        if self.encoder == 'libx264':
            self._stream.options = {'preset': 'veryfast', 'crf': '23'}

    def close(self) -> Path | None:
        """Finish the file under its name; None (and no file) when nothing was written."""
        if self._stream is None:
            self._temporary.unlink(missing_ok=True)
            return None
        try:
            with self._disk():
                self._container.mux(self._stream.encode(None))
                self._container.close()
        except VisionError:  # an mp4 without its index is of no use
            self._temporary.unlink(missing_ok=True)
            raise
        self._rename()
        return self.path


class JsonLinesSink(_Lines):
    """One JSON object a result; boxes x1 y1 x2 y2 in pixels of the original frame. Frames of a
    live source have ``stream_status``; ``with_status`` adds provisional or final."""

    def __init__(self, path: Path, classes: tuple[str, ...], *,
                 with_status: bool = False) -> None:
        super().__init__(path)
        self._classes, self._with_status = classes, with_status

    def write(self, result: FrameResult, timestamp_s: float, status: str = '') -> None:
        """Append a line for one frame; ``status`` is that of a live source."""
        boxes = result.boxes
        row = dict(frame_id=result.frame_id, timestamp=round(timestamp_s, 6),
                   source=result.source, is_keyframe=result.is_keyframe,
                   latency_ms=_rounded(result.latency_ms),
                   boxes=boxes.boxes_xyxy.astype(float).round(2).tolist(),
                   track_ids=boxes.track_ids.tolist(),
                   scores=boxes.scores.astype(float).round(4).tolist(),
                   labels=[self._classes[label] for label in boxes.labels],
                   **({'status': result.status} if self._with_status else {}),
                   **({'stream_status': status} if status else {}))
        with self._disk():
            self._file.write(json.dumps(row) + '\n')


class JsonObjectsSink(_Lines):
    """One JSON object a line, as it is given."""

    def write(self, row: dict) -> None:
        """Append one line."""
        with self._disk():
            self._file.write(json.dumps(row, ensure_ascii=False) + '\n')


class CsvSink(_Lines):
    """One row a box, under ``COLUMNS`` and, if ``with_status``, ``status`` (provisional or
    final); a frame without boxes has no row, the status of a live source no column."""

    def __init__(self, path: Path, classes: tuple[str, ...], *,
                 with_status: bool = False) -> None:
        super().__init__(path)
        self._classes, self._with_status = classes, with_status
        self._writer = csv.writer(self._file)
        self._writer.writerow([*COLUMNS, *(['status'] if with_status else [])])

    def write(self, result: FrameResult, timestamp_s: float, status: str = '') -> None:
        """Append a line for each box of a frame; ``status`` is left out."""
        boxes = result.boxes
        for box, score, label, track in zip(boxes.boxes_xyxy, boxes.scores, boxes.labels,
                                            boxes.track_ids, strict=True):
            row = [result.frame_id, round(timestamp_s, 6), track,
                   self._classes[label], f'{score:.4f}', *(f'{value:.2f}' for value in box),
                   result.source, int(result.is_keyframe), _rounded(result.latency_ms),
                   *([result.status] if self._with_status else [])]
            with self._disk():
                self._writer.writerow(row)


def _rounded(latency_ms: float | None) -> float | None:
    return None if latency_ms is None else round(latency_ms, 2)
