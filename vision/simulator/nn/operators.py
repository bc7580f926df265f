"""What an operator costs, told from its arguments and results: FLOPs, bytes, matrix sizes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

GEMMS = frozenset(('mm', 'addmm', 'bmm', 'baddbmm', 'linear', '_scaled_mm'))
# Of torch's own, compute that bytes do not tell; whatever is outside of torch is unpriced too.
UNPRICED = ('linalg_', '_linalg', 'fft_', '_fft', 'cdist', '_cdist', 'mkldnn_rnn', '_cudnn_rnn',
            '_thnn_fused', '_ctc_loss', 'cholesky', 'triangular_solve', 'grid_sampler')


class Sizes(NamedTuple):
    """Of a matrix product, or of the one that a convolution is."""

    m: int = 0
    n: int = 0
    k: int = 0
    batch: int = 1


def kind_of(namespace: str, base: str) -> str:
    """One of ``core.graph.KINDS``."""
    if namespace in ('c10d', '_c10d_functional'):
        return 'collective'
    if base in GEMMS:
        return 'gemm'
    if 'convolution' in base:
        return 'conv'
    if 'attention' in base:
        return 'attention'
    if any(part in base for part in ('batch_norm', 'layer_norm', 'group_norm', 'rms_norm')):
        return 'norm'
    if 'embedding' in base:
        return 'embedding'
    return 'elementwise' if namespace == 'aten' and not base.startswith(UNPRICED) else 'other'


def flops_of(func: Any, args: tuple, kwargs: dict, result: Any) -> float | None:
    """Two for a multiply-add, by torch's own formulas; None where it has none."""
    packet = getattr(func, 'overloadpacket', None)
    if packet in flop_registry:
        return float(flop_registry[packet](*args, **kwargs, out_val=result))
    if packet is not None and '_attention_for_cpu' in packet.__name__:
        count = sdpa_backward_flop_count if 'backward' in packet.__name__ else sdpa_flop_count
        shapes = [each.shape for each in args[:4 if 'backward' in packet.__name__ else 3]]
        return float(count(*shapes))
    return None


def sizes_of(base: str, args: tuple, result: Any) -> Sizes:
    """Matrix sizes of a product or a convolution; zeros of anything else."""
    if base in ('addmm', 'baddbmm'):
        args = args[1:]
    if base in GEMMS and base != 'linear':
        *_, m, k = args[0].shape
        return Sizes(m, args[1].shape[-1], k, args[0].shape[0] if args[0].dim() == 3 else 1)
    if base == 'linear':
        n, k = args[1].shape
        return Sizes(args[0].numel() // k, n, k)
    if base == 'convolution':
        return _as_product(args[1], result, args[8])
    if base == 'convolution_backward':
        return _as_product(args[2], args[0], args[9])
    return Sizes()


def _as_product(weight: Tensor, out: Tensor, groups: int) -> Sizes:
    """Pixels by outputs by patch, forward; of a transposed convolution as well."""
    return Sizes(out.shape[0] * prod(out.shape[2:]), out.shape[1] // groups,
                 weight.numel() // max(out.shape[1], 1), groups)


def of_phase(sizes: Sizes, *, is_weight: bool) -> Sizes:
    """The forward product's sizes turned into those of a part of its backward."""
    m, n, k, batch = sizes
    return Sizes(n, k, m, batch) if is_weight else Sizes(m, k, n, batch)


def tensors_in(value: Any) -> list[Tensor]:
    """Tensors of any shape in arguments or results, nested tuples, lists and dicts included, in
    order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [each for part in value for each in tensors_in(part)]


def bytes_moved(base: str, args: tuple, kwargs: dict, made: int, written: Sequence[Tensor]) -> int:
    """Bytes that an operator reads and writes; of a convolution's backward by each of its halves.

    Args:
        base: the operator's name without overload.
        args, kwargs: its arguments, tensors of any shape among them.
        made: bytes of new results.
        written: arguments that it writes into.
    """
    if base.startswith(('empty', 'new_empty')):
        return 0  # memory is taken, nothing is written
    if base == 'convolution_backward':
        return bytes_of(tensors_in(args[:3]))
    return bytes_of(tensors_in((args, kwargs))) + made + bytes_of(written)


def bytes_of(tensors: Sequence[Tensor]) -> int:
    """Bytes that tensors of any shape show, each storage once at most."""
    seen: dict[int, int] = {}
    for each in tensors:
        # An expanded tensor shows more numbers than there are in memory.
        size = min(each.numel() * each.element_size(), each.untyped_storage().nbytes())
        key = id(each.untyped_storage())
        seen[key] = max(size, seen.get(key, 0))
    return sum(seen.values())


def dtype_of(tensors: Sequence[Tensor]) -> str:
    """Name of a dtype, such as 'float16': of the first floating point tensor, or else of the
    first; 'float32' without tensors. Shapes do not matter."""
    floating = [each for each in tensors if each.is_floating_point()] or list(tensors)
    return str(floating[0].dtype).removeprefix('torch.') if floating else 'float32'


def is_scalar_query(func: Any) -> bool:
    """Asks a tensor something and computes nothing."""
    return getattr(func, 'namespace', '') == 'prim' or func in (
        torch.ops.aten.sym_size.default, torch.ops.aten.is_same_size.default)
