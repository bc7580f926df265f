"""Registered backbones and the neck that makes an embedding of any backbone's maps."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from vision.faces.nn.backbones.iresnet import IResNetTrunk
from vision.faces.nn.backbones.lean import lean_trunk
from vision.faces.nn.backbones.mobilefacenet import MobileFaceNetTrunk
from vision.registry import MODELS


@MODELS.register_module()
class MobileFaceNet(BaseModule):
    """``MobileFaceNetTrunk`` as a backbone: images (B, C, S, S) to embeddings (B, dim)."""

    def __init__(self, dim: int = 128, *, image_size: int = 112, in_channels: int = 3,
                 stem_stride: int = 2, variant: str = 'paper',
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg)
        self.trunk = MobileFaceNetTrunk(dim, image_size=image_size, in_channels=in_channels,
                                        stem_stride=stem_stride, variant=variant)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, S, S) -> embeddings (B, dim), not normalised."""
        return self.trunk(x)


@MODELS.register_module()
class IResNet(BaseModule):
    """``IResNetTrunk`` as a backbone: images (B, C, S, S) to embeddings (B, dim)."""

    def __init__(self, depth: int = 50, dim: int = 512, *, image_size: int = 112,
                 in_channels: int = 3, dropout: float = 0.0, with_cp: bool = False,
                 width: float = 1.0, stem_stride: int = 1,
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg)
        self.trunk = IResNetTrunk(depth, dim, image_size=image_size, in_channels=in_channels,
                                  dropout=dropout, with_cp=with_cp, width=width,
                                  stem_stride=stem_stride)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, S, S) -> embeddings (B, dim), not normalised."""
        return self.trunk(x)


@MODELS.register_module()
class LeanResNet(BaseModule):
    """``lean_trunk`` as a backbone: small images (B, C, S, S) to embeddings (B, dim)."""

    def __init__(self, width: int = 24, dim: int = 64, *, image_size: int = 32,
                 in_channels: int = 1, init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg)
        self.trunk = lean_trunk(width, dim, in_channels=in_channels, image_size=image_size)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, image_size, image_size) -> embeddings (B, dim)."""
        return self.trunk(x)


@MODELS.register_module()
class EmbeddingNeck(BaseModule):
    """Pooled last map to embedding, for backbones of other rooms such as PolyNet.

    Args:
        in_channels: channels of the backbone's last map.
        dim: length of the embedding.
        dropout: probability, before the linear layer.

    Shapes: tuple of maps, the last (B, in_channels, h, w) -> (B, dim), not normalised.
    """

    def __init__(self, in_channels: int, dim: int = 128, *, dropout: float = 0.0,
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_channels, dim, bias=False)  # batch norm has one
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, maps: Sequence[Tensor] | Tensor) -> Tensor:
        """Maps, of which the last (B, in_channels, h, w) is used -> (B, dim), not normalised."""
        last = maps if isinstance(maps, Tensor) else maps[-1]
        return self.norm(self.linear(self.dropout(last.mean((2, 3)))))
