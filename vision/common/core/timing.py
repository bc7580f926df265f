"""How long things take: repeated measurements, and sums by name over a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np


def measure(fn: Callable[[], object], *, sync: Callable[[], object] = lambda: None,
            num_warmup: int = 10, num_runs: int = 100) -> dict[str, float]:
    """Milliseconds of one call: p10_ms, p50_ms, p90_ms and num_runs.

    Args:
        sync: waits for the device before the clock is read (``torch.cuda.synchronize``).
    """
    if num_warmup < 0 or num_runs < 1:
        raise ValueError(f'num_warmup must be >= 0 and num_runs >= 1, got {num_warmup} and '
                         f'{num_runs}')
    times_ms = []
    for _ in range(num_warmup + num_runs):
        sync()
        start = time.perf_counter()
        fn()
        sync()
        times_ms.append((time.perf_counter() - start) * 1e3)
    p10, p50, p90 = np.percentile(times_ms[num_warmup:], [10, 50, 90]).tolist()
    return dict(p10_ms=p10, p50_ms=p50, p90_ms=p90, num_runs=num_runs)


class Stopwatch:
    """Sums of seconds and numbers of calls by name; names do not nest."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.num_calls: dict[str, int] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the block, also when it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.num_calls[name] = self.num_calls.get(name, 0) + 1
