"""Registered backbones of this room."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mmengine.model import BaseModule
from torch import Tensor

from vision.classify.nn.vit import ARCHS, VitArch, VitTrunk
from vision.common.core.errors import VisionError
from vision.registry import MODELS


@MODELS.register_module()
class VisionTransformer(BaseModule):
    """Vision Transformer (arXiv:2010.11929) as a backbone: images to a tuple of one (B, C).

    Args:
        arch: 'tiny' (192 channels, 12 layers, 3 heads), 'small' (384, 12, 6) or 'base' (768, 12,
            12); MMPretrain calls the first two 'deit-tiny' and 'deit-small', and means another
            network by its own 'small'. Or a dict with embed_dims, num_layers, num_heads and
            feedforward_channels.
        img_size: height and width in pixels; other sizes are refused.
        patch_size, in_channels: of the embedding.
        drop_rate: dropout after the embedding and in each layer.
        drop_path_rate: stochastic depth of the last layer; layers before grow to it from 0.
        qkv_bias, final_norm, out_type: see ``VitTrunk``.
        init_cfg: None is the published initialisation.

    Raises:
        VisionError: VIS-CONFIG-1246, an option that is not possible.
    """

    def __init__(self, arch: str | Mapping = 'base', *, img_size: int = 224, patch_size: int = 16,
                 in_channels: int = 3, drop_rate: float = 0.0, drop_path_rate: float = 0.0,
                 qkv_bias: bool = True, final_norm: bool = True, out_type: str = 'cls_token',
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg)
        arch = _arch(arch)
        for name, value in (('drop_rate', drop_rate), ('drop_path_rate', drop_path_rate)):
            _check(0 <= value < 1, f'{name}={value}', f'0 <= {name} < 1')
        _check(out_type in ('cls_token', 'avg_featmap'), f'out_type={out_type!r}',
               "'cls_token' or 'avg_featmap'")
        _check(isinstance(img_size, int) and isinstance(patch_size, int) and patch_size > 0
               and img_size > 0 and img_size % patch_size == 0,
               f'img_size={img_size} with patch_size={patch_size}',
               'one side of the square image, a multiple of patch_size')
        self.out_channels = (arch.embed_dims,)
        self.trunk = VitTrunk(arch, img_size=img_size, patch_size=patch_size,
                              in_channels=in_channels, drop_rate=drop_rate,
                              drop_path_rate=drop_path_rate, qkv_bias=qkv_bias,
                              final_norm=final_norm, out_type=out_type)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (B, in_channels, img_size, img_size) -> a tuple of one (B, C)."""
        return (self.trunk(x),)

    def pipeline_stages(self) -> list[tuple[str, Callable[..., Tensor] | None]]:
        """(name, run) of the parts that a pipeline may put on different ranks, in order."""
        return [(f'trunk.{name}', run) for name, run in self.trunk.pipeline_stages()]

    def init_weights(self) -> None:
        """The published initialisation, then what ``init_cfg`` says."""
        if not self._is_init:
            self.trunk.reset_parameters()  # a model built without memory has no values yet
        super().init_weights()


def _arch(arch: str | Mapping) -> VitArch:
    if isinstance(arch, str):
        _check(arch in ARCHS, f'arch={arch!r}', f'one of {", ".join(ARCHS)}, or a dict with '
               f'{", ".join(VitArch._fields)}')
        return ARCHS[arch]
    _check(set(arch) == set(VitArch._fields), f'arch with keys {", ".join(sorted(arch))}',
           f'the keys {", ".join(VitArch._fields)}')
    found = VitArch(**arch)
    _check(all(isinstance(value, int) and value > 0 for value in found)
           and found.embed_dims % found.num_heads == 0, f'arch={dict(arch)}',
           'positive numbers, with embed_dims a multiple of num_heads')
    return found


def _check(is_possible: bool, given: str, allowed: str) -> None:
    if not is_possible:
        raise VisionError('VIS-CONFIG-1246', f'{given} is not possible', where='VisionTransformer',
                          do=f'give {allowed}')
