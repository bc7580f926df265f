"""The models that the page offers, each loaded once, at its first use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vision.common.core.errors import VisionError
from vision.loading import load, models

TASKS = ('video', 'faces', 'classify')


class Models:
    """Models by task and name.

    Args:
        given: names, configs or .onnx files that are offered in place of the zoo's of the same
            task; they are loaded at once, so that a wrong one is told before the page is there.
        load: ``vision.load``, or what a test puts in its place.
    """

    def __init__(self, given: Sequence[str] = (), *,
                 load: Callable[[str], Any] = load) -> None:
        self._load, self._lock = load, threading.Lock()
        self._loaded: dict[str, Any] = {}
        self._idle: dict[str, list[Any]] = {}
        self._names: dict[str, list[str]] = {task: [] for task in TASKS}
        for name in given:
            self._names[task_of(self._get(name), name)].append(name)
        given_for = {task for task, names in self._names.items() if names}
        for card in models():
            if card.is_here and card.task in TASKS and card.task not in given_for:
                self._names[card.task].append(card.name)

    def names(self, task: str) -> list[str]:
        """Those of a task, the first one chosen; none when nothing is here for it."""
        return list(self._names[task])

    def get(self, name: str, task: str) -> Any:
        """The loaded model.

        Raises:
            VisionError: VIS-INPUT-1770 it is not offered; and what ``vision.load`` raises.
        """
        if name not in self._names[task]:
            offered = ', '.join(self._names[task])
            raise VisionError('VIS-INPUT-1770', f'no model for {task} is called {name!r:.80}',
                              why=f'offered are {offered}' if offered else
                              'none is here: vision zoo list says what can be fetched',
                              do='choose one of the list')
        return self._get(name)

    @contextmanager
    def borrowed(self, name: str) -> Iterator[Any]:
        """A video model that nobody else uses meanwhile: a model runs one video at a time."""
        first = self.get(name, 'video')
        with self._lock:
            idle = self._idle.setdefault(name, [first])
            model = idle.pop() if idle else None
        model = model or self._load(name)
        try:
            yield model
        finally:
            with self._lock:
                idle.append(model)

    def classes(self, name: str) -> tuple[str, ...]:
        """Of a video model, in label order."""
        return tuple(self.get(name, 'video').classes)

    def _get(self, name: str) -> Any:
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = self._load(name)
            return self._loaded[name]


def task_of(model: Any, name: str) -> str:
    """Of a loaded model, by its verb."""
    for task, verb in (('video', 'video'), ('faces', 'embed')):
        if hasattr(model, verb):
            return task
    assert callable(model), f'{name} has no verb of the page'
    return 'classify'
