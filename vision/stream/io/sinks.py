"""Where results go: H.264 video, JSON lines, CSV. Temporary names until they are closed."""

from __future__ import annotations

import csv
import json
import os
from fractions import Fraction
from pathlib import Path

import av
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
    """A file that has a temporary name until ``close``."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._temporary = self.path.with_name(f'{TEMPORARY}{os.getpid()}-{self.path.name}')
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open('wb')
        except OSError as error:
            raise VisionError('VIS-ENV-508', f'{self.path} cannot be written', why=str(error),
                              where=str(self.path.parent),
                              do='name another folder with --out-dir') from error

    def _rename(self) -> None:
        self._file.close()
        os.replace(self._temporary, self.path)


def pick_encoder(names: tuple[str, ...] = ENCODERS) -> str:
    """The first encoder that this PyAV has."""
    for name in names:
        if name in av.codecs_available:
            return name
    raise VisionError('VIS-ENV-509', 'PyAV has no video encoder', why=f'none of {names}',
                      do='pip install --force-reinstall av, or run with --no-video')


class VideoSink(_Renamed):
    """mp4, yuv420p, index in front (faststart); odd sizes get one more row or column."""

    def __init__(self, path: Path, *, fps: float) -> None:
        super().__init__(path)
        self.encoder, self._fps = pick_encoder(), fps
        self._container = av.open(self._file, 'w', format='mp4',
                                  options={'movflags': '+faststart'})
        self._stream = None
        self._first = self._last_pts = None

    def write(self, image_bgr: np.ndarray, timestamp_s: float) -> None:
        height, width = image_bgr.shape[:2]
        if self._stream is None:
            self._begin(height, width)
        if height % 2 or width % 2:
            image_bgr = np.pad(image_bgr, ((0, height % 2), (0, width % 2), (0, 0)), 'edge')
        frame = av.VideoFrame.from_ndarray(image_bgr, format='bgr24')
        self._first = timestamp_s if self._first is None else self._first
        pts = round((timestamp_s - self._first) / TIME_BASE)
        if self._last_pts is not None:
            pts = max(pts, self._last_pts + 1)
        frame.pts, frame.time_base, self._last_pts = pts, TIME_BASE, pts
        self._container.mux(self._stream.encode(frame.reformat(format='yuv420p')))

    def _begin(self, height: int, width: int) -> None:
        rate = Fraction(self._fps).limit_denominator(1001)
        self._stream = self._container.add_stream(self.encoder, rate=rate)
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = 'yuv420p'
        self._stream.codec_context.time_base = TIME_BASE
        if self.encoder == 'libx264':
            self._stream.options = {'preset': 'veryfast', 'crf': '23'}

    def close(self) -> Path | None:
        """Finish the file under its name; None (and no file) when nothing was written."""
        if self._stream is None:
            self._file.close()
            self._temporary.unlink(missing_ok=True)
            return None
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._rename()
        return self.path


class JsonLinesSink(_Renamed):
    """One JSON object a frame; boxes x1 y1 x2 y2 in pixels of the original frame."""

    def __init__(self, path: Path, classes: tuple[str, ...]) -> None:
        super().__init__(path)
        self._classes = classes

    def write(self, result: FrameResult, timestamp_s: float) -> None:
        boxes = result.boxes
        row = dict(frame_id=result.frame_id, timestamp=round(timestamp_s, 6),
                   source=result.source, is_keyframe=result.is_keyframe,
                   latency_ms=_rounded(result.latency_ms),
                   boxes=boxes.boxes_xyxy.astype(float).round(2).tolist(),
                   track_ids=boxes.track_ids.tolist(),
                   scores=boxes.scores.astype(float).round(4).tolist(),
                   labels=[self._classes[label] for label in boxes.labels])
        self._file.write((json.dumps(row) + '\n').encode())

    def close(self) -> Path:
        self._rename()
        return self.path


class CsvSink(_Renamed):
    """One row a box, under ``COLUMNS``; a frame without boxes has no row."""

    def __init__(self, path: Path, classes: tuple[str, ...]) -> None:
        super().__init__(path)
        self._file.close()
        self._file = self._temporary.open('w', newline='')
        self._classes, self._writer = classes, csv.writer(self._file)
        self._writer.writerow(COLUMNS)

    def write(self, result: FrameResult, timestamp_s: float) -> None:
        boxes = result.boxes
        for box, score, label, track in zip(boxes.boxes_xyxy, boxes.scores, boxes.labels,
                                            boxes.track_ids, strict=True):
            self._writer.writerow([result.frame_id, round(timestamp_s, 6), track,
                                   self._classes[label], f'{score:.4f}',
                                   *(f'{value:.2f}' for value in box), result.source,
                                   int(result.is_keyframe), _rounded(result.latency_ms)])

    def close(self) -> Path:
        self._rename()
        return self.path


def _rounded(latency_ms: float | None) -> float | None:
    return None if latency_ms is None else round(latency_ms, 2)
