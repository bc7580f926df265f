"""Bytes of the storages that are made inside a scope, for as long as each lives."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vision.memory.nn.operators import Operator, flat_tensors
from vision.memory.nn.torch_private import TorchDispatchMode


class Watch(weakref.ref):
    """A living storage: its address and size. Torch keeps one Python object a storage, so the
    callback comes when the memory is freed."""

    __slots__ = ('key', 'num_bytes')

    def __init__(self, storage: torch.UntypedStorage, on_freed: Callable[[Watch], None]) -> None:
        super().__init__(storage, on_freed)
        self.key, self.num_bytes = storage._cdata, storage.nbytes()

    def __new__(cls, storage: torch.UntypedStorage, on_freed: Callable[[Watch], None]) -> Watch:
        return super().__new__(cls, storage, on_freed)


class LiveBytes:
    """Counts storages by identity; views and in-place results are no new memory.

    Attributes:
        live, peak: bytes now and at most.
        watches: living storages by address.
        on_freed: called with the watch of a storage that has gone.
    """

    def __init__(self, on_freed: Callable[[Watch], None] | None = None) -> None:
        self.live = self.peak = 0
        self.watches: dict[int, Watch] = {}
        self.on_freed = on_freed

    def add(self, storage: torch.UntypedStorage) -> Watch | None:
        """Its watch if it is new."""
        if storage._cdata in self.watches:
            return None
        watch = Watch(storage, self._freed)
        self.watches[watch.key] = watch
        self.live += watch.num_bytes
        if self.live > self.peak:
            self.peak = self.live
        return watch

    def add_results(self, result: Any, written: Iterable[Tensor] = ()) -> bool:
        """Count what an operator returned (tensors of any shape, nested); not what it was given to
        write into, which may be memory from outside, such as a parameter. Was there new memory?"""
        known = {storage._cdata for tensor in written if (storage := storage_of(tensor))}
        is_new = False
        for tensor in flat_tensors(result):
            storage = storage_of(tensor)
            if storage is not None and storage._cdata not in known and self.add(storage):
                is_new = True
        return is_new

    def resized(self, tensors: Iterable[Tensor]) -> None:
        """Take the size anew of storages that an operator on these tensors (any shape) may have
        resized."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            watch = self.watches.get(storage._cdata)
            if watch is not None and (grown := storage.nbytes() - watch.num_bytes):
                watch.num_bytes += grown
                self.live += grown
                self.peak = max(self.peak, self.live)

    def _freed(self, watch: Watch) -> None:
        self.live -= watch.num_bytes
        if self.watches.get(watch.key) is watch:
            del self.watches[watch.key]
        if self.on_freed is not None:
            self.on_freed(watch)

    def close(self) -> None:
        """Forget all storages; none is counted when it goes."""
        self.watches.clear()
        self.on_freed = None


class LiveMemory(TorchDispatchMode):
    """The same as a neutral judge: wrap any step, managed or not, and read what it held.

    Memory inside an operator while it runs is not seen, nor what was made outside of the scope;
    gradients that are there before a step do not count, those that it makes do.

    Attributes:
        curve: live bytes after each operator that made memory.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # a wrapper of dynamo's around each operator otherwise

    def __init__(self) -> None:
        super().__init__()
        self.bytes = LiveBytes()
        self.curve: list[int] = []
        self._operators: dict = {}

    @property
    def live_bytes(self) -> int:
        """Memory of the storages made inside that are still there."""
        return self.bytes.live

    @property
    def peak_bytes(self) -> int:
        """The most that ``live_bytes`` has been so far."""
        return self.bytes.peak

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        operator = self._operators.get(func)
        if operator is None:
            operator = self._operators[func] = Operator(func)
        result = func(*args, **(kwargs or {}))
        if operator.is_view:
            return result
        written = operator.written(args, kwargs) if operator.writes else ()
        if written:
            self.bytes.resized(written)
        if self.bytes.add_results(result, written):
            self.curve.append(self.bytes.live)
        return result

    def __exit__(self, *error):
        result = super().__exit__(*error)
        self.bytes.watches.clear()
        return result


def storage_of(tensor: Tensor) -> torch.UntypedStorage | None:
    """The storage behind a tensor (any shape); None of one that has none, or several: sparse ones
    and wrappers."""
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None
