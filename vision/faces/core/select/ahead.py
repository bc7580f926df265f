"""Work of the next step, done by a thread while this one is under way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Ahead:
    """``work(*key)``, begun before it is asked for; whether it was changes no result.

    Each piece of work has a thread of its own, which ends with it: none is left to be closed.

    Args:
        work: depends on its arguments only, which are compared by ``==``.
    """

    def __init__(self, work: Callable[..., Any]) -> None:
        self._work = work
        self._key: tuple | None = None
        self._coming: Future | None = None

    def begin(self, *key: Any) -> None:
        """Have a thread do the work for ``key``; what was begun before is dropped."""
        if key != self._key:
            self._key, self._coming = key, Future()
            threading.Thread(target=_do, args=(self._coming, self._work, key),
                             name='drawn-rows').start()

    def __call__(self, *key: Any) -> Any:
        """The result for ``key``, waited for where its work was begun, else worked out here."""
        return self._coming.result() if key == self._key else self._work(*key)

    def __getstate__(self) -> dict[str, Any]:
        """A copy begins with nothing under way."""
        return dict(self.__dict__, _key=None, _coming=None)


def _do(coming: Future, work: Callable[..., Any], key: tuple) -> None:
    try:
        coming.set_result(work(*key))
    except BaseException as error:  # to be raised where the result is asked for
        coming.set_exception(error)
