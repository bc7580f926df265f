"""InsightFace's ``.bin`` verification sets: a pickle of 2 n images and n booleans.

A pickle can call any function, so it is read by an unpickler that knows lists, bytes, numbers,
booleans and NumPy arrays of numbers, and refuses every other name before anything is called.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.files import atomic_write
from vision.faces.core.pairs import PairList, make_pairs, stratified_folds

PLAIN_KINDS = 'biuf'  # dtypes an array may have: booleans, integers, floats


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
        # Files written by Python 2 hold their images as str: bytes keep them as they are.
        loaded = _Unpickler(io.BytesIO(content), str(path)).load()
    except VisionError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise _broken(path, f'not a pickle that can be read: {error}') from error
    return _checked(path, loaded)


def write_bin(path: Path, images: Sequence[bytes], same: Sequence[bool]) -> None:
    """Write a verification set that this reader and InsightFace's code read."""
    assert len(images) == 2 * len(same), (len(images), len(same))
    with atomic_write(Path(path)) as file:
        pickle.dump((list(images), [bool(value) for value in same]), file, protocol=4)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, where: str) -> None:
        super().__init__(file, encoding='bytes')
        self.where = where

    def find_class(self, module: str, name: str):
        allowed = _allowed().get((module, name))
        if allowed is None:
            raise VisionError('VIS-DATA-1070', f'the pickle asks for {module}.{name}',
                              where=self.where, why='a verification set holds images and '
                              'booleans; a pickle that calls anything else may be an attack',
                              do='do not open it; get the file from its publisher')
        return allowed


def _allowed() -> dict:
    functions = {}
    for package in ('numpy.core', 'numpy._core'):  # the name before and since NumPy 2
        functions[f'{package}.multiarray', '_reconstruct'] = _empty_array
        functions[f'{package}.multiarray', 'scalar'] = _scalar
        functions[f'{package}.numeric', '_frombuffer'] = _array
    return {**functions, ('numpy', 'ndarray'): np.ndarray, ('numpy', 'dtype'): _plain_dtype,
            ('_codecs', 'encode'): _latin1}


def _empty_array(kind, shape, _dtype) -> np.ndarray:
    if kind is not np.ndarray or tuple(shape) != (0,):
        raise pickle.UnpicklingError('an array of an unusual kind')
    return np.ndarray((0,), dtype=np.int8)


def _plain_dtype(text, *_flags) -> np.dtype:
    # A copy, because the pickle sets its state next.
    dtype = np.dtype(text.decode('ascii') if isinstance(text, bytes) else text, copy=True)
    if dtype.kind not in PLAIN_KINDS:
        raise pickle.UnpicklingError(f'an array of {dtype}')
    return dtype


def _array(content, dtype: np.dtype, shape: tuple, order: str) -> np.ndarray:
    return np.frombuffer(content, dtype=dtype).reshape(shape, order=order)


def _scalar(dtype: np.dtype, content: bytes):
    return np.frombuffer(content, dtype=dtype, count=1)[0]


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in old pickle protocols."""
    if encoding not in ('latin1', b'latin1'):
        raise pickle.UnpicklingError(f'bytes encoded as {encoding}')
    return text.encode('latin1')


def _checked(path: Path, loaded) -> BinSet:
    if not isinstance(loaded, tuple | list) or len(loaded) != 2:
        raise _broken(path, 'it does not hold two things: images and booleans')
    images, same = loaded
    if not all(isinstance(part, list | tuple | np.ndarray) for part in loaded):
        raise _broken(path, 'images and booleans are not lists')
    images, same = list(images), np.asarray(same)
    if same.ndim != 1 or not np.isin(same, (0, 1)).all():
        raise _broken(path, 'the second part is not a list of booleans')
    if len(images) != 2 * len(same) or not len(same):
        raise _broken(path, f'{len(images)} images for {len(same)} pairs')
    images = [image.tobytes() if isinstance(image, np.ndarray) and image.ndim == 1 else image
              for image in images]
    for position, image in enumerate(images):
        if not isinstance(image, bytes | np.ndarray) or not len(image):
            raise _broken(path, f'image {position} is a {type(image).__name__}')
    return BinSet(images, same.astype(bool))


def _broken(path: Path, what: str) -> VisionError:
    return VisionError('VIS-DATA-1071', what, where=str(path), why='a verification set is a '
                       'pickled pair: 2 n images and n booleans', do='get the file again')
