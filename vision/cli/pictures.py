"""Pictures that a command line names: files, and folders of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vision.common.core.errors import VisionError

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.pgm', '.ppm')


def pictures_of(names: Sequence[str]) -> list[str]:
    """Files as they are named; of a folder the pictures below it, in order of their names.

    Raises:
        VisionError: VIS-INPUT-1749, a name that is nothing, or a folder without pictures.
    """
    found = []
    for name in names:
        path = Path(name)
        inside = sorted(str(file) for file in path.rglob('*') if file.suffix.lower() in PICTURES
                        ) if path.is_dir() else [name]
        if not inside or not (path.is_dir() or path.is_file()):
            raise VisionError('VIS-INPUT-1749', f'no picture {name}', where=str(path.absolute()),
                              why='there is no such file' if not path.is_dir() else 'the folder '
                              f'has none of {", ".join(PICTURES)}', do='name pictures, or a '
                              'folder of them')
        found += inside
    return found
