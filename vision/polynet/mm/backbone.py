"""The registered backbone: config in, trunk out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import load_checkpoint
from vision.polynet.core.arch import Arch, find_arch, path_drops, released_path_scales
from vision.polynet.core.insertion import is_projection_affine
from vision.polynet.nn.blocks import Layers
from vision.polynet.nn.insertion import evaluation_factor
from vision.polynet.nn.pretrained import is_published, load_pretrained
from vision.polynet.nn.trunk import CHANNELS, STRIDES, PolyNetTrunk
from vision.registry import MODELS
from vision.zoo import resolve

NUM_LEVELS = len(CHANNELS)
# The published factors have six decimals; a path drop of 0.3 gives the same unrounded.
SCALE_TOLERANCE = 1e-5


@MODELS.register_module()
class PolyNet(BaseModule):
    """PolyNet (arXiv:1611.05725) as a backbone.

    Args:
        arch: a preset's name ('very-deep', 'mixed-b', 'small', 'ir-3-6-3', 'ir-3-6-3_b-poly-3',
            ...; see ``vision.polynet.core.arch.PRESETS``) or three lists of module names.
        share: what poly-n modules share over their orders: 'conv' (published network) or 'all'.
        out_indices: levels to return: stem 0 (stride 2) and 1 (stride 4), stages A 2, B 3, C 4;
            negative ones count from the end. Nothing above the highest is built.
        frozen_stages: -1 nothing, 0 stem, 1 + stage A, 2 + reduction A and stage B, 3 everything.
        norm_eval: keep running statistics fixed while training.
        with_cp: recompute activations in the backward pass, module by module.
        output_stride: 8, 16 or 32.
        padding_mode: 'valid' (published weights) or 'same' (maps of ceil(size / stride), which
            pyramids and anchors expect). The same weights fit both.
        in_channels: channels of the image.
        path_scales: factors of the modules' terms, one per module; 'released' means those of the
            published network (a constant of its code); None means 1.
        residual_scale: one more factor on every term.
        path_drop_rate: probability of the last module's terms to be dropped while training, over
            modules growing linearly from 0 ('linear') or equal ('constant') by
            ``path_drop_schedule``.
        path_drop_inverted: scale kept terms up while training, instead of scaling all terms down
            at evaluation.
        norm_cfg, conv_cfg, act_cfg: as in MMDetection.
        zero_init_residual: begin with zero weights in the projections' norms: every module is
            then the identity at first (as ResNet's option of this name in MMDetection).
        init_cfg: default is Kaiming for convolutions and 1 for norms; see ``init_weights``.
    """

    def __init__(self, arch: str | Sequence[Sequence[str]] | Arch = 'very-deep', *,
                 share: str = 'conv', out_indices: Sequence[int] = (4,), frozen_stages: int = -1,
                 norm_eval: bool = False, with_cp: bool = False, output_stride: int = 32,
                 padding_mode: str = 'valid', in_channels: int = 3,
                 path_scales: Sequence[float] | str | None = None, residual_scale: float = 1.0,
                 path_drop_rate: float = 0.0, path_drop_schedule: str = 'linear',
                 path_drop_inverted: bool = False, norm_cfg: dict | None = None,
                 conv_cfg: dict | None = None, act_cfg: dict | None = None,
                 zero_init_residual: bool = False, init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg if init_cfg is not None else _default_init())
        arch = find_arch(arch)
        out_indices = _levels(out_indices)
        _check_choice('share', share, ('conv', 'all'))
        _check_choice('output_stride', output_stride, (8, 16, 32))
        _check_choice('padding_mode', padding_mode, ('valid', 'same'))
        _check_choice('path_drop_schedule', path_drop_schedule, ('linear', 'constant'))
        _check_choice('frozen_stages', frozen_stages, (-1, 0, 1, 2, 3))
        self.arch, self.frozen_stages, self.norm_eval = arch, frozen_stages, norm_eval
        self.zero_init_residual = zero_init_residual
        self.out_channels = tuple(CHANNELS[level] for level in out_indices)
        self.strides = tuple(min(STRIDES[level], output_stride) for level in out_indices)
        self.path_drops = path_drops(arch.num_modules, path_drop_rate, path_drop_schedule)
        self.trunk = PolyNetTrunk(
            arch, out_levels=out_indices, in_channels=in_channels, share=share,
            layers=_layers(norm_cfg, conv_cfg, act_cfg, is_same=padding_mode == 'same'),
            path_scales=_scales(path_scales, residual_scale, arch.num_modules),
            path_drops=self.path_drops, is_inverted=path_drop_inverted,
            output_stride=output_stride, uses_checkpoint=with_cp)
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (B, in_channels, H, W) -> a map (B, out_channels[i], h, w) for each of
        ``out_indices``.

        h and w are H and W over ``strides[i]``, rounded up with ``padding_mode='same'`` and less a
        border without padding.

        Raises:
            VisionError: an image below 75 px without padding.
        """
        return self.trunk(x)

    def pipeline_stages(self) -> list[tuple[str, Callable[..., Tensor]]]:
        """(name, run) of the parts that a pipeline may put on different ranks, in order."""
        return [(f'trunk.{name}', run) for name, run in self.trunk.pipeline_stages()]

    def init_weights(self) -> None:
        """As ``init_cfg`` says. ``Pretrained`` takes a file or zoo:NAME with the tensors of this
        architecture, this repository's or the published port's, and refuses any other by name;
        ``in_channels`` and fewer levels are adapted to. The published network's path scales are
        no tensors: a backbone that weighs its terms otherwise is told so in the log."""
        if self._is_init:
            return
        given = self.init_cfg
        steps = [given] if isinstance(given, dict) else list(given)
        pretrained = [step for step in steps if step['type'] == 'Pretrained']
        for step in pretrained:
            _check_pretrained(step)
        self.init_cfg = [step for step in steps if step not in pretrained]
        super().init_weights()
        self.init_cfg = given
        if self.zero_init_residual:
            self._silence_projections()
        for step in pretrained:
            content = load_checkpoint(resolve(step['checkpoint']))
            load_pretrained(self.trunk, content['state_dict'], prefix=step.get('prefix'),
                            where=step['checkpoint'])
            if is_published(content):
                self._compare_with_released_scales(step['checkpoint'])

    @torch.no_grad()
    def _silence_projections(self) -> None:
        for name, parameter in self.trunk.named_parameters():
            if is_projection_affine(name):
                parameter.zero_()

    def _compare_with_released_scales(self, checkpoint: str) -> None:
        own = [evaluation_factor(module) for stage in self.trunk.stages for module in stage]
        released = released_path_scales(self.arch.num_modules)[:len(own)]
        differences = [abs(a - b) for a, b in zip(own, released, strict=True)]
        if max(differences, default=0.0) > SCALE_TOLERANCE:
            print_log(f'{checkpoint} belongs to a network with terms weighed by 1 to 0.7 from the '
                      'first module to the last; this backbone weighs them otherwise (up to '
                      f"{max(differences):.2g}) and computes another function: path_scales="
                      "'released', residual_scale=1 and no path drop give the published one",
                      logger='current', level=logging.WARNING)

    def enable_path_drop(self, is_on: bool) -> None:
        """Switch between the drop probabilities given and none (``PathDropHook``)."""
        modules = [module for stage in self.trunk.stages for module in stage]
        for module, drop in zip(modules, self.path_drops, strict=False):
            module.drop = drop if is_on else 0.0

    def train(self, mode: bool = True) -> PolyNet:
        """As in torch, but frozen stages stay in evaluation, and all norms with ``norm_eval``."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, BatchNorm):
                    module.eval()
        return self

    def _freeze(self) -> None:
        for part in self.parts()[:self.frozen_stages + 1]:
            for module in part:
                module.eval()
                module.requires_grad_(False)

    def parts(self) -> list[list[nn.Module]]:
        """What ``frozen_stages`` counts: the stem, then stages with the reduction before them."""
        trunk = self.trunk
        parts = [[trunk.stem]]
        for index, stage in enumerate(trunk.stages):
            before = [getattr(trunk, f'reduction_{"ab"[index - 1]}')] if index > 0 else []
            parts.append([*before, stage])
        return parts

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """(depth, number of depths) of a parameter for layer-wise learning-rate decay: 0 the stem,
        then the modules in order, those that were built; a reduction counts with the module that
        follows; what does not begin with ``prefix`` (neck, heads) comes last. With fewer levels
        than all (``out_indices``) the last module is still next to the head."""
        num_depths = sum(map(len, self.trunk.stages)) + 2
        if not param_name.startswith(f'{prefix}trunk.'):
            return num_depths - 1, num_depths
        parts = param_name.removeprefix(f'{prefix}trunk.').split('.')
        firsts = dict(zip('abc', (0, self.arch.depths[0], sum(self.arch.depths[:2])),
                          strict=True))
        if parts[0].startswith('stage_'):
            return 1 + firsts[parts[0][-1]] + int(parts[1]), num_depths
        if parts[0].startswith('reduction_'):
            return 1 + firsts[chr(ord(parts[0][-1]) + 1)], num_depths
        return 0, num_depths


def _check_pretrained(step: dict) -> None:
    unknown = sorted(set(step) - {'type', 'checkpoint', 'prefix', 'map_location'})
    if unknown or not step.get('checkpoint'):
        raise VisionError('VIS-CONFIG-064', f'init_cfg has no {unknown[0]!r}' if unknown else
                          'init_cfg of type Pretrained names no checkpoint',
                          where='backbone.init_cfg', do="init_cfg=dict(type='Pretrained', "
                          "checkpoint=PATH or 'zoo:NAME'), and prefix=... when the backbone lies "
                          'inside a larger checkpoint')


def _levels(out_indices: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(out_indices, Sequence | range):
        raise VisionError('VIS-CONFIG-016', f'out_indices={out_indices!r} is no list of levels',
                          do=f'write out_indices=({out_indices},) for one level')
    if not out_indices or any(level not in range(-NUM_LEVELS, NUM_LEVELS)
                              for level in out_indices):
        raise VisionError('VIS-CONFIG-020', f'out_indices={tuple(out_indices)} names a level that '
                          'PolyNet does not have', do=f'levels are 0..{NUM_LEVELS - 1}, or '
                          'negative to count from the end')
    return tuple(level % NUM_LEVELS for level in out_indices)


def _check_choice(name: str, value, allowed: tuple) -> None:
    if value not in allowed:
        raise VisionError('VIS-CONFIG-017', f'{name}={value!r} is not possible for PolyNet',
                          do=f'one of {", ".join(map(repr, allowed))}')


def _scales(path_scales: Sequence[float] | str | None, residual_scale: float,
            num_modules: int) -> tuple[float, ...]:
    if isinstance(path_scales, str):
        if path_scales != 'released':
            raise VisionError('VIS-CONFIG-021', f'path_scales={path_scales!r} means nothing',
                              do="give one factor per module, or 'released'")
        path_scales = released_path_scales(num_modules)
    scales = (1.0,) * num_modules if path_scales is None else tuple(path_scales)
    if len(scales) != num_modules:
        raise VisionError('VIS-CONFIG-018', f'{len(scales)} path_scales for {num_modules} modules',
                          do="give one factor per module, or 'released'")
    return tuple(scale * residual_scale for scale in scales)


def _layers(norm_cfg: dict | None, conv_cfg: dict | None, act_cfg: dict | None, *,
            is_same: bool) -> Layers:
    norm_cfg = norm_cfg or dict(type='BN')
    act_cfg = act_cfg or dict(type='ReLU', inplace=True)
    return Layers(conv=partial(build_conv_layer, conv_cfg),
                  norm=partial(_norm, norm_cfg),
                  act=partial(build_activation_layer, act_cfg), is_same=is_same)


def _norm(norm_cfg: dict, channels: int) -> nn.Module:
    return build_norm_layer(norm_cfg, channels)[1]


def _default_init() -> list[dict]:
    return [dict(type='Kaiming', layer='Conv2d'),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm'])]
