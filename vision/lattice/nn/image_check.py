"""Are the image files of a CocoVID file there, whole, and of the size that it says?"""

from __future__ import annotations

from pathlib import Path

from rich.progress import track

from vision.common.core.errors import VisionError
from vision.common.nn.images import read_image
from vision.lattice.core.cocovid import Problem


def check_images(data: dict, folder: Path, *, decode: bool) -> list[Problem]:
    """Image files that are missing or, with decode, broken or of another size."""
    problems = []
    for row in track(data['images'], 'images'):
        path = folder / row['file_name']
        if not decode:
            if not path.is_file():
                problems.append(Problem('missing-image', 'images', row['id'], str(path)))
            continue
        try:
            height, width = read_image(path).shape[:2]
        except VisionError as error:
            problems.append(Problem('broken-image', 'images', row['id'], error.what))
            continue
        if (width, height) != (row['width'], row['height']):
            problems.append(Problem('image-size', 'images', row['id'], f'{path} is {width}x'
                                    f'{height}, the file says {row["width"]}x{row["height"]}'))
    return problems
