"""Reading one image, whole or not at all (OpenCV; no torch, no framework)."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.image_bytes import image_size, what_is_wrong

BAD_IMAGE = 'VIS-DATA-210'


def read_image(path: str | Path, *, do: str = 'get this file again') -> np.ndarray:
    """An image file as (H, W, 3) uint8 BGR, with the orientation of its EXIF data.

    Args:
        do: of the error.

    Raises:
        VisionError: VIS-DATA-210, it is not there, cut short, or cannot be decoded.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise _bad_image(str(path), str(getattr(error, 'strerror', '') or error), do) from error
    return decode_image(data, str(path), do=do)


def decode_image(data: bytes, where: str, *, do: str = 'get this file again') -> np.ndarray:
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
        raise _bad_image(where, reason, do)
    return image


def size_of_image(data: bytes, where: str, *, do: str = 'get this file again'
                  ) -> tuple[int, int]:
    """(width, height) as the header says, without decoding; refuses what is cut short."""
    if reason := what_is_wrong(data):
        raise _bad_image(where, reason, do)
    return image_size(data)


def _bad_image(where: str, reason: str, do: str) -> VisionError:
    return VisionError(BAD_IMAGE, f'the image {where} cannot be read: {reason}', where=where,
                       why='its pixels would be made up', do=do)


def as_image(image: str | os.PathLike | np.ndarray, position: int | None = None) -> np.ndarray:
    """A picture as (H, W, 3) uint8 BGR: a path is read; grey gets three channels, of four the
    last is left out.

    Args:
        image: path, or (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8 array, BGR.
        position: of the picture in a list, for the error.

    Raises:
        VisionError: VIS-DATA-210 a file that cannot be read, VIS-INPUT-1732 no such array.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(os.fspath(image))
    channels = image.shape[2] if isinstance(image, np.ndarray) and image.ndim == 3 else 1
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3) \
            or channels not in (1, 3, 4) or not image.size:
        what = f'an array {image.shape} of {image.dtype}' if isinstance(image, np.ndarray) else \
            f'a {type(image).__name__}'
        raise VisionError('VIS-INPUT-1732', f'{what} is no picture',
                          where='' if position is None else f'picture {position} of the list',
                          why='a picture is a path, or an array (H, W, 3) of uint8, BGR as OpenCV '
                          'reads it (grey and BGRA too)', do='for RGB from PIL: '
                          'np.asarray(picture.convert("RGB"))[:, :, ::-1]')
    if channels == 1:
        return cv2.cvtColor(image.reshape(image.shape[:2]), cv2.COLOR_GRAY2BGR)
    return np.ascontiguousarray(image[:, :, :3])
