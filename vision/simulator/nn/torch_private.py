"""Names of torch without a promise that ``vision.simulator`` uses; here and only here.

Their contract is tested in ``tests/simulator/test_nn_torch_private.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

try:
    from torch._C import _current_autograd_node
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.autograd import _get_sequence_nr
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError as error:
    raise ImportError(f'written for torch 2.13, found {torch.__version__}: update '
                      'vision/simulator/nn/torch_private.py and its contract test') from error

__all__ = ['FakeTensorMode', 'TorchDispatchMode', 'backward_place', 'fake_ranks', 'forward_place',
           'shows_memory', 'storage_key', 'tracked_peak', 'written_arguments']


def forward_place() -> int:
    """Number of the autograd node that the operator which is being dispatched belongs to; of the
    one before if it makes none."""
    return _get_sequence_nr() - 1


def backward_place() -> tuple[int | None, Tensor | None]:
    """(number that its forward had, None) of the autograd node that runs, or (None, leaf) while a
    gradient is put down at a leaf; (None, None) between nodes."""
    node = _current_autograd_node()
    if node is None:
        return None, None
    leaf = getattr(node, 'variable', None)
    return (None, leaf) if isinstance(leaf, Tensor) else (node._sequence_nr(), None)


def storage_key(storage: torch.UntypedStorage) -> int:
    """Names a storage as long as it lives."""
    return storage._cdata


def written_arguments(func: torch._ops.OpOverload, args: tuple, kwargs: dict) -> list[Tensor]:
    """Tensors (any shape) among the arguments that an operator writes into, by its schema."""
    schema = getattr(func, '_schema', None)
    found = []
    for position, argument in enumerate(schema.arguments if schema else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[position] if position < len(args) else None)
            found += [each for each in (value if isinstance(value, (list, tuple)) else [value])
                      if isinstance(each, Tensor)]
    return found


def shows_memory(func: torch._ops.OpOverload) -> bool:
    """Its results are views of its arguments and it writes nothing."""
    schema = getattr(func, '_schema', None)
    return schema is not None and any(each.alias_info is not None for each in schema.returns) \
        and not any(each.alias_info is not None and each.alias_info.is_write
                    for each in schema.arguments)


@contextmanager
def fake_ranks(num_ranks: int) -> Iterator[None]:
    """A process group of which this process is rank 0 and whose collectives do nothing. Of the
    judges in tests and benchmarks; nothing is predicted with it."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore
    dist.init_process_group('fake', rank=0, world_size=num_ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def tracked_peak(module: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor,
                 step: Callable[[], None], num_steps: int = 2) -> dict[str, int]:
    """Bytes at the highest moment of some steps by torch's own trackers: 'Total', and by what they
    are for. Of a module that FSDP2 shards, or of any other.

    Args:
        inputs: the batch (B, ...) that ``step`` uses.
        step: one forward, backward and optimizer step.
    """
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed._tools.mem_tracker import MemTracker
    from torch.distributed.fsdp import FSDPModule
    if isinstance(module, FSDPModule):
        tracker = FSDPMemTracker(module, optimizer)
        tracker.track_inputs((inputs,))
    else:
        tracker = MemTracker()
        tracker.track_external(module, optimizer, inputs)
    with tracker:
        for _ in range(num_steps):
            step()
            tracker.reset_mod_stats()
    snapshot = tracker.get_tracker_snapshot('peak')[inputs.device]
    return {getattr(name, 'value', name): size for name, size in snapshot.items() if size}
