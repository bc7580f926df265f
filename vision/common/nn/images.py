"""Reading one image, whole or not at all (OpenCV; no torch, no framework)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.image_bytes import image_size, what_is_wrong

BAD_IMAGE = 'VIS-DATA-210'


def read_image(path: str | Path, *, code: str = BAD_IMAGE,
               do: str = 'get this file again') -> np.ndarray:
    """An image file as (H, W, 3) uint8 BGR, with the orientation of its EXIF data.

    Args:
        code, do: of the error.

    Raises:
        VisionError: it is not there, cut short, or cannot be decoded.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise _bad_image(str(path), str(getattr(error, 'strerror', '') or error), code, do
                         ) from error
    return decode_image(data, str(path), code=code, do=do)


def decode_image(data: bytes, where: str, *, code: str = BAD_IMAGE,
                 do: str = 'get this file again') -> np.ndarray:
    """``read_image`` of bytes: (H, W, 3) uint8 BGR, turned as its EXIF data say.

    Args:
        where: names the bytes in the error.
        code, do: of the error, where the caller knows better.

    Raises:
        VisionError: ``code``, for bytes that are no whole picture.
    """
    reason = what_is_wrong(data)
    try:
        image = None if reason else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        image, reason = None, str(error).split('error: ')[-1].strip()
    if image is None:
        reason = reason or f'{len(data)} bytes that cannot be decoded'
        raise _bad_image(where, reason, code, do)
    return image


def size_of_image(data: bytes, where: str, *, code: str = BAD_IMAGE,
                  do: str = 'get this file again') -> tuple[int, int]:
    """(width, height) as the header says, without decoding; refuses what is cut short."""
    if reason := what_is_wrong(data):
        raise _bad_image(where, reason, code, do)
    return image_size(data)


def _bad_image(where: str, reason: str, code: str, do: str) -> VisionError:
    return VisionError(code, f'the image {where} cannot be read: {reason}', where=where,
                       why='its pixels would be made up', do=do)
