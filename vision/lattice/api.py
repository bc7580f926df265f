"""Detection on pictures, by any detector: ONNX files, or configs of MMDetection."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vision.common.core.config_files import config_names
from vision.common.core.errors import VisionError
from vision.common.core.extras import import_extra
from vision.common.core.files import atomic_write, name_below
from vision.common.core.picture_files import pictures_of
from vision.lattice.core.structures import FrameBoxes
from vision.zoo import load_index

SCORE_THR = 0.3
Images = str | os.PathLike | np.ndarray | Sequence[str | os.PathLike | np.ndarray]


@dataclass(frozen=True, eq=False)
class DetectionResult:
    """What was found on one picture, best first.

    Args:
        boxes_xyxy: (N, 4) float32, x1 y1 x2 y2 in pixels of the picture.
        scores: (N,) float32 in [0, 1].
        labels: (N,) int64, index into ``classes``.
        classes: names in label order.
        path: of the picture; None where it was an array.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    path: Path | None = None
    _image: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """Of each box's class."""
        return [self.classes[label] for label in self.labels]

    @property
    def image_bgr(self) -> np.ndarray:
        """(H, W, 3) uint8; one of a file is read again, so that many results fit in memory."""
        return _read(self.path) if self._image is None else self._image

    def to_supervision(self):
        """``supervision.Detections`` with the names as data ``class_name``.

        Raises:
            VisionError: VIS-ENV-1713, supervision is not installed.
        """
        sv = import_extra('supervision', extra='results', needed_for='to_supervision()')
        return sv.Detections(xyxy=self.boxes_xyxy.copy(), confidence=self.scores.copy(),
                             class_id=self.labels.copy(),
                             data=dict(class_name=np.array(self.names, dtype=str)))

    def to_pandas(self):
        """A data frame with a row a box: x1, y1, x2, y2, score, label, name.

        Raises:
            VisionError: VIS-ENV-1713, pandas is not installed.
        """
        pandas = import_extra('pandas', extra='results', needed_for='to_pandas()')
        columns = dict(zip(('x1', 'y1', 'x2', 'y2'), self.boxes_xyxy.T, strict=True))
        return pandas.DataFrame(columns | dict(score=self.scores, label=self.labels,
                                               name=self.names))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the keys labels, scores and bboxes are those of MMDetection."""
        return dict(image=None if self.path is None else str(self.path), names=self.names,
                    labels=self.labels.tolist(), scores=self.scores.tolist(),
                    bboxes=self.boxes_xyxy.tolist())

    def draw(self) -> np.ndarray:
        """A copy of the picture with the boxes, (H, W, 3) uint8 BGR."""
        from vision.lattice.runtime.drawing import draw_found
        boxes = FrameBoxes(self.boxes_xyxy, self.scores, self.labels)
        return draw_found(self.image_bgr, boxes, self.classes)


class DetectionModel:
    """Any detector, for pictures: ``model('street.jpg')``, ``model(['a.jpg', array])``.

    Args:
        detector: an object with ``detect(image_bgr) -> FrameBoxes`` and ``classes``; one with
            ``detect_batch`` gets several pictures at once.

    Attributes:
        classes: names in label order.
    """

    def __init__(self, detector: Any) -> None:
        self.detector, self.classes = detector, tuple(detector.classes)

    def __call__(self, images: Images, *, batch_size: int = 1, score_thr: float = SCORE_THR,
                 out_dir: str | os.PathLike | None = None
                 ) -> DetectionResult | list[DetectionResult]:
        """One result for a file or an array (H, W, 3) uint8 BGR; a list for a list or a folder
        (all pictures in it, by name).

        Args:
            batch_size: pictures that the network sees at once.
            score_thr: boxes below are left out.
            out_dir: pictures with boxes are written to ``out_dir/vis``, boxes as JSON to
                ``out_dir/preds``, in the folders that the pictures lie in.

        Raises:
            VisionError: VIS-INPUT-1749, there is no picture; and what reading them raises.
        """
        single = not isinstance(images, list | tuple) and not (
            isinstance(images, str | os.PathLike) and Path(images).is_dir())
        results = list(self.iterate(images, batch_size=batch_size, score_thr=score_thr,
                                    out_dir=out_dir))
        return results[0] if single else results

    def iterate(self, images: Images, *, batch_size: int = 1, score_thr: float = SCORE_THR,
                out_dir: str | os.PathLike | None = None) -> Iterator[DetectionResult]:
        """The results of ``__call__`` one by one."""
        if batch_size < 1 or not 0 <= score_thr <= 1:
            raise ValueError(f'batch_size={batch_size} must be at least 1 and '
                             f'score_thr={score_thr} in [0, 1]')
        found = find_images(images)
        root = _common_folder(found)
        for start in range(0, len(found), batch_size):
            part = found[start:start + batch_size]
            pictures = [one if isinstance(one, np.ndarray) else _read(one) for one in part]
            for number, (one, picture, boxes) in enumerate(
                    zip(part, pictures, self._detect(pictures), strict=True), start):
                boxes = boxes.select(boxes.scores >= score_thr)
                is_array = isinstance(one, np.ndarray)
                result = DetectionResult(boxes.boxes_xyxy, boxes.scores, boxes.labels,
                                         self.classes, None if is_array else one,
                                         picture if is_array else None)
                if out_dir is not None:
                    _write(result, Path(out_dir), f'{number:08}.jpg' if is_array else
                           name_below(one, root))
                yield result

    def _detect(self, pictures: list[np.ndarray]) -> list[FrameBoxes]:
        if hasattr(self.detector, 'detect_batch'):
            return self.detector.detect_batch(pictures)
        return [self.detector.detect(picture) for picture in pictures]


def load_detector(source: Any, weights: str | os.PathLike | None = None, *, device: str = 'cpu',
                  **options: Any) -> DetectionModel:
    """A model from a config of MMDetection with its weights, an ONNX file, a zoo name, a
    detector, or a function with ``classes=``.

    Args:
        source: a config ends in .py, .json, .yaml or .yml, begins with ``mmdet::``, or is one of
            this package by its name; with weights also where the zoo has a model of that name.
        weights: .pth, .safetensors or ``zoo:NAME``; of a config alone.
        device: of a config's network, e.g. 'cuda:0'.
        options: of ``runtime.detectors.as_detector``.

    Raises:
        VisionError: VIS-CONFIG-1789, the config is not one of a detector, or something has
            no effect; VIS-ENV-515, no such device; and what reading it raises.
    """
    text = os.fspath(source) if isinstance(source, str | os.PathLike) else ''
    is_config = text.startswith('mmdet::') or text.endswith(('.py', '.json', '.yaml', '.yml')) or \
        text in config_names() and (weights is not None or text not in load_index())
    if not is_config:
        if weights is not None or device != 'cpu':
            raise _not_for(text or type(source).__name__, 'it takes no weights and runs on the '
                           'CPU')
        from vision.lattice.runtime.detectors import as_detector
        return DetectionModel(as_detector(source, **options))
    if options:
        raise _not_for(text, f'a config takes no {", ".join(options)}')
    import_extra('mmdet', extra='train', needed_for='a detector of MMDetection')
    from vision.common.nn.devices import find_device
    from vision.lattice.mm.mmdet_adapter import MMDetDetector
    device = find_device(device)
    if not text.startswith('mmdet::'):
        from vision.common.mm.launch import read_config_alone
        from vision.common.mm.tasks import task_of
        source = read_config_alone(text)
        if (task := task_of(source)) != 'detect':
            raise _not_for(text, f'its model is for another task: {task}')
    return DetectionModel(MMDetDetector(source, weights, score_thr=0.0).to(device))


def find_images(images: Images) -> list[Path | np.ndarray]:
    """The pictures that are meant, in order: of a folder all below it, by name; arrays (H, W, 3)
    uint8 BGR as they are.

    Raises:
        VisionError: VIS-INPUT-1749, there is none.
    """
    if isinstance(images, np.ndarray):
        return [images]
    if isinstance(images, list | tuple):
        return [one for part in images for one in find_images(part)]
    return pictures_of([images])


def _read(path: Path) -> np.ndarray:
    from vision.common.nn.images import read_image
    return read_image(path)


def _common_folder(found: Sequence[Path | np.ndarray]) -> str:
    folders = [str(one.absolute().parent) for one in found if not isinstance(one, np.ndarray)]
    return os.path.commonpath(folders) if folders else '.'


def _write(result: DetectionResult, folder: Path, name: str) -> None:
    import cv2
    picture = folder / 'vis' / name
    if not cv2.haveImageWriter(picture.name):
        picture = picture.with_name(f'{picture.name}.jpg')
    with atomic_write(picture) as file:
        file.write(cv2.imencode(picture.suffix, result.draw())[1].tobytes())
    # Beside a.png there may be a.jpg.
    with atomic_write(folder / 'preds' / f'{name}.json', 'w') as file:
        json.dump(result.to_dict(), file)


def _not_for(source: str, why: str) -> VisionError:
    return VisionError('VIS-CONFIG-1789', f'no detector can be loaded from {source} like this',
                       where=source, why=why, do='give the config of a detector with its '
                       'weights, or an .onnx file or zoo name alone')
