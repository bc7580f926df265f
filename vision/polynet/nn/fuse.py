"""PolyNet for inference: the same function of the image in fewer passes over memory.

What changes, all of it exact up to rounding:
- every norm is folded into its convolution; tied convolutions become one per order;
- 1x1 convolutions that read the same map become one wider convolution;
- the projections of an n-way module become one, x + s F(x) + s G(x) = x + sP_F f + sP_G g;
- adding to the running sum and ReLU happen inside the convolution (``torch_private``);
- path scales go into projections, except where the chain of poly and mpoly goes on: the next
  order reads ReLU of the unscaled term.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from vision.common.core.errors import VisionError
from vision.polynet.nn.blocks import ConvUnit, InceptionBlock, PolyInception, TiedInceptionBlock
from vision.polynet.nn.torch_private import Pair, convolve, pack_weight
from vision.polynet.nn.trunk import Parallel, PolyNetTrunk


@dataclass(frozen=True)
class Folded:
    """A convolution with its norm inside: weight (O, I, h, w), bias (O,)."""

    weight: Tensor
    bias: Tensor
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    @property
    def width(self) -> int:
        """Output channels O."""
        return len(self.weight)

    @property
    def is_pointwise(self) -> bool:
        """1x1 with stride 1: such convolutions of one map can run as one."""
        return self.weight.shape[2:] == (1, 1) and self.stride == (1, 1)


def fold(conv: nn.Module, norm: nn.Module, scale: float = 1.0) -> Folded:
    """scale * norm(conv(x)) as one convolution; computed in float64.

    Raises:
        VisionError: another kind of convolution, or a norm that looks at the batch.
    """
    if type(conv) is not nn.Conv2d or conv.groups != 1 or not isinstance(norm, BatchNorm) \
            or norm.running_mean is None:
        raise VisionError(
            'VIS-CONFIG-043', f'{type(conv).__name__} followed by {type(norm).__name__} cannot '
            'be fused', why='only a batch norm with running statistics is a fixed scale and '
            'shift per channel', do='run this network without fusion')
    weight = conv.weight.detach().double()
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.detach().double()
    bias = -norm.running_mean.double() * gain
    if norm.bias is not None:
        bias = bias + norm.bias.detach().double()
    dtype = conv.weight.dtype
    return Folded((weight * gain[:, None, None, None] * scale).to(dtype),
                  (bias * scale).to(dtype), conv.stride, conv.padding, conv.dilation)


class FusedConv(nn.Module):
    """A folded convolution, with ReLU unless ``is_linear``; adds its result to ``addend`` in
    place. The weight takes oneDNN's layout at the first call."""

    def __init__(self, folded: Folded, *, is_linear: bool = False) -> None:
        super().__init__()
        self.register_buffer('weight', folded.weight.contiguous())
        self.register_buffer('bias', folded.bias.contiguous())
        self.geometry = (folded.stride, folded.padding, folded.dilation)
        self.is_linear, self.is_packed, self.packed = is_linear, False, None

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """x (B, I, H, W) -> (B, O, h, w); ``addend`` (B, O, h, w) is added before ReLU and
        overwritten."""
        if not self.is_packed:
            self.packed = pack_weight(self.weight, *self.geometry, x.shape)
            self.is_packed = True
        return convolve(x, self.weight, self.packed, self.bias, *self.geometry,
                        has_relu=not self.is_linear, addend=addend)

    def _apply(self, fn, recurse: bool = True) -> FusedConv:
        self.is_packed, self.packed = False, None  # a new dtype or device needs a new packing
        return super()._apply(fn, recurse)


class FusedPaths(nn.Module):
    """Paths of one map, concatenated; their leading 1x1 convolutions run as one.

    Args:
        paths: convolutions of each path in order, or a module (a pool) as the whole path.
    """

    def __init__(self, paths: Sequence[Sequence[Folded] | nn.Module]) -> None:
        super().__init__()
        self.is_merged = [not isinstance(path, nn.Module) and path[0].is_pointwise
                          for path in paths]
        firsts = [path[0] for path, is_merged in zip(paths, self.is_merged, strict=True)
                  if is_merged]
        self.widths = [first.width for first in firsts]
        self.entry = FusedConv(Folded(torch.cat([first.weight for first in firsts]),
                                      torch.cat([first.bias for first in firsts]))
                               ) if firsts else None
        self.rests = nn.ModuleList(
            path if isinstance(path, nn.Module) else
            nn.Sequential(*(FusedConv(conv) for conv in path[is_merged:]))
            for path, is_merged in zip(paths, self.is_merged, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the paths' maps (B, sum of their channels, h, w), in the
        order given."""
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) \
            else torch.contiguous_format
        pieces = iter(self.entry(x).split(self.widths, 1)) if self.entry else iter(())
        results = []
        for rest, is_merged in zip(self.rests, self.is_merged, strict=True):
            y = next(pieces) if is_merged else x
            if is_merged and len(rest):
                y = y.contiguous(memory_format=layout)
            results.append(rest(y))
        return results[0] if len(results) == 1 else torch.cat(results, dim=1)


class FusedWays(nn.Module):
    """n-way: relu(x + s F(x) + s G(x) + ...); overwrites x."""

    def __init__(self, module: PolyInception, scale: float) -> None:
        super().__init__()
        projections = [fold(block.projection.conv, block.projection.norm, scale)
                       for block in module.blocks]
        self.paths = FusedPaths([path for block in module.blocks for path in paths_of(block)])
        self.projection = FusedConv(Folded(torch.cat([p.weight for p in projections], dim=1),
                                           sum(p.bias for p in projections)))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W), which is overwritten -> the module's output of the same shape."""
        return self.projection(self.paths(x), addend=x)


class FusedChain(nn.Module):
    """poly-n and mpoly-n: term k + 1 is computed on relu(term k); overwrites x."""

    def __init__(self, module: PolyInception, scale: float) -> None:
        super().__init__()
        self.scale = scale
        orders = range(module.order)
        self.paths = nn.ModuleList(
            FusedPaths(paths_of(module.block, k) if module.is_tied
                       else paths_of(module.blocks[k])) for k in orders)
        self.projections = nn.ModuleList()
        for k in orders:
            is_last = k + 1 == module.order
            folded = fold(*projection_of(module, k), scale if is_last else 1.0)
            self.projections.append(FusedConv(folded, is_linear=not is_last))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W), which is overwritten -> the module's output of the same shape."""
        source = x
        for paths, projection in zip(self.paths[:-1], self.projections[:-1], strict=True):
            term = projection(paths(source))
            x = x.add_(term, alpha=self.scale)
            source = term.relu_()
        return self.projections[-1](self.paths[-1](source), addend=x)


class ToLayout(nn.Module):
    """The image in the memory layout in which the network runs."""

    def __init__(self, layout: torch.memory_format) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, x: Tensor) -> Tensor:
        """The same numbers (B, C, H, W), copied only where the layout is another."""
        return x.contiguous(memory_format=self.layout)


