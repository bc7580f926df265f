"""Threads of a pipeline, with queues of fixed length between them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

_END = object()


class ReadAhead:
    """Iterates in a thread of its own, at most ``size`` items ahead of whoever iterates this.

    What the iterable raises is raised where this is iterated, after the items before it. Leaving
    the ``with`` block ends the thread, also when it is not through.

    Args:
        items: used by the thread alone while it runs.
        size: items that may wait.
    """

    def __init__(self, items: Iterable, size: int, name: str) -> None:
        self._items, self._queue = items, queue.Queue(size)
        self._is_left = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._is_left.set()
        with suppress(queue.Empty):  # whoever waits for room in the queue goes on at once
            while True:
                self._queue.get_nowait()
        self._thread.join()

    def __iter__(self) -> Iterator:
        while (item := self._queue.get()) is not _END:
            yield item
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        items = iter(self._items)
        try:
            for item in items:
                if not self._put(item):
                    break
            if hasattr(items, 'close'):  # a generator closes its file here, not some time later
                items.close()
        except BaseException as error:
            self._error = error
        self._put(_END)

    def _put(self, item: Any) -> bool:
        while not self._is_left.is_set():
            with suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return True
        return False


class Stage:
    """Does ``work(item)`` for one item after the other in a thread of its own.

    After an error the items that still come are dropped; the error is raised by the next ``put``,
    or at the end of the ``with`` block, which waits for the items that were put. Where the block
    ends by an error of its own, that one is raised; on KeyboardInterrupt nothing more is done.

    Args:
        size: items that may wait; ``put`` waits while the queue is full.
    """

    def __init__(self, work: Callable[[Any], None], size: int, name: str) -> None:
        self._work, self._queue = work, queue.Queue(size)
        self._is_dropping = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def put(self, item: Any) -> None:
        """Hand over an item; waits while the queue is full. Raises the error of an
        earlier item."""
        if self._error is not None:
            raise self._error
        self._queue.put(item)

    def __enter__(self) -> Stage:
        self._thread.start()
        return self

    def __exit__(self, kind, *_) -> None:
        self._is_dropping = self._is_dropping or kind is KeyboardInterrupt
        self._queue.put(_END)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._queue.get()) is not _END:
            if self._is_dropping:
                continue
            try:
                self._work(item)
            except BaseException as error:
                self._error, self._is_dropping = error, True
