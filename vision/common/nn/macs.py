"""Multiply-adds and parameters of a network, counted layer by layer in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd as AnyConv
from torch.nn.modules.conv import _ConvTransposeNd as AnyTransposedConv


class PartCost(NamedTuple):
    """One part of a network; ``macs`` is 0 where the pass did not come through."""

    name: str
    parameters: int
    macs: int


def layer_macs(layer: nn.Module, x: Tensor, y: Tensor) -> int:
    """Multiply-adds of one call of a convolution or a linear layer; bias and norms are none.

    Args:
        x, y: what went in, (B, C, ...) or (..., C), and what came out; only their shapes count.
    """
    if isinstance(layer, nn.Linear):
        return y.numel() * layer.in_features
    weights_per_position = layer.weight[0].numel()
    return (x if isinstance(layer, AnyTransposedConv) else y).numel() * weights_per_position


@contextmanager
def counted_macs(model: nn.Module):
    """Yields a dict, layer name -> multiply-adds of the calls made inside; a layer that is
    called several times counts each time."""
    counts: dict[str, int] = {}

    def hook_of(name: str) -> Callable:
        def count(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
            counts[name] = counts.get(name, 0) + layer_macs(layer, inputs[0], output)
        return count

    hooks = [layer.register_forward_hook(hook_of(name)) for name, layer in model.named_modules()
             if isinstance(layer, AnyConv | nn.Linear)]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def part_costs(model: nn.Module, parts: Iterable[str], macs: dict[str, int]) -> list[PartCost]:
    """Sums per part; what lies in none of the parts comes last as 'other', if it is anything.

    Args:
        parts: prefixes of module names, none inside another.
        macs: as ``counted_macs`` yields them.
    """
    names = tuple(parts)
    parameters = {name: p.numel() for name, p in model.named_parameters()}

    def part_of(name: str) -> str:
        return next((part for part in names if f'{name}.'.startswith(f'{part}.')), 'other')

    totals = {name: [0, 0] for name in (*names, 'other')}
    for column, counts in enumerate((parameters, macs)):
        for name, count in counts.items():
            totals[part_of(name)][column] += count
    return [PartCost(name, *total) for name, total in totals.items()
            if name != 'other' or any(total)]
