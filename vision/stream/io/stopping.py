"""Ctrl-C and SIGTERM that end a stream politely."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals(stop: Callable[[], None]) -> Iterator[list[int]]:
    """The first signal calls ``stop``; a second one ends at once. Gives the signals received.

    Args:
        stop: asks the loop to end after this frame, so that its files are finished.
    """
    received: list[int] = []

    def handle(number: int, _frame) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        stop()

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
