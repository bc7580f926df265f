"""What benchmarks/memory.py trains: five networks with their batches, losses and blocks.

``blocks`` are what a user who checkpoints by hand would wrap: residual blocks, PolyNet modules,
transformer layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
NUM_CLASSES = 100
DETECTOR = ROOT / 'configs' / 'detectors' / 'faster-rcnn_r18-tiny_moving-sprites.py'


@dataclass(frozen=True)
class Task:
    """A network and what it learns from.

    Args:
        build: the network, in training mode.
        batches: batch size -> inputs that take turns, one a step; of several shapes where the
            task is multi-scale. The same at each call.
        loss: (network, one of the batches) -> scalar; it calls the network as a whole, so that
            a compiled one may stand in.
        blocks: modules that per-block checkpointing wraps.
        batch: base batch size.
        setting: for the reader of the results.
    """

    name: str
    build: Callable[[], nn.Module]
    batches: Callable[[int], list[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    blocks: Callable[[nn.Module], list[nn.Module]]
    batch: int
    setting: str


class Classifier(nn.Module):
    """Mean over the last map of a backbone, then a linear layer; (B, 3, H, W) -> (B, classes)."""

    def __init__(self, backbone: nn.Module, channels: int) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(channels, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1].mean((2, 3)))


class SequenceClassifier(nn.Module):
    """A linear embedding and encoder layers with dropout 0.1; (B, L, D) -> (B, classes).

    With the embedding the first layer's input has a gradient, as in any real model: reentrant
    checkpointing needs one.
    """

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.1, batch_first=True)
        self.embedding, self.encoder = nn.Linear(width, width), nn.TransformerEncoder(layer, depth)
        self.head = nn.Linear(width, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(x)).mean(1))


def classification_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def labelled(shape: tuple[int, ...]) -> Callable[[int], list[tuple[Tensor, Tensor]]]:
    """Two batches of noise of this shape per sample, with labels."""
    def batches(size: int) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        return [(torch.randn(size, *shape, generator=generator),
                 torch.randint(NUM_CLASSES, (size,), generator=generator)) for _ in range(2)]
    return batches


def resnet(depth: int, *, base_channels: int = 64, side: int = 128, batch: int = 8) -> Task:
    """mmdet's, bottlenecks, nothing frozen, norms in training mode, in-place ReLU."""
    def build() -> nn.Module:
        from mmdet.models.backbones import ResNet
        backbone = ResNet(depth, base_channels=base_channels, frozen_stages=-1, norm_eval=False)
        return Classifier(backbone, 32 * base_channels).train()

    def blocks(model: nn.Module) -> list[nn.Module]:
        return [block for index in range(4)
                for block in getattr(model.backbone, f'layer{index + 1}')]

    return Task(f'resnet{depth}', build, labelled((3, side, side)), classification_loss, blocks,
                batch, f'base_channels {base_channels}, {side} px')


def polynet(preset: str = 'very-deep', *, side: int = 139, batch: int = 2) -> Task:
    """Our trunk; scaled paths keep its sums finite."""
    def build() -> nn.Module:
        from vision.polynet.core.arch import PRESETS
        from vision.polynet.nn.trunk import CHANNELS, PolyNetTrunk
        arch = PRESETS[preset]
        trunk = PolyNetTrunk(arch, path_scales=(0.3,) * arch.num_modules)
        return Classifier(trunk, CHANNELS[-1]).train()

    def blocks(model: nn.Module) -> list[nn.Module]:
        return [*(module for stage in model.backbone.stages for module in stage),
                model.backbone.reduction_a, model.backbone.reduction_b]

    return Task('polynet', build, labelled((3, side, side)), classification_loss, blocks, batch,
                f'{preset}, {side} px')


def transformer(*, width: int = 256, depth: int = 6, heads: int = 8, length: int = 256,
                batch: int = 8) -> Task:
    return Task('transformer', lambda: SequenceClassifier(width, depth, heads).train(),
                labelled((length, width)), classification_loss,
                lambda model: list(model.encoder.layers), batch,
                f'width {width}, {depth} layers, length {length}, dropout 0.1')


def faster_rcnn(sizes: tuple[tuple[int, int], ...] = ((192, 256), (256, 320), (320, 416)), *,
                batch: int = 2) -> Task:
    """The half-width ResNet-18 detector of our configs; images (height, width) of several sizes
    in turn, four boxes each."""
    def build() -> nn.Module:
        from mmengine.config import Config
        from mmengine.registry import DefaultScope

        from vision.registry import MODELS
        with DefaultScope.overwrite_default_scope('vision'):
            return MODELS.build(Config.fromfile(str(DETECTOR)).model).train()

    def batches(count: int) -> list[tuple[Tensor, list]]:
        generator = torch.Generator().manual_seed(0)
        return [detection_batch(count, size, generator) for size in sizes]

    def loss(model: nn.Module, batch: tuple[Tensor, list]) -> Tensor:
        losses = model(*batch, mode='loss')
        parts = [part for value in losses.values()
                 for part in (value if isinstance(value, list) else [value])]
        # Accuracies stand among the losses; they have no gradient.
        return sum(part.mean() for part in parts if part.requires_grad)

    def blocks(model: nn.Module) -> list[nn.Module]:
        return [block for index in range(4)
                for block in getattr(model.backbone, f'layer{index + 1}')]

    return Task('frcnn', build, batches, loss, blocks, batch,
                'R-18 half width, ' + ' / '.join(f'{h} x {w}' for h, w in sizes) + ' px in turn')


def detection_batch(count: int, size: tuple[int, int], generator: torch.Generator
                    ) -> tuple[Tensor, list]:
    """Images (count, 3, H, W) of noise, and a sample with four boxes (pixels, xyxy) for each."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData
    height, width = size
    samples = []
    for _ in range(count):
        corner = torch.rand(4, 2, generator=generator) * torch.tensor([width / 2, height / 2])
        extent = 24 + torch.rand(4, 2, generator=generator) * 72
        sample = DetDataSample(metainfo=dict(
            img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size,
            scale_factor=(1.0, 1.0)))
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corner, corner + extent], 1),
            labels=torch.randint(8, (4,), generator=generator))
        samples.append(sample)
    return torch.randn(count, 3, height, width, generator=generator), samples


TASKS: dict[str, Callable[[], Task]] = dict(
    resnet50=lambda: resnet(50), resnet101=lambda: resnet(101), polynet=polynet,
    frcnn=faster_rcnn, transformer=transformer)
# A few seconds each: does everything run, not what does it cost.
SMALL_TASKS: dict[str, Callable[[], Task]] = dict(
    resnet50=lambda: resnet(50, base_channels=8, side=64, batch=4),
    resnet101=lambda: resnet(101, base_channels=8, side=64, batch=4),
    polynet=lambda: polynet('small', side=107, batch=4),
    frcnn=lambda: faster_rcnn(((96, 128), (128, 160)), batch=1),
    transformer=lambda: transformer(width=32, depth=3, heads=2, length=64, batch=4))
