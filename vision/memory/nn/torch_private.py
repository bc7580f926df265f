"""Names of torch without a promise that ``vision.memory`` uses; here and only here.

Their contract is tested in ``tests/memory/test_nn_torch_private.py``: a torch that changes one of
them fails there, and not in the middle of a training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

try:
    from torch._C import _AutoDispatchBelowAutograd as below_autograd
    from torch._C import _current_graph_task_id as graph_task
    from torch._C import _DisableTorchDispatch as unseen
    from torch._C import _storage_Use_Count
    from torch._C._dynamo.eval_frame import get_eval_frame_callback
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError as error:
    raise ImportError(f'written for torch 2.13, found {torch.__version__}: update '
                      'vision/memory/nn/torch_private.py and its contract test') from error

__all__ = ['TorchDispatchMode', 'below_autograd', 'count_holders', 'geometry', 'graph_task',
           'is_compiling', 'plain_kernels', 'tensor_on', 'unseen']


def count_holders(storage: torch.UntypedStorage) -> int:
    """Tensors that show this storage; the Python object that the caller holds is left out."""
    return _storage_Use_Count(storage._cdata) - 1


def is_compiling() -> bool:
    """Does a frame that ``torch.compile`` made run here?"""
    return callable(get_eval_frame_callback())


@contextmanager
def plain_kernels(device_type: str) -> Iterator[None]:
    """Operators run below autograd and autocast, as they were seen when they were recorded.

    No graph is made; other dispatch modes see the operators.
    """
    was_on = torch.is_autocast_enabled(device_type)
    if was_on:
        torch.set_autocast_enabled(device_type, False)
    try:
        with below_autograd():
            yield
    finally:
        if was_on:
            torch.set_autocast_enabled(device_type, True)


def geometry(tensor: Tensor) -> tuple:
    """(dtype, shape, strides, offset), from which ``tensor_on`` makes the same view of a storage;
    strides and offset in elements."""
    return tensor.dtype, tensor.size(), tensor.stride(), tensor.storage_offset()


def tensor_on(storage: torch.UntypedStorage, view: tuple) -> Tensor:
    """A tensor of (dtype, size, stride, offset) on a storage; made below autograd, unseen."""
    dtype, size, stride, offset = view
    with unseen():
        return torch.empty(0, dtype=dtype, device=storage.device).set_(
            storage, offset, size, stride)


def set_compiler_budget(ratio: float) -> float:
    """Let ``torch.compile`` keep this share (0 to 1) of what it would save for backward; the share
    that held before comes back. Only later compilations are changed."""
    from torch._functorch import config  # not above: it imports the compiler, seconds
    before, config.activation_memory_budget = config.activation_memory_budget, ratio
    return before
