"""Latency statistics in constant memory."""

from __future__ import annotations

import math

import numpy as np

# Bins grow by 2 % each from 0.01 ms to about 15 minutes: a percentile is within 2 %.
_GROWTH = math.log(1.02)
_LOWEST_MS = 0.01
_NUM_BINS = 940


class LatencyHistogram:
    """Percentiles of any number of latencies; each is exact to 2 % (our choice: fixed bins)."""

    def __init__(self) -> None:
        self._counts = np.zeros(_NUM_BINS, dtype=np.int64)
        self.count, self.max_ms = 0, 0.0

    def add(self, latency_ms: float) -> None:
        """Count one latency; ValueError if it is negative or NaN."""
        if not latency_ms >= 0:
            raise ValueError(f'a latency is >= 0 ms, got {latency_ms}')
        place = math.log(max(latency_ms, _LOWEST_MS) / _LOWEST_MS) / _GROWTH
        self._counts[min(int(place), _NUM_BINS - 1)] += 1
        self.count += 1
        self.max_ms = max(self.max_ms, latency_ms)

    def percentile(self, percent: float) -> float:
        """Upper edge of the bin that holds it, at most ``max_ms``; 0 when nothing was added."""
        if not self.count:
            return 0.0
        rank = max(1, math.ceil(self.count * percent / 100))
        place = int(np.searchsorted(np.cumsum(self._counts), rank))
        return min(_LOWEST_MS * math.exp((place + 1) * _GROWTH), self.max_ms)
