"""Embeddings in a file: what one run computed and another asks about.

- ``.npy``: (N, d) numbers, a row for each picture in the order of the list that is asked about;
  memory-mapped, so it may be larger than the memory.
- ``.npz``: ``embeddings`` (N, d) and ``paths`` (N,) of their pictures; rows are found by path.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError  # NumPy's, of the header of an array

import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.files import atomic_write
from vision.common.core.plain_values import read_npz


def read_embeddings(path: Path, paths: Sequence[str] | None = None) -> np.ndarray:
    """(N, d) rows in the order of ``paths``; None: as they stand in the file.

    Raises:
        VisionError: VIS-DATA-1087 for a file that is no such matrix, rows of another number, or
            pictures that have none.
    """
    path = Path(path)
    try:
        if path.suffix == '.npz':
            content = read_npz(path.read_bytes(), ('embeddings', 'paths'))
            rows, names = content['embeddings'], content['paths']
        else:
            rows, names = np.load(path, mmap_mode='r', allow_pickle=False), None
        if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind != 'f' \
                or not rows.size or names is not None and names.shape != rows.shape[:1]:
            raise ValueError('it holds no matrix of floating numbers with a row for each picture')
    except (OSError, ValueError, EOFError, TypeError, OverflowError, TokenError) as error:
        raise _unfit(path, str(error)) from error
    if paths is None:
        return rows
    if names is None:
        if len(rows) != len(paths):
            raise _unfit(path, f'{len(rows)} rows for {len(paths)} pictures')
        return rows
    place = {name: row for row, name in enumerate(names.tolist())}
    missing = [name for name in paths if name not in place]
    if missing:
        raise _unfit(path, f'{len(missing)} of {len(paths)} pictures have no row, first: '
                     f'{missing[0]}')
    return rows[[place[name] for name in paths]]


def write_embeddings(path: Path, paths: Sequence[str], rows: np.ndarray) -> None:
    """A ``.npz`` of rows (N, d), stored as float32, that ``read_embeddings`` reads back in any
    order."""
    content = io.BytesIO()
    np.savez(content, embeddings=np.asarray(rows, dtype=np.float32),
             paths=np.array(paths, dtype='U'))
    with atomic_write(Path(path)) as file:
        file.write(content.getbuffer())


def refuse_other_length(path: Path, length: int, wanted: int) -> None:
    """VIS-DATA-1087 when rows of two networks would be compared."""
    if length != wanted:
        raise _unfit(path, f'rows of {length} numbers, the others have {wanted}')


def _unfit(path: Path, what: str) -> VisionError:
    return VisionError('VIS-DATA-1087', f'embeddings that do not fit: {what}', where=str(path),
                       why='each picture of the list needs its own embedding, all of one network',
                       do='give .npz with embeddings and paths, as --save-embeddings does, or '
                       '.npy with one row a picture in the order of the list')
