"""A classifier of one .onnx file: network, preparation and class names inside."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vision.classify.core.probabilities import probabilities
from vision.classify.runtime.preparation import check_steps, prepare
from vision.common.core.errors import VisionError
from vision.common.runtime.onnx_session import open_session

MAX_TEXT = 4_000_000  # letters of a file's class names
UNKNOWN = 'unknown'
BATCH = 32


class OnnxClassifier:
    """Pictures to probabilities.

    The file's metadata: ``names``, the classes (a list, or a dict by number as Ultralytics writes
    it); ``preparation``, JSON steps of ``runtime.preparation``; ``unknown_logit``, of no class;
    ``gives``: logits (the default), or probabilities. A file of Ultralytics has none but names:
    it gets its own preparation (shorter side, centre, RGB 0..1) and gives probabilities.

    Args:
        path: the .onnx file.

    Attributes:
        classes: names in label order, the last ``UNKNOWN`` where the file has a place for it.

    Raises:
        VisionError: VIS-CKPT-1739, a file that cannot be run or is no classifier; VIS-CONFIG-1738,
            a preparation that is not known; VIS-CONFIG-1740, names that do not fit.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        try:
            self._session = open_session(path)
            self._metadata = self._session.get_modelmeta().custom_metadata_map
        except Exception as error:  # onnxruntime has an exception class for each fault
            raise _no_classifier(path, str(error).split('\n')[0][:300]) from error
        wanted, given = self._session.get_inputs(), self._session.get_outputs()
        if len(wanted) != 1 or len(wanted[0].shape) != 4 or len(given[0].shape) != 2:
            raise _no_classifier(path, f'it takes {[part.shape for part in wanted]} and gives '
                                 f'{[part.shape for part in given]}')
        self._input, shape = wanted[0].name, wanted[0].shape
        self._batch = shape[0] if isinstance(shape[0], int) else BATCH
        self._is_ours = 'preparation' in self._metadata
        self._steps = self._read_steps(shape, path)
        self._gives = self._metadata.get('gives', 'logits' if self._is_ours else 'probabilities')
        self._unknown = self._read_number('unknown_logit', path)
        number = self._run([np.zeros((40, 40, 3), np.uint8)]).shape[1]
        self.classes = (*self._read_names(number, path),
                        *([UNKNOWN] if self._unknown is not None else []))

    def __call__(self, images_bgr: Sequence[np.ndarray]) -> np.ndarray:
        """Pictures (H, W, 3) uint8 BGR -> (N, len(classes)) float64 probabilities."""
        parts = [self._run(images_bgr[top:top + self._batch])
                 for top in range(0, len(images_bgr), self._batch)]
        found = np.concatenate(parts)
        if self._gives == 'probabilities':
            return found.astype(np.float64)
        return probabilities(found, self._unknown)

    def _run(self, images_bgr: Sequence[np.ndarray]) -> np.ndarray:
        planes = np.stack([prepare(image, self._steps) for image in images_bgr])
        if not self._is_ours:
            planes = planes[:, ::-1] / np.float32(255)
        missing = self._batch - len(planes) if self._batch != BATCH else 0  # a fixed batch
        padded = np.concatenate([planes, np.zeros_like(planes[:1]).repeat(missing, 0)])
        try:
            found = self._session.run(None, {self._input: np.ascontiguousarray(padded)})[0]
        except Exception as error:  # onnxruntime has an exception class for each fault
            raise _no_classifier(self._path, str(error).split('\n')[0][:300]) from error
        return found[:len(planes)]

    def _read_steps(self, shape: Sequence, path: str | Path) -> list[dict]:
        if self._is_ours:
            try:
                steps = json.loads(self._metadata['preparation'])
            except (ValueError, RecursionError) as error:
                raise _no_classifier(path, f'its preparation is no JSON: {error}') from error
            check_steps(steps, str(path))
            return steps
        side = shape[2] if isinstance(shape[2], int) else 224
        return [dict(type='ResizeShorter', side=side), dict(type='CenterCrop', crop_size=side)]

    def _read_number(self, key: str, path: str | Path) -> float | None:
        try:
            value = float(self._metadata[key]) if key in self._metadata else None
        except ValueError:
            value = math.nan
        if value is not None and not math.isfinite(value):
            raise _no_classifier(path, f'its {key} is {self._metadata[key]!r:.40}')
        return value

    def _read_names(self, number: int, path: str | Path) -> tuple[str, ...]:
        try:
            stored = ast.literal_eval(self._metadata.get('names', '')[:MAX_TEXT])
            names = tuple(str(stored[i]) for i in range(len(stored)))
        except (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError):
            names = ()
        if len(names) != number:
            raise VisionError('VIS-CONFIG-1740', f'the classifier knows {number} classes, its '
                              f'file names {len(names)}', where=str(path), why='metadata "names" '
                              'is a list of the classes in label order', do='export it again with '
                              '"vision classify export", which writes them')
        return names


def _no_classifier(path: str | Path, why: str) -> VisionError:
    return VisionError('VIS-CKPT-1739', f'{Path(path).name} is no classifier', where=str(path),
                       why=why, do='give a file of "vision classify export", or an .onnx file of '
                       'images (B, C, H, W) to classes (B, K)')
