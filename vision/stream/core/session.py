"""Frames in, finished frames out, each with the time it took from arrival to result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from vision.common.core.errors import VisionError
from vision.lattice.core.engine import LatticeEngine
from vision.lattice.core.structures import FrameResult
from vision.stream.core.clock import LatencyHistogram


@dataclass(frozen=True)
class StreamStats:
    """Counts of one session; latencies from the arrival of a frame to its result, in ms."""

    num_frames: int
    num_finished: int
    num_keyframes: int
    p50_ms: float
    p95_ms: float
    max_ms: float
    duration_s: float

    @property
    def fps(self) -> float:
        """Finished frames per second since the first frame arrived."""
        return self.num_finished / self.duration_s if self.duration_s else 0.0

    @property
    def keyframe_rate(self) -> float:
        return self.num_keyframes / max(self.num_finished, 1)


class StreamSession:
    """One stream through one engine; memory does not grow with the stream's length.

    A frame is returned at latest ``policy.gap_frames`` pushes after its own. Frames are numbered
    from 0 in the order of the pushes, so that dropped frames leave no hole in the numbers; the
    timestamps keep the hole.

    Args:
        engine: a new engine, used by this session alone.
        clock: seconds, monotonic; replaced in tests.
    """

    def __init__(self, engine: LatticeEngine,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._engine, self._clock = engine, clock
        self._arrivals: dict[int, float] = {}
        self._latency = LatencyHistogram()
        self._start: float | None = None
        self._end = 0.0
        self._last_timestamp: float | None = None
        self._next_id = self._num_keyframes = 0

    @property
    def num_waiting(self) -> int:
        """Frames pushed whose results are not out yet."""
        return len(self._arrivals)

    def push(self, image_bgr: np.ndarray, timestamp_s: float,
             arrival_s: float | None = None) -> list[FrameResult]:
        """Results of the frames that this one finishes, in order.

        Args:
            image_bgr: (H, W, 3) uint8; not to be written into until its result is out.
            timestamp_s: presentation time; greater than that of the frame before.
            arrival_s: when it arrived, on this session's clock (default: now).
        """
        if self._last_timestamp is not None and not timestamp_s > self._last_timestamp:
            raise VisionError('VIS-INPUT-501', f'timestamp {timestamp_s} s after '
                              f'{self._last_timestamp} s', where=f'frame {self._next_id}',
                              why='timestamps of a stream grow',
                              do='use a monotonic clock, or a new session for another stream')
        arrival = self._clock() if arrival_s is None else arrival_s
        self._start = arrival if self._start is None else self._start
        self._arrivals[self._next_id] = arrival
        results = self._engine.push(image_bgr, self._next_id)
        self._last_timestamp = timestamp_s
        self._next_id += 1
        return self._timed(results)

    def flush(self) -> list[FrameResult]:
        """End of the stream: the results of the frames that still wait."""
        return self._timed(self._engine.flush())

    def stats(self) -> StreamStats:
        duration = 0.0 if self._start is None else max(self._end - self._start, 0.0)
        latency = self._latency
        return StreamStats(self._next_id, latency.count, self._num_keyframes,
                           latency.percentile(50), latency.percentile(95), latency.max_ms,
                           duration)

    def _timed(self, results: list[FrameResult]) -> list[FrameResult]:
        self._end = now = self._clock()
        timed = []
        for result in results:
            latency_ms = max(now - self._arrivals.pop(result.frame_id), 0.0) * 1e3
            self._latency.add(latency_ms)
            self._num_keyframes += result.is_keyframe
            timed.append(replace(result, latency_ms=latency_ms))
        return timed
