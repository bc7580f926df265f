"""The PolyNet trunk: stem, stages A, B, C and the reductions between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from math import ceil, inf

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.utils.checkpoint import checkpoint

from vision.common.core.errors import VisionError
from vision.polynet.core.arch import STAGES, Arch
from vision.polynet.nn.blocks import ConvSpec, ConvUnit, Layers, PolyInception

CHANNELS = (64, 192, 384, 1152, 2048)
STRIDES = (2, 4, 8, 16, 32)
SMALLEST_INPUT = 75  # without padding: maps of 7, 3 and 1 in the three stages

# Part of each stage's modules, from the first, that ``uses_checkpoint`` recomputes. A module of
# stage C does as much work as one of B for a third of the activations, so C is kept; the last of
# B are kept because the memory bar (0.45 of the activations) leaves room for them.
RECOMPUTED = dict(a=1.0, b=0.8, c=0.0)


class Parallel(nn.Module):
    """Branches side by side, concatenated over channels in the order given."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, sum of the branches' channels, h, w); their maps must be equally
        large."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def conv_path(in_channels: int, specs: Iterable[ConvSpec], layers: Layers,
              dilation: int = 1) -> nn.Sequential:
    """Convolution units one after the other, the first of which reads ``in_channels`` channels."""
    units = []
    for spec in specs:
        units.append(ConvUnit(in_channels, spec, layers, dilation=dilation))
        in_channels = spec.channels
    return nn.Sequential(*units)


def pool(layers: Layers, *, stride: int = 2, dilation: int = 1) -> nn.Module:
    """3x3 maximum; dilated only with stride 1."""
    if dilation > 1:  # torch pads a pool by half its undilated window at most
        return nn.Sequential(nn.ConstantPad2d(dilation, -inf),
                             nn.MaxPool2d(3, stride=stride, dilation=dilation))
    return nn.MaxPool2d(3, stride=stride, padding=1 if layers.is_same or stride == 1 else 0)


class Stem(nn.Module):
    """(B, C, H, W) -> levels 0 and 1 and 384 channels at stride 8, as far as it is built.

    Args:
        num_parts: 1 builds what level 0 needs, 2 also level 1, 3 everything.
    """

    def __init__(self, in_channels: int, layers: Layers, num_parts: int = 3) -> None:
        super().__init__()
        self.entry = conv_path(in_channels, (
            ConvSpec(32, (3, 3), stride=2), ConvSpec(32, (3, 3)), ConvSpec(64, (3, 3), pad=True)),
            layers)
        self.num_parts = num_parts
        if num_parts == 1:
            return
        self.mix1 = Parallel(pool(layers), conv_path(64, [ConvSpec(96, (3, 3), 2)], layers))
        self.mix2 = Parallel(
            conv_path(160, (ConvSpec(64), ConvSpec(96, (3, 3))), layers),
            conv_path(160, (ConvSpec(64), ConvSpec(64, (7, 1), pad=True),
                            ConvSpec(64, (1, 7), pad=True), ConvSpec(96, (3, 3))), layers))
        if num_parts == 2:
            return
        self.mix3 = Parallel(pool(layers), conv_path(192, [ConvSpec(192, (3, 3), 2)], layers))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (B, in_channels, H, W) -> what is built of level 0 (B, 64, h, w) at stride 2, level 1
        (B, 192, h, w) at stride 4 and the entry of stage A (B, 384, h, w) at stride 8."""
        level0 = self.entry(x)
        if self.num_parts == 1:
            return (level0,)
        level1 = self.mix2(self.mix1(level0))
        return (level0, level1) if self.num_parts == 2 else (level0, level1, self.mix3(level1))


def reduction(letter: str, layers: Layers, *, stride: int, dilation: int) -> Parallel:
    """Between stages: A is 384 -> 1152, B is 1152 -> 2048 channels.

    With ``stride=1`` the windows that halve the map pad by one step instead, so that the map
    keeps its size (atrous form).
    """

    def halving(channels: int) -> ConvSpec:
        return ConvSpec(channels, (3, 3), stride, pad=stride == 1)

    if letter == 'a':
        width, paths = 384, ((ConvSpec(256), ConvSpec(256, (3, 3), pad=True), halving(384)),
                             (halving(384),))
    else:
        width, paths = 1152, ((ConvSpec(256), ConvSpec(256, (3, 3), pad=True), halving(256)),
                              (ConvSpec(256), halving(256)), (ConvSpec(256), halving(384)))
    branches = [conv_path(width, path, layers, dilation) for path in paths]
    return Parallel(*branches, pool(layers, stride=stride, dilation=dilation))


class PolyNetTrunk(nn.Module):
    """PolyNet without its classifier (arXiv:1611.05725).

    Args:
        arch: module names of the three stages.
        out_levels: levels to return, 0..4 (stride 2, 4, 8, 16, 32 and ``CHANNELS`` channels).
            Stages above the highest are not built, so that every parameter is used.
        path_scales: factor of each module's terms, one per module through A, B, C.
        path_drops: probability to drop each module's terms while training.
        output_stride: 8, 16 or 32; below 32 the last reductions keep the map's size and what
            follows is dilated.
        uses_checkpoint: recompute activations in the backward pass, module by module, for those
            that ``RECOMPUTED`` names.

    Shapes: x (B, in_channels, H, W) -> one (B, C, h, w) per level; a 331 px input without
        padding gives maps of 163, 79, 39, 19, 9.

    Raises:
        VisionError: an image below 75 px without padding (the last maps would be empty).
    """

    def __init__(self, arch: Arch, *, out_levels: Sequence[int] = (4,), in_channels: int = 3,
                 layers: Layers | None = None, share: str = 'conv',
                 path_scales: Sequence[float] | None = None,
                 path_drops: Sequence[float] | None = None, is_inverted: bool = False,
                 output_stride: int = 32, uses_checkpoint: bool = False) -> None:
        super().__init__()
        layers = layers or Layers()
        self.out_levels, self.layers, self.uses_checkpoint = tuple(out_levels), layers, \
            uses_checkpoint
        scales = path_scales or (1.0,) * arch.num_modules
        drops = path_drops or (0.0,) * arch.num_modules
        dilations = {32: (1, 1, 1), 16: (1, 1, 2), 8: (1, 2, 4)}[output_stride]
        self.stem = Stem(in_channels, layers, num_parts=min(max(self.out_levels) + 1, 3))
        first = 0
        for index, (letter, names) in enumerate(zip(STAGES, arch.stages, strict=True)):
            if index + 2 > max(self.out_levels):
                break
            if index > 0:
                stride = 1 if dilations[index] > dilations[index - 1] else 2
                self.add_module(f'reduction_{STAGES[index - 1]}', reduction(
                    STAGES[index - 1], layers, stride=stride, dilation=dilations[index - 1]))
            self.add_module(f'stage_{letter}', nn.Sequential(*(
                PolyInception(name, letter, layers, share=share, scale=scales[first + i],
                              drop=drops[first + i], is_inverted=is_inverted,
                              dilation=dilations[index])
                for i, name in enumerate(names))))
            first += len(names)

    @property
    def stages(self) -> list[nn.Sequential]:
        """The stages that were built."""
        return [getattr(self, f'stage_{letter}') for letter in STAGES
                if hasattr(self, f'stage_{letter}')]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (B, in_channels, H, W) -> the levels of ``out_levels`` in their order."""
        *levels, x = run_stem(self.stem, x, is_padded=self.layers.is_same)
        if self.stem.num_parts < 3:  # nothing above is asked for
            levels.append(x)
        for index, stage in enumerate(self.stages):
            if index > 0:
                x = getattr(self, f'reduction_{STAGES[index - 1]}')(x)
            for module, is_recomputed in zip(stage, self.recomputed(index), strict=True):
                x = run_module(module, x, is_recomputed=is_recomputed)
            levels.append(x)
        return tuple(levels[level] for level in self.out_levels)

    def recomputed(self, index: int) -> list[bool]:
        """Whether each module of a stage is recomputed in the backward pass."""
        stage = self.stages[index]
        num_recomputed = ceil(RECOMPUTED[STAGES[index]] * len(stage))
        return [self.uses_checkpoint and position < num_recomputed
                for position in range(len(stage))]

    def pipeline_stages(self) -> list[tuple[str, Callable[..., Tensor]]]:
        """(name, run) of stem, modules and reductions in order: ``run(module, x)`` gives the x of
        the next, the last the one level of ``out_levels`` as a bare tensor.

        Raises:
            VisionError: VIS-CONFIG-1245, more than one level.
        """
        if len(self.out_levels) > 1:
            raise VisionError('VIS-CONFIG-1245', f'PolyNet with levels {self.out_levels} cannot '
                              'be cut for a pipeline', where='backbone.out_indices',
                              why='from one module to the next goes one map',
                              do='keep one level, as a classifier needs it: out_indices=(4,)')
        pieces: list[tuple[str, Callable[..., Tensor]]] = [
            ('stem', partial(run_stem_alone, is_padded=self.layers.is_same))]
        for index in range(len(self.stages)):
            if index > 0:
                pieces.append((f'reduction_{STAGES[index - 1]}', run_module))
            pieces += [(f'stage_{STAGES[index]}.{position}',
                        partial(run_module, is_recomputed=is_recomputed))
                       for position, is_recomputed in enumerate(self.recomputed(index))]
        return pieces


