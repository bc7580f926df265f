"""An embedder that ``vision faces export`` wrote, in onnxruntime."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.files import sha256_of
from vision.common.runtime.onnx_session import open_session
from vision.faces.core.gallery.alignment import checked_faces

BATCH = 64


class OnnxEmbedder:
    """Aligned faces to rows; the graph takes (B, 3, S, S) float32 BGR 0..255 and gives (B, d).

    Args:
        path: the .onnx file.

    Attributes:
        size: px of the aligned faces; 112 where the graph leaves it open.
        identity: SHA-256 of the file: galleries remember who made their rows.

    Raises:
        VisionError: VIS-CKPT-1730, a file that cannot be run or is no such graph.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._session = open_session(path)
            (given,), (wanted,) = self._session.get_outputs(), self._session.get_inputs()
            sides = {side for side in wanted.shape[2:] if isinstance(side, int)} or {112}
            is_fine = len(wanted.shape) == 4 and wanted.shape[1] == 3 and len(given.shape) == 2 \
                and len(sides) == 1 and min(sides) > 0
            fault = '' if is_fine else f'it takes {wanted.shape} and gives {given.shape}'
        except Exception as error:  # onnxruntime has an exception class for each fault
            fault = str(error).split('\n')[0][:300]
        if fault:
            raise VisionError('VIS-CKPT-1730', f'{Path(path).name} is no face embedder',
                              where=str(path), why=fault, do='give a file of "vision faces '
                              'export": (B, 3, S, S) float32 faces to (B, d) rows')
        self._input = wanted.name
        self.size, = sides
        self.identity = sha256_of(Path(path))

    def __call__(self, faces: Iterable[np.ndarray]) -> np.ndarray:
        """Aligned faces (size, size, 3) uint8 BGR -> (N, d) float32 rows of length one."""
        faces, rows = checked_faces(faces, self.size), []
        while batch := list(islice(faces, BATCH)):
            planes = np.stack(batch).transpose(0, 3, 1, 2).astype(np.float32)
            found, = self._session.run(None, {self._input: planes})
            rows.append(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12))
        return np.concatenate(rows) if rows else np.zeros((0, 0), dtype=np.float32)
