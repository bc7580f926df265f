"""Reading one image file, whole or not at all (OpenCV; no torch, no framework)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.image_bytes import what_is_cut

BAD_IMAGE = 'VIS-DATA-210'


def read_frame(path: str | Path) -> np.ndarray:
    """An image file as (H, W, 3) uint8 BGR.

    Raises:
        VisionError: it is not there, cut short, or cannot be decoded.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise _bad_image(path, error.strerror or str(error)) from error
    reason = what_is_cut(data)
    image = None if reason else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise _bad_image(path, reason or f'cannot be decoded ({len(data)} bytes)')
    return image


def _bad_image(path: str | Path, reason: str) -> VisionError:
    return VisionError(BAD_IMAGE, f'image {path}: {reason}',
                       why='its pixels would be made up', do='get this file again; in training '
                       "on_bad_image='skip' of the data set leaves out and counts a few of them")
