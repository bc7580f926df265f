"""Names of torch without a promise that ``vision.simulator`` uses; here and only here.

Their contract is tested in ``tests/simulator/test_nn_torch_private.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    from torch._C import _current_autograd_node
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.autograd import _get_sequence_nr
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError as error:
    raise ImportError(f'written for torch 2.13, found {torch.__version__}: update '
                      'vision/simulator/nn/torch_private.py and its contract test') from error

__all__ = ['FakeTensorMode', 'TorchDispatchMode', 'backward_place', 'forward_place',
           'shows_memory', 'storage_key', 'written_arguments']


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
    """Tensors among the arguments that an operator writes into."""
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
