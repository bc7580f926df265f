"""What an operator does to memory and whether it may run twice, read from its schema once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Outputs of these are never made again: operators bound without a schema (mmcv's) write their
# results into such memory, where nobody sees it. A recorded full overwrite gives them a producer.
_FACTORIES = frozenset((
    'empty', 'empty_like', 'empty_strided', 'empty_permuted', 'new_empty', 'new_empty_strided',
    'zeros', 'zeros_like', 'new_zeros', 'ones', 'ones_like', 'new_ones', 'full', 'full_like',
    'new_full', 'arange', 'linspace', 'eye', 'rand', 'rand_like', 'randn', 'randn_like', 'randint',
    'randint_like', 'randperm', 'scalar_tensor', 'lift_fresh_copy'))
# In-place operators whose result does not depend on what was in the memory before.
_OVERWRITES = frozenset(('bernoulli_', 'uniform_', 'normal_', 'copy_', 'fill_', 'zero_',
                         'random_', 'exponential_', 'log_normal_'))
# They move running statistics, of which their schema says nothing.
_BATCH_NORMS = {'native_batch_norm': (3, 4), '_native_batch_norm_legit': (3, 4),
                'cudnn_batch_norm': (3, 4), 'miopen_batch_norm': (3, 4),
                '_batch_norm_with_update': (3, 4)}
_COLLECTIVES = ('c10d', '_c10d_functional', '_c10d_functional_autograd', 'symm_mem')
# Dtypes of which (dtype, size, stride, offset) says all: not complex (conjugation), not quantized.
# CUDA's attention gives its generator's state as uint64.
PLAIN_DTYPES = frozenset((torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64,
                          torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32,
                          torch.uint16, torch.uint8, torch.bool))


class Operator:
    """One overload.

    Attributes:
        is_view: its results show memory of its arguments, and it writes nothing.
        writes: positions, or names, of the arguments that it writes into.
        is_overwrite: what it writes does not depend on what was there.
        is_random: draws from the default generator.
        may_replay: may be run again as far as its kind tells.
        is_refill: FSDP2 gathers parameters again, into memory that was given back meanwhile.
        running: positions of running statistics that are cloned before it runs again.
    """

    __slots__ = ('func', 'is_overwrite', 'is_random', 'is_refill', 'is_view', 'may_replay', 'name',
                 'running', 'writes')

    def __init__(self, func: Any) -> None:
        schema = getattr(func, '_schema', None)
        namespace, _, rest = str(func).partition('.')
        base = rest.partition('.')[0]
        self.func, self.name = func, f'{namespace}.{base}'
        # Higher order operators and what has no schema: seen, counted, never run again.
        arguments = schema.arguments if schema else ()
        self.writes = tuple(
            argument.name if argument.kwarg_only else position
            for position, argument in enumerate(arguments)
            if argument.alias_info is not None and argument.alias_info.is_write)
        self.is_view = bool(schema) and not self.writes and any(
            output.alias_info is not None for output in schema.returns)
        self.is_overwrite = base in _OVERWRITES and self.writes == (0,)
        self.is_random = torch.Tag.nondeterministic_seeded in getattr(func, 'tags', ())
        self.is_refill = namespace == 'fsdp'
        self.may_replay = bool(schema) and base not in _FACTORIES \
            and namespace not in _COLLECTIVES
        self.running = _BATCH_NORMS.get(base, ()) if namespace == 'aten' else ()

    def written(self, args: tuple, kwargs: dict | None) -> list[Tensor]:
        """Tensors (any shape) among the arguments that it writes into."""
        return [tensor for place in self.writes
                for tensor in flat_tensors(self.argument(place, args, kwargs))]

    @staticmethod
    def argument(place: int | str, args: tuple, kwargs: dict | None) -> Any:
        """The argument at a position or of a name; None where it was left out."""
        if isinstance(place, str):
            return (kwargs or {}).get(place)
        return args[place] if place < len(args) else None


def flat_tensors(value: Any) -> list[Tensor]:
    """Tensors (any shape) in a result or argument, nested tuples, lists and dicts included, in
    order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in flat_tensors(part)]
    if isinstance(value, dict):
        return flat_tensors(list(value.values()))
    return []
