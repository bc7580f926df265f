"""MobileFaceNet (arXiv:1804.07573): about one million parameters for one face embedding."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from vision.common.core.errors import VisionError

# Paper, table 1: expansion, channels, number of blocks, stride of the first.
BLOCKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
STEM_CHANNELS = 64
LAST_CHANNELS = 512
VARIANTS = ('paper', 'relu6')


class MobileFaceNetTrunk(nn.Module):
    """Image to embedding; a depthwise convolution over the whole last map replaces pooling.

    Args:
        dim: length of the embedding.
        image_size: height and width in pixels; a multiple of the total stride (8 * stem_stride).
        in_channels: channels of the image.
        stem_stride: 2 in the paper (112 px images); 1 keeps more of small images.
        variant: 'paper' (PReLU), or 'relu6', the form of public weights (foamliu/MobileFaceNet,
            Apache-2.0): ReLU6, one more pointwise convolution in the stem (both parts of it with
            ReLU), and a bias in the last convolution.

    Shapes: (B, in_channels, image_size, image_size) -> (B, dim), not normalised.

    Raises:
        VisionError: VIS-CONFIG-1004; VIS-INPUT-1010, images of another size.
    """

    def __init__(self, dim: int = 128, *, image_size: int = 112, in_channels: int = 3,
                 stem_stride: int = 2, variant: str = 'paper') -> None:
        super().__init__()
        stride = 8 * stem_stride
        check_backbone('MobileFaceNet', image_size > 0 and image_size % stride == 0,
                       f'image_size={image_size}', f'a multiple of {stride} (the total stride)')
        check_backbone('MobileFaceNet', variant in VARIANTS, f'variant={variant!r}',
                       f'one of {", ".join(VARIANTS)}')
        act = nn.PReLU if variant == 'paper' else _relu6
        self.dim, self.image_size = dim, image_size
        stem = [_conv(in_channels, STEM_CHANNELS, 3, stem_stride, act=act),
                _conv(STEM_CHANNELS, STEM_CHANNELS, 3, groups=STEM_CHANNELS,
                      act=act if variant == 'paper' else _relu)]
        if variant == 'relu6':
            stem.append(_conv(STEM_CHANNELS, STEM_CHANNELS, 1, act=_relu))
        self.stem = nn.Sequential(*stem)
        blocks, channels = [], STEM_CHANNELS
        for expansion, width, num_blocks, first_stride in BLOCKS:
            for index in range(num_blocks):
                blocks.append(Bottleneck(channels, width, expansion,
                                         first_stride if index == 0 else 1, act))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.expand = _conv(channels, LAST_CHANNELS, 1, act=act)
        self.global_depthwise = _conv(LAST_CHANNELS, LAST_CHANNELS, image_size // stride,
                                      padding=0, groups=LAST_CHANNELS)
        self.linear = nn.Conv2d(LAST_CHANNELS, dim, 1, bias=variant == 'relu6')
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_channels, image_size, image_size) -> (B, dim), not normalised."""
        check_size(x, self.image_size)
        x = self.blocks(self.stem(x))
        x = self.global_depthwise(self.expand(x))
        return self.norm(self.linear(x).flatten(1))


class Bottleneck(nn.Module):
    """Expand, depthwise, project without activation; the input is added where shapes allow."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int,
                 act: Callable[[int], nn.Module]) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.is_residual = stride == 1 and in_channels == channels
        self.layers = nn.Sequential(_conv(in_channels, hidden, 1, act=act),
                                    _conv(hidden, hidden, 3, stride, groups=hidden, act=act),
                                    _conv(hidden, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_channels, H, W) -> (B, channels, h, w), h and w smaller by the stride."""
        return x + self.layers(x) if self.is_residual else self.layers(x)


def _conv(in_channels: int, channels: int, size: int, stride: int = 1, *,
          padding: int | None = None, groups: int = 1,
          act: Callable[[int], nn.Module] | None = None) -> nn.Sequential:
    padding = size // 2 if padding is None else padding
    layers = [nn.Conv2d(in_channels, channels, size, stride, padding, groups=groups, bias=False),
              nn.BatchNorm2d(channels)]
    return nn.Sequential(*layers, *([act(channels)] if act else []))


def _relu6(channels: int) -> nn.Module:
    return nn.ReLU6(inplace=True)


def _relu(channels: int) -> nn.Module:
    return nn.ReLU(inplace=True)


def check_backbone(name: str, is_fine: bool, what: str, wanted: str) -> None:
    """Refuse a setting unless ``is_fine``; ``what`` came and ``wanted`` is allowed, for the error.

    Raises:
        VisionError: VIS-CONFIG-1004.
    """
    if not is_fine:
        raise VisionError('VIS-CONFIG-1004', f'{name} cannot have {what}', where='backbone',
                          do=wanted)


def check_size(images: Tensor, image_size: int) -> None:
    """Refuse images (B, C, H, W) unless H and W are ``image_size`` px.

    Raises:
        VisionError: VIS-INPUT-1010.
    """
    if images.shape[2:] != (image_size, image_size):
        raise VisionError('VIS-INPUT-1010', f'an image of {tuple(images.shape[2:])} pixels, the '
                          f'backbone was built for {image_size} x {image_size}',
                          why='its last layer spans the whole map',
                          do='align or resize the images, or set backbone.image_size')
