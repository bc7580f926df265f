"""Inception blocks and the polynomials in them (arXiv:1611.05725).

Layer tables follow the published network. Every convolution is without bias and has a norm;
every one but a projection also by the activation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vision.polynet.core.arch import MODULE_FORMS


class ConvSpec(NamedTuple):
    """One convolution: output channels, kernel (height, width), stride, and whether it pads by
    half its kernel (``pad``) when the network is built without padding elsewhere."""

    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    pad: bool = False


class BlockSpec(NamedTuple):
    """Channels in and out, and the paths whose results are concatenated in this order."""

    channels: int
    paths: tuple[tuple[ConvSpec, ...], ...]


def _one(channels: int) -> ConvSpec:
    return ConvSpec(channels)


def _padded(channels: int, height: int, width: int) -> ConvSpec:
    return ConvSpec(channels, (height, width), pad=True)


BLOCKS = {
    'a': BlockSpec(384, ((_one(32), _padded(48, 3, 3), _padded(64, 3, 3)),
                         (_one(32), _padded(32, 3, 3)),
                         (_one(32),))),
    'b': BlockSpec(1152, ((_one(128), _padded(160, 1, 7), _padded(192, 7, 1)),
                          (_one(192),))),
    'c': BlockSpec(2048, ((_one(192), _padded(224, 1, 3), _padded(256, 3, 1)),
                          (_one(192),))),
}


@dataclass(frozen=True)
class Layers:
    """Makers of the three layer kinds, so that configs can name others.

    Args:
        conv: called like ``nn.Conv2d`` with ``bias=False``.
        norm: called with the number of channels.
        act: called with nothing.
        is_same: every window pads by half its size, so that maps are ceil(size / stride).
    """

    conv: Callable[..., nn.Module] = nn.Conv2d
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    act: Callable[[], nn.Module] = partial(nn.ReLU, inplace=True)
    is_same: bool = False

    def make_conv(self, in_channels: int, spec: ConvSpec, dilation: int = 1) -> nn.Module:
        """A convolution without bias from ``in_channels`` to ``spec.channels``. It pads where the
        spec or ``is_same`` says so, and then by ``dilation`` times half its window; 1x1 is
        never dilated."""
        pads = spec.pad or self.is_same
        padding = tuple(dilation * (size // 2) if pads else 0 for size in spec.kernel)
        is_pointwise = spec.kernel == (1, 1)
        return self.conv(in_channels, spec.channels, spec.kernel, stride=spec.stride,
                         padding=padding, dilation=1 if is_pointwise else dilation, bias=False)


class ConvUnit(nn.Module):
    """Convolution, norm and (unless ``is_linear``) activation."""

    def __init__(self, in_channels: int, spec: ConvSpec, layers: Layers, *, dilation: int = 1,
                 is_linear: bool = False) -> None:
        super().__init__()
        self.conv = layers.make_conv(in_channels, spec, dilation)
        self.norm = layers.norm(spec.channels)
        self.act = nn.Identity() if is_linear else layers.act()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_channels, H, W) -> (B, spec.channels, h, w), smaller by the spec's stride and
        border."""
        return self.act(self.norm(self.conv(x)))


class TiedConvUnit(nn.Module):
    """One convolution that several orders share; each order has its own norm, since the
    statistics of F(x) and F(F(x)) differ."""

    def __init__(self, in_channels: int, spec: ConvSpec, layers: Layers, *, num_orders: int,
                 dilation: int = 1, is_linear: bool = False) -> None:
        super().__init__()
        self.conv = layers.make_conv(in_channels, spec, dilation)
        self.norms = nn.ModuleList(layers.norm(spec.channels) for _ in range(num_orders))
        self.act = nn.Identity() if is_linear else layers.act()

    def forward(self, x: Tensor, order: int) -> Tensor:
        """x (B, in_channels, H, W) -> (B, spec.channels, h, w), with the norm of ``order``, from
        0."""
        return self.act(self.norms[order](self.conv(x)))


