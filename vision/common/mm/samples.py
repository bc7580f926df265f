"""The samples of a data set before, between and after the transforms of its pipeline."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from vision.common.core.errors import VisionError
from vision.common.nn.images import read_image
from vision.common.runtime.drawing import class_colour, draw_boxes, in_a_row, sheet, titled

MODES = ('original', 'transformed', 'concat', 'pipeline')
TILE = 200  # px, height of a picture on a sheet
MAX_WIDTH = 420  # px, of a picture there


@dataclass(frozen=True, eq=False)
class View:
    """A sample at one place of its pipeline.

    Args:
        title: the transform that it comes from; 'original' before the first.
        image: (H, W, 3) uint8 BGR with its boxes drawn.
    """

    title: str
    image: np.ndarray


class _Recorder:
    """A transform that also notes what it gives."""

    def __init__(self, transform: Any, views: list[View], classes: Sequence[str],
                 is_first: bool) -> None:
        self.transform, self.views, self.classes = transform, views, classes
        self.is_first = is_first

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transform, name)

    def __call__(self, results: dict) -> Any:
        if self.is_first:
            self.views.clear()  # also when another sample is drawn in place of one without boxes
            self._note('original', results)
        given = self.transform(results)
        if given is not None:
            pictures = getattr(self.transform, 'pictures', None)
            if pictures is None:
                self._note(type(self.transform).__name__, given)
            else:
                self.views += [View(title, image) for title, image in pictures(given)]
        return given

    def _note(self, title: str, results: dict) -> None:
        image = picture_of(results, self.classes)
        if image is not None:
            label = results.get('gt_label') if title == 'original' else None
            self.views.append(View(title if label is None else
                                   f'{title}: {_name(self.classes, int(label))}', image))


def record(dataset: Any) -> list[list[View]]:
    """Let all pipelines of a data set, and of those that it is made of, note what they give.

    Returns:
        the notes of each pipeline about the last sample, from the innermost outwards.
    """
    notes: list[list[View]] = []
    classes = tuple((getattr(dataset, 'metainfo', None) or {}).get('classes') or ())

    def walk(node: Any) -> None:
        children = [getattr(node, name, None) for name in ('dataset', 'datasets', 'videos',
                                                           'images')]
        for child in children:
            for one in child if isinstance(child, list | tuple) else [child]:
                if hasattr(one, '__getitem__') and not isinstance(one, np.ndarray | str):
                    walk(one)
        pipeline = getattr(node, 'pipeline', None)
        steps = pipeline if isinstance(pipeline, list) else getattr(pipeline, 'transforms', None)
        if steps:
            views: list[View] = []
            notes.append(views)
            steps[:] = [_Recorder(step, views, classes, is_first=place == 0)
                        for place, step in enumerate(steps)]

    walk(dataset)
    return notes


def views_of(dataset: Any, num_samples: int, *, seed: int = 0) -> Iterator[list[View]]:
    """Views of samples that are evenly spread over a data set.

    Raises:
        VisionError: VIS-DATA-1788, its pipeline shows no picture.
    """
    notes = record(dataset)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    for place in places_of(dataset, num_samples):
        dataset[place]
        views = [view for pipeline in notes for view in pipeline]
        if not views:
            raise VisionError('VIS-DATA-1788', f'{type(dataset).__name__} shows no picture',
                              why='no transform of its pipeline gives an image (img, inputs)',
                              do='give the transform a method pictures(results)')
        yield views


def places_of(dataset: Any, num_samples: int) -> list[Any]:
    """Indices of samples; (video, frame) where a test asks for frames."""
    if hasattr(dataset, 'get_len_per_video') and getattr(dataset, 'test_mode', False):
        places = [(video, frame) for video in range(len(dataset))
                  for frame in range(dataset.get_len_per_video(video))]
    else:
        places = list(range(len(dataset)))
    chosen = np.linspace(0, len(places) - 1, min(num_samples, len(places))).astype(int)
    return [places[i] for i in chosen]


def chosen_views(views: Sequence[View], mode: str) -> list[View]:
    """Those that a mode shows."""
    return dict(original=views[:1], transformed=views[-1:], pipeline=views,
                concat=[views[0], views[-1]] if len(views) > 1 else views)[mode]


def row_of(views: Sequence[View]) -> np.ndarray:
    """Views of one sample side by side under their titles, of one height: (H, W, 3) uint8 BGR."""
    return in_a_row([titled(_scaled(view.image), view.title) for view in views])


def contact_sheet(samples: Sequence[Sequence[View]], mode: str) -> np.ndarray:
    """Samples on a sheet (H, W, 3) uint8 BGR, row by row."""
    return sheet([row_of(chosen_views(views, mode)) for views in samples])


def picture_of(results: Mapping[str, Any], classes: Sequence[str]) -> np.ndarray | None:
    """The image (H, W, 3) uint8 BGR of a sample, unpacked or packed, with its boxes; None without
    one."""
    if isinstance(results.get('img'), np.ndarray):
        image, boxes, labels = results['img'], _first(results, 'gt_bboxes', 'bboxes'), _first(
            results, 'gt_bboxes_labels', 'labels', 'gt_label')
    elif isinstance(results.get('inputs'), torch.Tensor):
        sample = results.get('data_samples')
        truth = sample.get('gt_instances') if sample is not None else None
        image = np.moveaxis(results['inputs'].numpy(), -3, -1)
        boxes = truth.get('bboxes') if truth is not None else None
        labels = truth.get('labels') if truth is not None else \
            sample.get('gt_label') if sample is not None else None
    elif 'images' in results and results['images']:  # a whole video: its middle frame
        middle = results['images'][len(results['images']) // 2]
        image, boxes, labels = read_image(middle['img_path']), middle['bboxes'], middle['labels']
    elif 'img_path' in results:
        rows = results.get('instances') or []
        image = read_image(results['img_path'])
        boxes = np.array([row['bbox'] for row in rows if 'bbox' in row]).reshape(-1, 4)
        labels = [row['bbox_label'] for row in rows if 'bbox' in row]
    else:
        return None
    return _annotated(_as_bgr(image), boxes, labels, classes)


def _annotated(image: np.ndarray, boxes: Any, labels: Any, classes: Sequence[str]) -> np.ndarray:
    labels = np.ravel(np.asarray(_array(labels) if labels is not None else [])).astype(int)
    names = [_name(classes, label) for label in labels.tolist()]
    if boxes is None:
        return image
    corners = _array(boxes).reshape(-1, 4)
    return draw_boxes(image, corners, names[:len(corners)] or [''] * len(corners),
                      [class_colour(label) for label in labels.tolist()[:len(corners)]]
                      or [class_colour(0)] * len(corners), width=1)


def _name(classes: Sequence[str], label: int) -> str:
    return str(classes[label]) if label < len(classes) else str(label)


def _array(value: Any) -> np.ndarray:
    value = getattr(value, 'tensor', value)  # mmdet's box types wrap a tensor
    return value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _first(results: Mapping[str, Any], *names: str) -> Any:
    return next((results[name] for name in names if results.get(name) is not None), None)


def _as_bgr(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of an image, a grey image, floats (normalised ones are stretched), or of
    several crops, side by side."""
    if image.ndim == 4:
        return in_a_row([_as_bgr(one) for one in image])
    image = image[:, :, None] if image.ndim == 2 else image
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 255 or high <= 1:
            image = (image - low) * (255 / max(high - low, 1e-9))
        image = image.round().astype(np.uint8)
    return np.ascontiguousarray(np.repeat(image, 3, 2) if image.shape[2] == 1 else image)


def _scaled(image: np.ndarray) -> np.ndarray:
    scale = min(TILE / image.shape[0], MAX_WIDTH / image.shape[1])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else
                       cv2.INTER_NEAREST)
    return cv2.copyMakeBorder(small, 0, TILE - small.shape[0], 0, 0, cv2.BORDER_CONSTANT)
