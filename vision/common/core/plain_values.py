"""Numbers, names and arrays as they stand in files of others, taken within bounds."""

from __future__ import annotations

import ast
import io
import math
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

MOST = 2**53  # whole numbers up to here are exact in JSON, in floats and in int64
_HEADER_BYTES = 10_000  # NumPy's own limit of what it parses
_PLAIN_ARRAY = re.compile(r'[<>|=]?(b1|[iu][1248]|f[248]|U[0-9]{1,5})')


def whole_number(text: str, *, most: int = MOST) -> int | None:
    """The number that digits of ASCII say, None for anything else or more than ``most``.

    ``str.isdigit`` also takes other scripts and raised digits, and Python refuses to read more
    than 4,300 digits with an error of its own.
    """
    text = text.strip()
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(most)):
        return None
    number = int(text)
    return number if number <= most else None


def stays_inside(name: str, *, levels_up: int = 0) -> bool:
    """Does a relative name of a file stay in its folder (or so many levels above)?

    Not: absolute names, drives and backslashes of Windows, addresses, ``..`` that leads out,
    control characters.
    """
    if not isinstance(name, str) or not name.strip() \
            or any(ord(letter) < 32 for letter in name) or '\\' in name or '://' in name \
            or name.startswith(('/', '~')) or re.match('[A-Za-z]:', name):
        return False
    depth = levels_up
    for part in PurePosixPath(name).parts:
        depth += -1 if part == '..' else part != '.'
        if depth < 0:
            return False
    return depth > levels_up or levels_up > 0


def read_npz(raw: bytes, names: Sequence[str] | None = None, *, most_bytes: int | None = None
             ) -> dict[str, np.ndarray]:
    """Arrays of numbers or texts, of any shape, of a file of ``np.savez``, as long as the file
    says truly.

    ``np.load`` makes room for what the header of an array promises before it looks whether the
    file has as much.

    Args:
        names: those that are read; None: all.
        most_bytes: also of ``np.savez_compressed``, with so many bytes in all when they are
            unpacked; None: packed files are refused.

    Raises:
        ValueError: another file, a damaged one, or one that lacks a name.
    """
    kinds = (zipfile.ZIP_STORED, *[zipfile.ZIP_DEFLATED] * (most_bytes is not None))
    most_bytes = len(raw) if most_bytes is None else most_bytes
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            if names is None:
                names = [name.removesuffix('.npy') for name in entries]
            missing = [name for name in names if f'{name}.npy' not in entries]
            if missing or len(entries) != len(archive.infolist()):
                raise ValueError(f'it has no {missing}' if missing else 'names that come twice')
            if any(info.compress_type not in kinds for info in entries.values()) \
                    or sum(info.file_size for info in entries.values()) > most_bytes:
                raise ValueError(f'packed in another way, or more than {most_bytes} bytes')
            return {name: _array(archive.read(entries[f'{name}.npy'])) for name in names}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError,
            EOFError) as error:
        raise ValueError(str(error)) from error


def _array(data: bytes) -> np.ndarray:
    """One array in NumPy's format 1 to 3."""
    wide = data[6:7] in (b'\x02', b'\x03')
    start = 12 if wide else 10
    length = int.from_bytes(data[8:start], 'little')
    if data[:6] != b'\x93NUMPY' or length > _HEADER_BYTES or len(data) < start + length:
        raise ValueError('no array of NumPy')
    try:
        header = ast.literal_eval(data[start:start + length].decode('utf-8').strip())
        shape, order, kind = header['shape'], header['fortran_order'], header['descr']
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise ValueError('the header of an array cannot be read') from error
    if not isinstance(kind, str) or not _PLAIN_ARRAY.fullmatch(kind):
        raise ValueError(f'an array of {kind!r:.40}')
    dtype, content = np.dtype(kind), data[start + length:]
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape) \
            or not dtype.itemsize or math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f'an array {shape!r:.60} of {kind} in {len(content)} bytes')
    return np.frombuffer(content, dtype).reshape(shape, order='F' if order else 'C').copy()
