"""How long things take: sums by name over a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


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
