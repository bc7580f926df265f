"""The predictions of a test as a file of numbers and text: ``.json`` to read, ``.npz`` to store.

A prediction is a dict with names as keys; its values are arrays, plain values, sequences of plain
values, or such dicts. MMEngine writes pickles, which can run anything when they are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.files import atomic_write
from vision.common.core.plain_values import read_npz

FORMAT = 'vision-predictions-1'
SUFFIXES = ('.json', '.npz')
_SEPARATOR = '/'  # between the keys of an array's place
_PLAIN = (str, int, float, bool, type(None))
_DTYPE = re.compile(r'[<>]?[a-z]+[0-9]{0,3}')  # of numbers, as NumPy writes it
# Bytes of a file, unpacked, or so many times its own: boxes shrink to a quarter, masks to a
# hundredth.
MOST_UNPACKED, MOST_RATIO = 1 << 28, 200


def require_predictions_name(path: Path | str) -> Path:
    """The path; before long work, for the file that it will write, or one that is to be read.

    Raises:
        VisionError: VIS-INPUT-1780, the ending names no format of ours.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        is_pickle = path.suffix in ('.pkl', '.pickle')
        raise VisionError('VIS-INPUT-1780', f'{path} is no file of predictions', where=str(path),
                          why='a pickle can run anything when it is read' if is_pickle else
                          f'the ending {path.suffix!r} names no format',
                          do='name it .json (to read) or .npz (a quarter of the size)')
    return path


def write_predictions(path: Path, samples: Sequence[dict[str, Any]], **about: Any) -> None:
    """Write predictions whole or not at all.

    Args:
        about: plain values that say where they come from, e.g. ``classes``, ``config``.
    """
    path = require_predictions_name(path)
    columns: dict[str, list[tuple[int, np.ndarray]]] = {}
    for row, sample in enumerate(samples):
        for place, array in _arrays(sample):
            columns.setdefault(place, []).append((row, array))
    head = dict(format=FORMAT, about=about)
    if path.suffix == '.json':
        head['arrays'] = {place: dict(dtype=str(rows[0][1].dtype), ndim=rows[0][1].ndim)
                          for place, rows in columns.items()}
        with atomic_write(path, 'w') as file:
            json.dump(head | dict(samples=[_with(sample, _listed) for sample in samples]), file)
        return
    head['samples'] = [_with(sample, lambda array: None) for sample in samples]
    content = dict(head=np.frombuffer(json.dumps(head).encode(), np.uint8))
    for place, rows in columns.items():
        content[f'{place}:rows'] = np.array([row for row, _ in rows])
        content[f'{place}:shapes'] = np.array([array.shape for _, array in rows])
        content[f'{place}:values'] = np.concatenate([array.reshape(-1) for _, array in rows])
    with atomic_write(path) as file:
        np.savez_compressed(file, **content)


def read_predictions(path: Path | str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(predictions, about) as they were written; sequences of plain values come back as tuples.

    Raises:
        VisionError: VIS-INPUT-1780; VIS-DATA-1781, there is no such file, or it is damaged or
            something else.
    """
    path = require_predictions_name(path)
    try:
        head, samples = (_read_json if path.suffix == '.json' else _read_npz)(path)
        about = _mapping(head['about'])
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError,
            RecursionError) as error:
        raise VisionError('VIS-DATA-1781', f'{path} holds no predictions', where=str(path),
                          why=f'{type(error).__name__}: {error}',
                          do='make it with: vision test CONFIG CHECKPOINT --out FILE') from error
    return samples, {key: _tupled(value) for key, value in about.items()}


def _read_json(path: Path) -> tuple[dict, list[dict]]:
    head = _head(path.read_bytes())
    kinds = {place: (_dtype(kind['dtype']), int(kind['ndim']))
             for place, kind in _mapping(head['arrays']).items()}

    def filled(node: dict, place: str) -> dict:
        result = {}
        for key, value in node.items():
            here = f'{place}{_SEPARATOR}{key}' if place else key
            if here in kinds:
                dtype, ndim = kinds[here]
                shape = value['shape'] if isinstance(value, dict) else None
                if shape is not None and 0 not in shape:
                    raise ValueError(f'{here} has the shape {shape!r:.60} and no values')
                array = np.zeros(shape, dtype) if shape is not None else np.array(value, dtype)
                if array.ndim != ndim:
                    raise ValueError(f'{here} has {array.ndim} axes, not {ndim}')
                result[key] = array
            else:
                result[key] = filled(value, here) if isinstance(value, dict) else _tupled(value)
        return result

    return head, [filled(sample, '') for sample in head['samples']]


def _read_npz(path: Path) -> tuple[dict, list[dict]]:
    raw = path.read_bytes()
    file = read_npz(raw, most_bytes=max(MOST_UNPACKED, MOST_RATIO * len(raw)))
    head = _head(file['head'].tobytes())
    samples = [_with(sample, None) for sample in head['samples']]
    for name, values in file.items():
        if not name.endswith(':values'):
            continue
        place = name.removesuffix(':values')
        shapes = file[f'{place}:shapes']
        sizes = np.prod(shapes, axis=1, dtype=np.int64)
        if sizes.sum() != len(values) or (shapes < 0).any():
            raise ValueError(f'{place} is incomplete')
        parts = np.split(values, np.cumsum(sizes)[:-1])
        *keys, last = place.split(_SEPARATOR)
        for row, part, shape in zip(file[f'{place}:rows'], parts, shapes, strict=True):
            node = samples[row]
            for key in keys:
                node = node[key]
            node[last] = part.reshape(shape)
    return head, samples


def _head(content: bytes) -> dict:
    head = json.loads(content)
    if not isinstance(head, dict) or head.get('format') != FORMAT:
        raise ValueError(f'it does not say that its format is {FORMAT}')
    for sample in head['samples']:
        _mapping(sample)
    return head


def _mapping(value: Any) -> dict:
    if not isinstance(value, dict):
        raise TypeError(f'a {type(value).__name__} where names and values belong')
    return value


def _dtype(name: str) -> np.dtype:
    dtype = np.dtype(name) if _DTYPE.fullmatch(name) else None
    if dtype is None or dtype.kind not in 'biuf':
        raise ValueError(f'numbers of {name!r:.40}')
    return dtype


def _arrays(node: dict, place: str = '') -> Iterator[tuple[str, np.ndarray]]:
    for key, value in node.items():
        assert isinstance(key, str) and _SEPARATOR not in key and ':' not in key, key
        here = f'{place}{_SEPARATOR}{key}' if place else key
        if isinstance(value, np.ndarray):
            assert value.dtype.kind in 'biuf', f'{here}: {value.dtype}'
            yield here, value
        elif isinstance(value, dict):
            yield from _arrays(value, here)


def _with(node: Any, array: Any) -> Any:
    """A copy in which ``array(value)`` takes the place of arrays and sequences are tuples."""
    if isinstance(node, dict):
        return {key: _with(value, array) for key, value in node.items()}
    if isinstance(node, np.ndarray):
        return array(node)
    if isinstance(node, np.generic):
        return node.item()
    if isinstance(node, list | tuple):
        return tuple(_with(value, array) for value in node)
    assert isinstance(node, _PLAIN), f'{type(node).__name__} is no plain value'
    return node


def _listed(array: np.ndarray) -> Any:
    # A list without rows does not say how wide they would be.
    return array.tolist() if array.size else dict(shape=list(array.shape))


def _tupled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tupled(part) for key, part in value.items()}
    return tuple(map(_tupled, value)) if isinstance(value, list) else value
