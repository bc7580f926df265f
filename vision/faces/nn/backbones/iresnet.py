"""IR-ResNet, the residual network of ArcFace's released models (arXiv:1801.07698, section 3.2.2).

The stem keeps the resolution (3x3, stride 1, no pooling), a block begins with batch norm and has
one PReLU, and a fully connected layer over the last map makes the embedding. Tensors have the
names of the InsightFace project, so that its PyTorch weights load unchanged.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vision.faces.nn.backbones.mobilefacenet import check_backbone, check_size

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
CHANNELS = (64, 128, 256, 512)
STRIDE = 16


class IResNetTrunk(nn.Module):
    """IR-ResNet from image to embedding.

    Args:
        depth: 18, 34, 50 or 100.
        dim: length of the embedding.
        image_size: height and width in pixels, a multiple of 16.
        in_channels: channels of the image.
        dropout: probability, before the fully connected layer.
        with_cp: recompute blocks in the backward pass to save memory.
        width: factor on the channels 64, 128, 256, 512 (ours, for small images and machines).
        stem_stride: 1 in the paper; 2 leaves a quarter of the work.

    Shapes: (B, in_channels, image_size, image_size) -> (B, dim), not normalised.

    Raises:
        VisionError: VIS-CONFIG-1004; VIS-INPUT-1010, images of another size.
    """

    def __init__(self, depth: int = 50, dim: int = 512, *, image_size: int = 112,
                 in_channels: int = 3, dropout: float = 0.0, with_cp: bool = False,
                 width: float = 1.0, stem_stride: int = 1) -> None:
        super().__init__()
        stride, widths = STRIDE * stem_stride, [round(width * each) for each in CHANNELS]
        check_backbone('IResNet', depth in DEPTHS, f'depth={depth}',
                       f'one of {", ".join(map(str, DEPTHS))}')
        check_backbone('IResNet', min(widths) > 0, f'width={width}', 'a factor such as 0.5 or 1')
        check_backbone('IResNet', stem_stride > 0 and image_size > 0 and image_size % stride == 0,
                       f'image_size={image_size}', f'a multiple of {stride} (the total stride)')
        self.dim, self.image_size, self.with_cp = dim, image_size, with_cp
        self.conv1 = _conv3x3(in_channels, widths[0], stem_stride)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        before = widths[0]
        for index, (num_blocks, channels) in enumerate(zip(DEPTHS[depth], widths, strict=True)):
            blocks = [Block(before, channels, 2)]
            blocks += [Block(channels, channels, 1) for _ in range(num_blocks - 1)]
            setattr(self, f'layer{index + 1}', nn.Sequential(*blocks))
            before = channels
        self.bn2 = nn.BatchNorm2d(before)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(before * (image_size // stride) ** 2, dim)
        self.features = nn.BatchNorm1d(dim)
        self._initialise()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_channels, image_size, image_size) -> (B, dim), not normalised."""
        check_size(x, self.image_size)
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                recompute = self.with_cp and x.requires_grad
                x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return self.features(self.fc(self.dropout(self.bn2(x).flatten(1))))

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)  # batch norm follows: only ratios count
        # A gain per dimension would only undo the normalisation of the embedding.
        self.features.weight.requires_grad_(False)


class Block(nn.Module):
    """Batch norm, 3x3, batch norm, PReLU, 3x3 with the stride, batch norm; plus the shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv3x3(in_channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        self.conv2 = _conv3x3(channels, channels, stride)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_channels, H, W) -> (B, channels, h, w), h and w smaller by the stride."""
        out = self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x)))))
        return self.bn3(out) + (x if self.downsample is None else self.downsample(x))


def _conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