class InceptionBlock(nn.Module):
    """F: parallel paths, concatenated, then a linear 1x1 projection. (B, C, H, W) -> the same."""

    def __init__(self, spec: BlockSpec, layers: Layers, *, dilation: int = 1) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            nn.Sequential(*(ConvUnit(channels, conv, layers, dilation=dilation)
                            for channels, conv in chain(spec.channels, path)))
            for path in spec.paths)
        self.projection = ConvUnit(joined_channels(spec), ConvSpec(spec.channels), layers,
                                   is_linear=True)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> F(x) of the same shape, before any activation."""
        return self.projection(torch.cat([path(x) for path in self.paths], dim=1))


class TiedInceptionBlock(nn.Module):
    """F of a poly module, evaluated at several orders.

    Args:
        share: 'conv' (the published network) shares the convolutions of the paths and gives each
            order its own projection; 'all' shares the projection's convolution too, which is what
            the same letter in the polynomial says. Norms are never shared.
    """

    def __init__(self, spec: BlockSpec, layers: Layers, *, num_orders: int, share: str,
                 dilation: int = 1) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            nn.ModuleList(TiedConvUnit(channels, conv, layers, num_orders=num_orders,
                                       dilation=dilation)
                          for channels, conv in chain(spec.channels, path))
            for path in spec.paths)
        joined, out = joined_channels(spec), ConvSpec(spec.channels)
        if share == 'all':
            self.projection = TiedConvUnit(joined, out, layers, num_orders=num_orders,
                                           is_linear=True)
        else:
            self.projections = nn.ModuleList(ConvUnit(joined, out, layers, is_linear=True)
                                             for _ in range(num_orders))
        self.share = share

    def forward(self, x: Tensor, order: int) -> Tensor:
        """x (B, C, H, W) -> F(x) of the same shape, with the norms of ``order``, counted
        from 0."""
        results = []
        for path in self.paths:
            y = x
            for unit in path:
                y = unit(y, order)
            results.append(y)
        joined = torch.cat(results, dim=1)
        if self.share == 'all':
            return self.projection(joined, order)
        return self.projections[order](joined)


def chain(in_channels: int, path: Sequence[ConvSpec]) -> list[tuple[int, ConvSpec]]:
    """Each convolution of a path with its input channels."""
    inputs = [in_channels, *(conv.channels for conv in path[:-1])]
    return list(zip(inputs, path, strict=True))


def joined_channels(spec: BlockSpec) -> int:
    """Channels of a block's paths side by side, which its projection reads."""
    return sum(path[-1].channels for path in spec.paths)


class PolyInception(nn.Module):
    """One module: act(x + s t1 + ... + s tn), every term computed once (the cascade).

    n-way: t_k = F_k(x). poly-n and mpoly-n: t_1 = F_1(x), t_k = F_k(act(t_{k-1})): the chain
    runs on the unscaled term, s weighs only what a term adds to the sum.

    Args:
        name: key of ``vision.polynet.core.arch.MODULE_FORMS``.
        stage: 'a', 'b' or 'c', which names the block.
        scale: s at evaluation, also the keep probability's effect; see ``drop``.
        drop: probability that a term is left out of the sum of one sample while training. A
            dropped lower term is still computed when a higher one needs it.
        is_inverted: divide kept terms by the keep probability while training and use s alone at
            evaluation; False (the published factors) multiplies by it at evaluation.
    """

    def __init__(self, name: str, stage: str, layers: Layers, *, share: str = 'conv',
                 scale: float = 1.0, drop: float = 0.0, is_inverted: bool = False,
                 dilation: int = 1) -> None:
        super().__init__()
        form = MODULE_FORMS[name]
        spec = BLOCKS[stage]
        self.order, self.is_chained, self.is_tied = form
        self.scale, self.drop, self.is_inverted = scale, drop, is_inverted
        if form.is_tied:
            self.block = TiedInceptionBlock(spec, layers, num_orders=form.order, share=share,
                                            dilation=dilation)
        else:
            setattr(self, form.block_list, nn.ModuleList(
                InceptionBlock(spec, layers, dilation=dilation) for _ in range(form.order)))
        self.act = layers.act()

    @property
    def blocks(self) -> nn.ModuleList:
        """The different blocks, first term first, of any form but poly-n."""
        return self.chain if self.is_chained else self._modules['blocks']

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the same shape, activated; C is 384, 1152 or 2048 in stage A,
        B or C."""
        total, source = x, x
        for order in range(self.order):
            term = self.block(source, order) if self.is_tied else self.blocks[order](source)
            total = total + self.weigh(term)
            if self.is_chained and order + 1 < self.order:
                source = self.act(term)  # in place is safe: nobody reads the bare term again
        return self.act(total)

    def weigh(self, term: Tensor) -> Tensor:
        """What the term (B, C, H, W) adds to the sum, of the same shape.

        While training, whole samples of it are dropped; in evaluation it is multiplied by one
        number, so a scalar does too.
        """
        if not self.training or self.drop == 0:
            keep = 1.0 if self.training or self.is_inverted else 1 - self.drop
            factor = self.scale * keep
            return term if factor == 1 else term * factor
        kept = torch.rand(len(term), 1, 1, 1, device=term.device) >= self.drop
        factor = self.scale / (1 - self.drop) if self.is_inverted else self.scale
        return term * (kept * factor).to(term.dtype)
