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
    """Counts of one session; latencies from the arrival of a frame to its first result, in ms.

    Args:
        num_finished: frames whose final result is out.
        deadline_misses: frames whose first result came later than the session's deadline.
        duration_s: from the first arrival to the last result.
    """

    num_frames: int
    num_finished: int
    num_keyframes: int
    p50_ms: float
    p95_ms: float
    max_ms: float
    duration_s: float
    deadline_misses: int = 0

    @property
    def fps(self) -> float:
        """Finished frames per second since the first frame arrived."""
        return self.num_finished / self.duration_s if self.duration_s else 0.0

    @property
    def keyframe_rate(self) -> float:
        """Keyframes per finished frame, 0 before the first."""
        return self.num_keyframes / max(self.num_finished, 1)


class StreamSession:
    """One stream through one engine; memory does not grow with the stream's length.

    Frames are numbered from 0 in the order of the pushes, so that dropped frames leave no hole in
    the numbers; the timestamps keep the hole, and the engine begins a new scene after a long one.
    When a frame's result comes is up to the engine's mode: ``buffered``: with the next keyframe,
    that is, at latest ``policy.gap_frames`` pushes after its own (twice as many with an
    executor); ``causal``: with its own push; ``causal+revise``: a provisional one with its own
    push, the final one with the next keyframe.

    A policy with ``observe_frame`` (``keyframes.BudgetKeyframes``) is told the milliseconds that
    each frame took, from when work on it could begin (it was there, and the frame before it
    done) until the push returned.

    Args:
        engine: a new engine, used by this session alone.
        clock: seconds, monotonic; replaced in tests.
        deadline_ms: first results that come later after their frame's arrival are counted.
    """

    def __init__(self, engine: LatticeEngine, clock: Callable[[], float] = time.monotonic, *,
                 deadline_ms: float | None = None) -> None:
        self._engine, self._clock = engine, clock
        self._deadline_ms, self._deadline_misses = deadline_ms, 0
        self._observe_frame = getattr(engine.policy, 'observe_frame', None)
        self._arrivals: dict[int, float] = {}
        self._is_answered: set[int] = set()  # frames that wait for their final result only
        self._latency = LatencyHistogram()
        self._start: float | None = None
        self._end = 0.0
        self._last_timestamp: float | None = None
        self._next_id = self._num_finished = self._num_keyframes = 0

    @property
    def num_waiting(self) -> int:
        """Frames pushed whose final results are not out yet."""
        return len(self._arrivals)

    def push(self, image_bgr: np.ndarray, timestamp_s: float,
             arrival_s: float | None = None) -> list[FrameResult]:
        """Results that this frame brings about, in the order of the frames.

        Args:
            image_bgr: (H, W, 3) uint8; not to be written into until its final result is out and,
                for a keyframe, that of the next one.
            timestamp_s: presentation time; greater than that of the frame before.
            arrival_s: when it arrived, on this session's clock (default: now).

        Raises:
            VisionError: VIS-INPUT-501 time that does not grow, and what the engine raises.
        """
        if self._last_timestamp is not None and not timestamp_s > self._last_timestamp:
            raise VisionError('VIS-INPUT-501', f'timestamp {timestamp_s} s after '
                              f'{self._last_timestamp} s', where=f'frame {self._next_id}',
                              why='timestamps of a stream grow',
                              do='use a monotonic clock, or a new session for another stream')
        arrival = self._clock() if arrival_s is None else arrival_s
        begin = arrival if self._start is None else max(arrival, self._end)
        self._start = arrival if self._start is None else self._start
        self._arrivals[self._next_id] = arrival
        results = self._engine.push(image_bgr, self._next_id, timestamp_s)
        self._last_timestamp = timestamp_s
        self._next_id += 1
        results = self._timed(results)
        if self._observe_frame is not None:
            self._observe_frame(max(self._end - begin, 0.0) * 1e3)
        return results

    def flush(self) -> list[FrameResult]:
        """End of the stream: the results of the frames that still wait."""
        return self._timed(self._engine.flush())

    def stats(self) -> StreamStats:
        """Counts and latencies so far; cheap enough to be asked at each frame."""
        duration = 0.0 if self._start is None else max(self._end - self._start, 0.0)
        latency = self._latency
        return StreamStats(self._next_id, self._num_finished, self._num_keyframes,
                           latency.percentile(50), latency.percentile(95), latency.max_ms,
                           duration, self._deadline_misses)

    def _timed(self, results: list[FrameResult]) -> list[FrameResult]:
        self._end = now = self._clock()
        return [self._told(result, max(now - self._arrivals[result.frame_id], 0.0) * 1e3)
                for result in results]

    def _told(self, result: FrameResult, latency_ms: float) -> FrameResult:
        frame_id = result.frame_id
        if frame_id not in self._is_answered:
            self._latency.add(latency_ms)
            if self._deadline_ms is not None:
                self._deadline_misses += latency_ms > self._deadline_ms
        if result.status == 'final':
            self._is_answered.discard(frame_id)
            del self._arrivals[frame_id]
            self._num_finished += 1
            self._num_keyframes += result.is_keyframe
        else:
            self._is_answered.add(frame_id)
        return replace(result, latency_ms=latency_ms)
