"""A lean trunk for small pictures: all of its last map goes to the embedding."""

from __future__ import annotations

from torch import Tensor, nn

from vision.faces.nn.backbones.mobilefacenet import check_backbone

STRIDE = 8


class Residual(nn.Module):
    """Two 3x3 convolutions, the first with the stride 2, and the shortcut."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, 2, bias=False),
                                      nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, channels, h, w), h and w half as large."""
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu_()))
        return (out + self.shortcut(x)).relu_()


def lean_trunk(width: int, dim: int, *, in_channels: int = 1, image_size: int = 32
               ) -> nn.Sequential:
    """(B, in_channels, image_size, image_size) -> (B, dim), not normalised.

    Our choice, in short runs on Han characters of 32 px: the faces' IR-ResNet-18 of a quarter
    width ends in a map of 1 px and learned far more slowly at the same time a step. Here the map
    has ``image_size / 8`` px a side.

    Args:
        width: channels of the first map; the last has four times as many.

    Raises:
        VisionError: VIS-CONFIG-1004, an image size that is no multiple of 8.
    """
    check_backbone('LeanResNet', image_size > 0 and image_size % STRIDE == 0,
                   f'image_size={image_size}', f'a multiple of {STRIDE}')
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        Residual(width, 2 * width), Residual(2 * width, 4 * width), nn.Flatten(),
        nn.Linear(4 * width * (image_size // STRIDE)**2, dim), nn.BatchNorm1d(dim))
