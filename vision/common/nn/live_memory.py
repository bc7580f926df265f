"""Peak bytes of live tensors while some code runs, on any device."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts the storage of every tensor that an operator makes, until it is freed.

    ``peak_bytes`` is the highest sum at the end of any operator, backward and recomputation
    included; tensors that existed before (parameters, their gradients) do not count. It is exact
    and repeatable, unlike the resident set of the process, which also holds what allocators keep
    and what libraries use as scratch inside one operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        old = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs or {}))
               if isinstance(tensor, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                if storage._cdata not in old and storage._cdata not in self._known:
                    self._add(storage)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def forget(_: weakref.ref) -> None:
            self.live_bytes -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, forget)
        self.live_bytes += size
