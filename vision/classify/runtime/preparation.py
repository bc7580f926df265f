"""What is done to a picture before a network sees it, as data: it travels in the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np

from vision.classify.runtime.ink import fit_ink
from vision.common.core.errors import VisionError

MAX_SIDE = 4096  # px of a step's result: three such planes of float32 have 200 MB


def resize(image: np.ndarray, scale: Sequence[int], keep_ratio: bool = False) -> np.ndarray:
    """To (width, height); with ``keep_ratio`` the largest that fits into it (mmcv's Resize)."""
    width, height = scale
    if keep_ratio:
        long, short = max(scale), min(scale)
        factor = min(long / max(image.shape[:2]), short / min(image.shape[:2]))
        width, height = (int(side * factor + 0.5) for side in image.shape[1::-1])
    return cv2.resize(image, (max(width, 1), max(height, 1)), interpolation=cv2.INTER_LINEAR)


def resize_shorter(image: np.ndarray, side: int) -> np.ndarray:
    """The shorter side to ``side`` px, the proportions kept."""
    factor = side / min(image.shape[:2])
    return resize(image, [max(side, round(length * factor)) for length in image.shape[1::-1]])


def centre_crop(image: np.ndarray, crop_size: int | Sequence[int]) -> np.ndarray:
    """The middle of a picture, (width, height) or a side; what is too small stays as it is."""
    width, height = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
    left, top = (max(0, round((have - want) / 2)) for have, want in
                 zip(image.shape[1::-1], (width, height), strict=True))
    return image[top:top + height, left:left + width]


# The first four by the names of the transforms that configs have.
STEPS: dict[str, Callable[..., np.ndarray]] = {
    'FitInk': fit_ink, 'Resize': resize, 'CenterCrop': centre_crop,
    'ResizeShorter': resize_shorter}


def prepare(image_bgr: np.ndarray, steps: Sequence[Mapping]) -> np.ndarray:
    """(H, W, 3) uint8 BGR through the steps, to planes (C, h, w) float32 0..255."""
    for step in steps:
        options = dict(step)
        image_bgr = STEPS[options.pop('type')](image_bgr, **options)
    planes = image_bgr[None] if image_bgr.ndim == 2 else image_bgr.transpose(2, 0, 1)
    return np.ascontiguousarray(planes, dtype=np.float32)


def check_steps(steps: Sequence[Mapping], where: str) -> None:
    """VIS-CONFIG-1738 for a step that is not among ``STEPS``, or that fails on a picture."""
    fault = '' if isinstance(steps, list) else f'{steps!r:.60} is no list of steps'
    for step in steps if not fault else ():
        name = step.get('type') if isinstance(step, Mapping) else step
        sizes = [value for key, part in step.items() if key != 'type'
                 for value in (part if isinstance(part, list | tuple) else [part])] \
            if isinstance(step, Mapping) else []
        if name not in STEPS or not all(isinstance(value, bool) or isinstance(value, int)
                                        and 0 < value <= MAX_SIDE for value in sizes):
            fault = f'the step {step!r:.80} is not known'
            break
    if not fault:
        try:
            prepare(np.zeros((40, 60, 3), np.uint8), steps)
        except Exception as error:  # whatever numbers of a file do to OpenCV
            fault = f'{type(error).__name__}: {error}'
    if fault:
        raise VisionError('VIS-CONFIG-1738', f'pictures cannot be prepared: {fault}', where=where,
                          why=f'a classifier in one file prepares by {", ".join(STEPS)}, with '
                          f'sizes from 1 to {MAX_SIDE} px', do='change the test pipeline of the '
                          'config and export again; with config and weights any pipeline runs')
