"""Which files are pictures and which are videos, by their names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vision.common.core.errors import VisionError

PICTURE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.pgm', '.ppm')
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mkv', '.webm', '.mov', '.m4v')


def is_picture(path: str | os.PathLike) -> bool:
    """Whether its name ends as a picture's."""
    return Path(path).suffix.lower() in PICTURE_SUFFIXES


def is_video(path: str | os.PathLike) -> bool:
    """Whether its name ends as a video's."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def pictures_of(names: Sequence[str | os.PathLike]) -> list[Path]:
    """Files as they are named; of a folder the pictures below it, in order of their names.

    Raises:
        VisionError: VIS-INPUT-1749, a name that is nothing, or a video, or a folder without
            pictures.
    """
    found: list[Path] = []
    for path in map(Path, names):
        inside = sorted(filter(is_picture, path.rglob('*'))) if path.is_dir() else \
            [path] if path.is_file() and not is_video(path) else []
        if not inside:
            raise VisionError('VIS-INPUT-1749', f'{path} is no picture and no folder of pictures',
                              where=str(path.absolute()),
                              why='there is no such file' if not path.exists() else 'it is a video'
                              if path.is_file() else
                              f'no file in it ends in {", ".join(PICTURE_SUFFIXES)}',
                              do='give a picture, a folder of pictures, or a list of them; vision '
                              'video takes videos')
        found += inside
    return found
