"""Any detector as the lattice sees it, without training software: one BGR frame in, boxes out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vision.common.core.errors import VisionError
from vision.lattice.core.structures import FrameBoxes
from vision.lattice.runtime.onnx_detector import OnnxDetector, require_picture
from vision.zoo import load_index, resolve

__all__ = ['CallableDetector', 'Detector', 'OnnxDetector', 'as_detector']


@runtime_checkable
class Detector(Protocol):
    """What the lattice needs of a detector.

    ``detect`` takes (H, W, 3) uint8 BGR and gives the boxes of that frame, best first, in its
    pixels; ``classes`` are the names in label order.
    """

    classes: tuple[str, ...]

    def detect(self, image_bgr: np.ndarray) -> FrameBoxes:
        """Boxes of one frame (H, W, 3) uint8 BGR, in its pixels."""


class CallableDetector:
    """A function of the user as a detector; what it returns is checked at each call.

    Args:
        function: takes (H, W, 3) uint8 BGR; gives boxes xyxy (N, 4) in its pixels, scores (N,) in
            [0, 1] and labels (N,), in any order, or an object with ``xyxy``, ``confidence`` and
            ``class_id`` such as supervision's ``Detections``.
        classes: names in label order.
    """

    def __init__(self, function: Callable[[np.ndarray], Any], classes: Sequence[str]) -> None:
        self.function, self.classes = function, tuple(classes)

    def detect(self, image_bgr: np.ndarray) -> FrameBoxes:
        """Boxes of one frame (H, W, 3) uint8 BGR, best first.

        Raises:
            VisionError: VIS-INPUT-812 not a picture, VIS-INPUT-810 what the function returned.
        """
        require_picture(image_bgr)
        found = self.function(image_bgr)
        if hasattr(found, 'xyxy'):
            found = (found.xyxy, *(() if value is None and not len(found.xyxy) else value
                                   for value in (found.confidence, found.class_id)))
        try:
            boxes, scores, labels = (np.asarray(values, np.float64) for values in found)
        except (TypeError, ValueError) as error:
            raise _bad_result(f'{type(found).__name__}: {error}') from error
        boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
        if boxes.ndim != 2 or boxes.shape[1:] != (4,) or not (
                scores.shape == labels.shape == (len(boxes),)):
            raise _bad_result(f'shapes {boxes.shape}, {scores.shape}, {labels.shape}')
        if not all(np.isfinite(values).all() for values in (boxes, scores, labels)):
            raise _bad_result('values that are not finite')
        if num_turned := int((boxes[:, 2:] < boxes[:, :2]).any(axis=1).sum()):
            raise _bad_result(f'{num_turned} boxes with x2 < x1 or y2 < y1')
        if ((scores < 0) | (scores > 1)).any():
            raise _bad_result(f'scores from {scores.min():g} to {scores.max():g}')
        if ((labels < 0) | (labels >= len(self.classes)) | (labels % 1 != 0)).any():
            raise _bad_result(f'labels from {labels.min():g} to {labels.max():g} for '
                              f'{len(self.classes)} classes')
        order = np.argsort(-scores, kind='stable')
        return FrameBoxes(boxes[order], scores[order], labels[order])


def as_detector(source: Any, *, classes: Sequence[str] | None = None, **options: Any) -> Detector:
    """A detector from whatever the user has.

    Args:
        source: an object with ``detect`` and ``classes``, taken as it is; a function, which
            needs ``classes``; an .onnx path, ``zoo:NAME`` or the name of a zoo entry.
        classes, options: see ``CallableDetector`` and ``OnnxDetector``.

    Raises:
        VisionError: VIS-CONFIG-811, VIS-CONFIG-817 none of these, or options that it cannot take;
            and what opening the file raises.
    """
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        is_entry = not text.startswith('zoo:') and not Path(text).exists() and text in load_index()
        path = resolve(f'zoo:{text}' if is_entry else text)
        if path.suffix.lower() != '.onnx':
            raise VisionError('VIS-CONFIG-817', f'{text} is no .onnx file', where=str(path),
                              why='checkpoints and configs of mmdet need the training extra: '
                              'MMDetDetector', do='export it, or give an object with detect()')
        return OnnxDetector(path, classes=classes, **options)
    is_ready = hasattr(source, 'detect') and hasattr(source, 'classes')
    if is_ready and classes is None and not options:
        return source
    if not is_ready and callable(source) and classes is not None and not options:
        return CallableDetector(source, classes)
    raise VisionError(
        'VIS-CONFIG-811', f'no detector can be made of {type(source).__name__} with '
        f'classes={"given" if classes is not None else None}, options {sorted(options)}',
        why='an object with detect() and classes is taken as it is, a function needs classes '
        'alone, a path or zoo name takes all options', do='give one of these three')


def _bad_result(what: str) -> VisionError:
    return VisionError('VIS-INPUT-810', f'the detector function returned {what}',
                       where='CallableDetector', why='boxes (N, 4) x1 y1 x2 y2 in pixels, scores '
                       '(N,) in [0, 1], labels (N,) from 0, all finite, or Detections with '
                       'confidence and class_id', do='correct the function')