def paths_of(block: InceptionBlock | TiedInceptionBlock, order: int = 0) -> list[list[Folded]]:
    """Folded convolutions of each path of a block; of a tied block with the norms of ``order``."""
    if isinstance(block, InceptionBlock):
        return [[fold_unit(unit) for unit in path] for path in block.paths]
    return [[fold(unit.conv, unit.norms[order]) for unit in path] for path in block.paths]


def projection_of(module: PolyInception, order: int) -> tuple[nn.Module, nn.Module]:
    """(convolution, norm) that end the term of ``order``, counted from 0; they may be tied."""
    if not module.is_tied:
        unit = module.blocks[order].projection
    elif module.block.share == 'all':
        return module.block.projection.conv, module.block.projection.norms[order]
    else:
        unit = module.block.projections[order]
    return unit.conv, unit.norm


def fold_unit(unit: ConvUnit) -> Folded:
    """The unit's convolution with its norm inside; the activation is left to who runs it."""
    return fold(unit.conv, unit.norm)


def fuse_parallel(parallel: Parallel) -> FusedPaths:
    """``Parallel`` for inference: branches are folded, those without parameters (pools) stay."""
    return FusedPaths([[fold_unit(unit) for unit in branch] if list(branch.parameters())
                       else branch for branch in parallel.branches])


def fuse_module(module: PolyInception) -> nn.Module:
    """``FusedWays`` or ``FusedChain`` of the module, with the factor that its terms have in
    evaluation."""
    scale = float(module.weigh(torch.ones((), dtype=torch.float64)))
    return (FusedChain if module.is_chained else FusedWays)(module, scale)


def fuse_trunk(trunk: PolyNetTrunk, layout: torch.memory_format) -> None:
    """Replace the parts of a trunk, in place, by fused ones; it can be trained no more.

    Args:
        layout: memory layout in which the network runs, ``torch.channels_last``, say.

    Raises:
        VisionError: VIS-CONFIG-044, an activation other than ReLU.
    """
    for act in (m.act for m in trunk.modules() if isinstance(m, ConvUnit | PolyInception)):
        if not isinstance(act, nn.ReLU | nn.Identity):
            raise VisionError('VIS-CONFIG-044', f'the activation {type(act).__name__} cannot be '
                              'fused', why='ReLU runs inside the convolution',
                              do='run this network without fusion')
    stem = trunk.stem
    stem.entry = nn.Sequential(ToLayout(layout),
                               *(FusedConv(fold_unit(unit)) for unit in stem.entry))
    for name, child in (*stem.named_children(), *trunk.named_children()):
        if isinstance(child, Parallel):
            setattr(stem if hasattr(stem, name) else trunk, name, fuse_parallel(child))
    for stage in trunk.stages:
        for index, module in enumerate(stage):
            stage[index] = fuse_module(module)
    trunk.uses_checkpoint = False


@torch.no_grad()
def fuse(model: nn.Module, *, is_channels_last: bool = True) -> nn.Module:
    """A copy of any model in which every PolyNet is fused; the model itself stays.

    Args:
        model: in evaluation mode; a trunk, a backbone, a classifier, a detector.
        is_channels_last: memory layout of PolyNet's maps, also of those that it returns.

    Raises:
        VisionError: training mode, no PolyNet inside, or layers that cannot be fused.
    """
    if model.training:
        raise VisionError('VIS-RUN-045', 'a model in training mode cannot be fused',
                          why='norms must stand on their running statistics',
                          do='call model.eval() before fuse(model)')
    model = copy.deepcopy(model).requires_grad_(False)
    trunks = [module for module in model.modules() if isinstance(module, PolyNetTrunk)]
    if not trunks:
        raise VisionError('VIS-CONFIG-046', f'there is no PolyNet in {type(model).__name__}',
                          do='fuse(model) is for models with a PolyNet backbone')
    for trunk in trunks:
        fuse_trunk(trunk, torch.channels_last if is_channels_last else torch.contiguous_format)
    return model
