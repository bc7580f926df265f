"""InsightFace's ``.bin`` verification sets: a pickle of 2 n images and n booleans.

A pickle can call any function, so it is read as data (``plain_pickle``): lists, bytes, numbers,
booleans and NumPy arrays of numbers; every other name is refused before anything is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.plain_pickle import (
    BrokenPickle,
    NotPlain,
    numpy_names,
    plain_names,
    read_plain,
)
from vision.faces.core.data.pairs import PairList, make_pairs, stratified_folds


@dataclass(frozen=True)
class BinSet:
    """Encoded images (bytes) or arrays (H, W, 3), 2 n of them, and (n,) bool."""

    images: list
    same: np.ndarray

    def pairs(self) -> PairList:
        """Pair i is images 2 i and 2 i + 1; their paths are their positions as text."""
        rows = [(str(2 * row), str(2 * row + 1), bool(same))
                for row, same in enumerate(self.same)]
        return make_pairs(rows, stratified_folds(self.same))


def read_bin(path: Path) -> BinSet:
    """Read a verification set.

    Raises:
        VisionError: VIS-DATA-1070 names a class that the pickle asks for and may not have;
            VIS-DATA-1071 for a file that is broken or holds something else.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _broken(path, f'cannot be read: {error}') from error
    try:
        loaded = read_plain(content, plain_names() | numpy_names(len(content)))
    except NotPlain as error:
        raise VisionError('VIS-DATA-1070', f'the pickle asks for {error}', where=str(path),
                          why='a verification set holds images and booleans; a pickle that asks '
                          'for anything else may be an attack',
                          do='do not open it; get the file from its publisher') from error
    except BrokenPickle as error:
        raise _broken(path, f'not a pickle that can be read: {error}') from error
    return _checked(path, loaded)


def _checked(path: Path, loaded) -> BinSet:
    if not isinstance(loaded, tuple | list) or len(loaded) != 2:
        raise _broken(path, 'it does not hold two things: images and booleans')
    images, same = loaded
    if not all(isinstance(part, list | tuple) or isinstance(part, np.ndarray) and part.ndim
               for part in loaded):
        raise _broken(path, 'images and booleans are not lists')
    images, same = list(images), list(same)
    if not all(isinstance(value, int | np.bool_ | np.integer) and value in (0, 1)
               for value in same):
        raise _broken(path, 'the second part is not a list of booleans')
    if len(images) != 2 * len(same) or not same:
        raise _broken(path, f'{len(images)} images for {len(same)} pairs')
    images = [image.tobytes() if isinstance(image, np.ndarray) and image.ndim == 1 else image
              for image in images]
    for position, image in enumerate(images):
        if not _is_image(image):
            raise _broken(path, f'image {position} is a {type(image).__name__}')
    return BinSet(images, np.array(same, dtype=bool))


def _is_image(value) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 1 and value.size > 0 and value.dtype.kind in 'biuf'
    return isinstance(value, bytes) and len(value) > 0


def _broken(path: Path, what: str) -> VisionError:
    return VisionError('VIS-DATA-1071', what, where=str(path), why='a verification set is a '
                       'pickled pair: 2 n images and n booleans', do='get the file again')
