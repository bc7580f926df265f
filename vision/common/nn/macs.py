"""Multiply-adds and parameters of a network, counted layer by layer in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
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


def count(model: nn.Module, height: int, width: int) -> list[PartCost]:
    """Cost of one image of height x width px, part by part, of a model on the meta device.

    Of a detector backbone and neck are counted, since what its heads do depends on the image.

    Raises:
        RuntimeError: the network does not take an image of this size.
    """
    x = torch.zeros(1, first_channels(model), height, width, device='meta')
    # Detectors of MMDetection decode boxes in forward, which needs numbers.
    run = model.extract_feat if hasattr(model, 'extract_feat') and not hasattr(
        model, 'head') else model
    with counted_macs(model) as macs, torch.no_grad():
        run(x)
    return part_costs(model, part_names(model), macs)


def part_names(model: nn.Module, prefix: str = '') -> Iterator[str]:
    """Children with parameters; one that has ``parts()`` (a backbone of ours) is replaced by
    those."""
    for name, child in model.named_children():
        if next(child.parameters(), None) is None:
            continue  # nothing to count in a data preprocessor
        if hasattr(child, 'parts'):
            names = {id(module): path for path, module in child.named_modules()}
            yield from (f'{prefix}{name}.{names[id(module)]}'
                        for part in child.parts() for module in part)
        elif any(hasattr(module, 'parts') for module in child.modules()):
            yield from part_names(child, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}'


def first_channels(model: nn.Module) -> int:
    """Of the image. YOLOX's stem puts four pixels into the channels before it convolves."""
    channels = next(layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d))
    has_focus = any(type(layer).__name__ == 'Focus' for layer in model.modules())
    return channels // 4 if has_focus else channels
