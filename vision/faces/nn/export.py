"""An embedder as one ONNX file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vision.common.nn.onnx_export import export_onnx

# Embeddings are unit vectors. Float32 convolutions of the two libraries differ by about 1e-6
# there; a wrong channel order or a missing flip by more than 1e-2.
TOLERANCE = 1e-4


def export_embedder(embedder: nn.Module, target: Path, *, image_size: int = 112,
                    tolerance: float = TOLERANCE) -> float:
    """Images (B, 3, S, S) float32 BGR 0..255 to embeddings (B, d); the largest difference."""
    batches = [images(num, image_size) for num in (2, 1, 5)]
    return export_onnx(embedder, batches, target, output='embeddings', tolerance=tolerance,
                       metadata=dict(task='faces'))


def images(num: int, size: int, channels: int = 3) -> Tensor:
    """(num, channels, size, size) float32 0..255: noise, then gradients that mirroring changes."""
    generator = torch.Generator().manual_seed(num)
    noise = torch.rand(num, channels, size, size, generator=generator) * 255
    ramp = torch.linspace(0, 255, size).expand(num, channels, size, size)
    return torch.where(torch.arange(num).view(-1, 1, 1, 1) % 2 == 0, noise, ramp.contiguous())
