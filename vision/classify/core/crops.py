"""Where to crop. Boxes: (left, top, right, bottom) in whole pixels, right and bottom outside."""

from __future__ import annotations

import math
from collections.abc import Callable

from vision.common.core.errors import VisionError

Box = tuple[int, int, int, int]
NUM_TRIES = 10


def crop_boxes(height: int, width: int, size: int, num_crops: int) -> list[Box]:
    """The centre (1), and then the corners from top left, by rows (5).

    Raises:
        VisionError: VIS-CONFIG-1227, another number; VIS-INPUT-1228, the image is too small.
    """
    if num_crops not in (1, 5):
        raise VisionError('VIS-CONFIG-1227', f'num_crops={num_crops} is not possible',
                          where='MultiCrop', do='choose 1, 5 or 10')
    if size > min(height, width):
        raise VisionError('VIS-INPUT-1228', f'no crop of {size} pixels in an image of '
                          f'{height}x{width}', where='MultiCrop', do='resize to more before')
    right, bottom = width - size, height - size
    corners = [(right // 2, bottom // 2), (0, 0), (right, 0), (0, bottom), (right, bottom)]
    return [(x, y, x + size, y + size) for x, y in corners[:num_crops]]


def random_area_box(height: int, width: int, area_range: tuple[float, float],
                    aspect_range: tuple[float, float],
                    uniform: Callable[[float, float], float]) -> Box:
    """A box of random area and aspect (width over height, uniform in its logarithm).

    When none of ``NUM_TRIES`` fits, the largest central box of an allowed aspect.

    Args:
        uniform: gives a random number between two.
    """
    for _ in range(NUM_TRIES):
        area = height * width * uniform(*area_range)
        aspect = math.exp(uniform(*map(math.log, aspect_range)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            # Positions 0..width - w are equally likely.
            x = min(int(uniform(0, width - w + 1)), width - w)
            y = min(int(uniform(0, height - h + 1)), height - h)
            return x, y, x + w, y + h
    aspect = min(max(width / height, aspect_range[0]), aspect_range[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + max(w, 1), y + max(h, 1)
