"""Windows of images and feature maps, resampled to one size (no compiled operator needed).

Shapes: K windows (K, 4) x1 y1 x2 y2 in pixels of the map they are cut from, where pixel i covers
[i, i + 1]; S = output size in samples per side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# A window cut from a level where one output sample spans more than this many pixels would skip
# pixels (bilinear reads only 2 x 2); the next coarser level is taken instead.
MAX_PIXELS_PER_SAMPLE = 1.5
MAX_LEVELS = 6


def _grid(windows: Tensor, size: int, height: int, width: int) -> Tensor:
    """(K, S, S, 2) sample points in pixel indices (pixel centres are whole numbers)."""
    steps = (torch.arange(size, device=windows.device, dtype=windows.dtype) + 0.5) / size
    x = windows[:, 0:1] + steps * (windows[:, 2:3] - windows[:, 0:1]) - 0.5
    y = windows[:, 1:2] + steps * (windows[:, 3:4] - windows[:, 1:2]) - 0.5
    return torch.stack([x[:, None, :].expand(-1, size, -1),
                        y[:, :, None].expand(-1, -1, size)], dim=-1)


def sample_windows(image: Tensor, windows: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """One bilinear sample per output cell.

    Shapes: image (C, h, w) float, windows (K, 4) -> crops (K, C, S, S), zero more than one pixel
        outside of the image, and is_inside (K, 1, S, S), 1 where the sample point lies inside.
    """
    height, width = image.shape[-2:]
    points = _grid(windows, size, height, width)
    limits = points.new_tensor([width, height])
    # grid_sample with align_corners=False: -1 and 1 are the outer edges of the border pixels.
    normal = ((points + 0.5) * 2 / limits - 1).reshape(1, -1, size, 2).to(image.dtype)
    crops = F.grid_sample(image[None], normal, padding_mode='border', align_corners=False)
    crops = crops.reshape(image.shape[0], -1, size, size).transpose(0, 1)
    near = ((points >= -1) & (points <= limits)).all(-1)[:, None]
    inside = ((points >= -0.5) & (points <= limits - 0.5)).all(-1)[:, None]
    return crops * near, inside.to(image.dtype)


def roi_align(features: Tensor, rois: Tensor, output_size: int, *, spatial_scale: float = 1.0,
              sampling_ratio: int = 2) -> Tensor:
    """RoIAlign (arXiv:1703.06870), half-pixel aligned, by ``grid_sample``.

    Equal to ``mmcv.ops.roi_align(..., aligned=True)`` with the same fixed ``sampling_ratio``.

    Shapes: features (B, C, h, w); rois (K, 5) with the index of the map, then x1 y1 x2 y2, which
        ``spatial_scale`` turns into pixels of the map -> (K, C, output_size, output_size).
    """
    crops = features.new_zeros(len(rois), features.shape[1], output_size, output_size)
    for index, image in enumerate(features):
        is_mine = rois[:, 0] == index
        samples, _ = sample_windows(image, rois[is_mine, 1:] * spatial_scale,
                                    output_size * sampling_ratio)
        crops[is_mine] = F.avg_pool2d(samples, sampling_ratio)
    return crops


def image_pyramid(image: Tensor) -> list[Tensor]:
    """The image (C, h, w) and its halvings by 2 x 2 means, down to a side of about 8 pixels."""
    levels = [image]
    while len(levels) < MAX_LEVELS and min(levels[-1].shape[-2:]) >= 16:
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels


def sample_pyramid(pyramid: list[Tensor], windows: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """``sample_windows`` from the level that fits each window, so that no pixel is skipped.

    Shapes: pyramid of maps (C, h, w), each half as large as the one before; windows (K, 4) in
        pixels of level 0 -> crops (K, C, S, S) and is_inside (K, 1, S, S), S being ``size``.
    """
    pixels = (windows[:, 2:] - windows[:, :2]).amax(1).clamp(min=1e-3) / size
    level = torch.ceil(torch.log2(pixels / MAX_PIXELS_PER_SAMPLE)).clamp(0, len(pyramid) - 1)
    channels = pyramid[0].shape[0]
    crops = pyramid[0].new_zeros(len(windows), channels, size, size)
    inside = pyramid[0].new_zeros(len(windows), 1, size, size)
    for index in level.unique().long().tolist():
        is_mine = level == index
        # An odd side loses its last row when halved, so the scale is 2**index exactly.
        crops[is_mine], inside[is_mine] = sample_windows(
            pyramid[index], windows[is_mine] / 2**index, size)
    return crops, inside


def enlarge(boxes: Tensor, factor: float) -> Tensor:
    """Boxes (K, 4) with sides ``factor`` times as long about the same centres, at least 1 px."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1) * factor / 2
    return torch.cat([centres - half, centres + half], dim=1)


def square_windows(boxes: Tensor, factor: float) -> Tensor:
    """Square windows (K, 4) of side ``factor`` x sqrt(w h) about the centres of boxes (K, 4)."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = box_sizes(boxes)[:, None] * factor / 2
    return torch.cat([centres - half, centres + half], dim=1)


def box_sizes(boxes: Tensor) -> Tensor:
    """(K,) sqrt(w h) of boxes (K, 4) xyxy in px, sides counted as at least 1 px."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=1).prod(1).sqrt()