def run_stem(stem: Stem, x: Tensor, *, is_padded: bool) -> tuple[Tensor, ...]:
    """Levels of the stem of an image x (B, C, H, W), as ``Stem.forward`` gives them.

    Raises:
        VisionError: VIS-INPUT-014, H or W is below 75 px and nothing is padded.
    """
    if not is_padded and min(x.shape[-2:]) < SMALLEST_INPUT:
        height, width = x.shape[-2:]
        raise VisionError(
            'VIS-INPUT-014', f'image of {height}x{width} pixels is too small for PolyNet '
            'without padding', why=f'below {SMALLEST_INPUT} pixels the map of stage C is '
            'empty', do=f"make it at least {SMALLEST_INPUT} pixels, or build with "
            "padding_mode='same'")
    return stem(x)


def run_stem_alone(stem: Stem, x: Tensor, *, is_padded: bool) -> Tensor:
    """The stem's highest level alone of an image (B, C, H, W): all that a pipeline sends on."""
    return run_stem(stem, x, is_padded=is_padded)[-1]


def run_module(module: nn.Module, x: Tensor, *, is_recomputed: bool = False) -> Tensor:
    """x (B, C, H, W) -> what the module gives. With ``is_recomputed`` its activations are made
    again in the backward pass, and its norms count the batch once."""
    if not (is_recomputed and x.requires_grad):
        return module(x)
    return checkpoint(module, x, use_reentrant=False,
                      context_fn=lambda: (nullcontext(), frozen_statistics(module)))


@contextmanager
def frozen_statistics(module: nn.Module):
    """Norms inside normalise by the batch as before, but leave their running statistics alone:
    recomputing a forward pass must not count its batch twice."""
    norms = [child for child in module.modules()
             if isinstance(child, BatchNorm) and child.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, count) in zip(norms, before, strict=True):
        # Momentum 0 keeps r = (1 - 0) r + 0 b exactly; a copy counts, SyncBatchNorm wants one.
        norm.momentum, norm.num_batches_tracked = 0.0, count.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
