"""Training transforms for still-image detectors on generated video."""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform

from vision.registry import TRANSFORMS


@TRANSFORMS.register_module()
class RandomObjectCrop(BaseTransform):
    """Crop a window around one object drawn at random.

    Compared with mmdet's RandomCrop, no sample is spent on background alone, and objects that the
    window cuts down to a sliver are marked as ignored: they are neither learnt, for nobody could
    name them, nor denied. Our choice: detectors trained from scratch within minutes see twice the
    objects per pixel.

    Args:
        crop_size: (height, width); the whole side where the image is smaller.
        min_visible: share of a box's area that must lie inside the window.

    Keys: reads and writes img, img_shape, gt_bboxes, gt_ignore_flags, gt_bboxes_labels.
    """

    def __init__(self, crop_size: tuple[int, int], min_visible: float = 0.5) -> None:
        if min(crop_size) < 1 or not 0 < min_visible <= 1:
            raise ValueError(f'crop_size={crop_size} must be positive and min_visible='
                             f'{min_visible} in (0, 1]')
        self.crop_size, self.min_visible = crop_size, min_visible

    def transform(self, results: dict) -> dict:
        """``results`` with image, boxes and flags cut to the window; boxes outside of it
        are gone."""
        height, width = results['img'].shape[:2]
        boxes = results['gt_bboxes']
        corners = boxes.numpy()
        chosen = corners[np.random.randint(len(corners))] if len(corners) else None
        left = _start(None if chosen is None else chosen[[0, 2]], self.crop_size[1], width)
        top = _start(None if chosen is None else chosen[[1, 3]], self.crop_size[0], height)
        results['img'] = np.ascontiguousarray(
            results['img'][top:top + self.crop_size[0], left:left + self.crop_size[1]])
        results['img_shape'] = results['img'].shape[:2]

        areas = boxes.areas.numpy()
        boxes.translate_((-left, -top))
        boxes.clip_(results['img_shape'])
        visible = boxes.areas.numpy() / np.maximum(areas, 1e-6)
        kept = visible > 0
        results['gt_bboxes'] = boxes[kept]
        results['gt_bboxes_labels'] = results['gt_bboxes_labels'][kept]
        hidden = visible[kept] < self.min_visible
        results['gt_ignore_flags'] = results['gt_ignore_flags'][kept] | hidden
        return results


def _start(span: np.ndarray | None, size: int, full: int) -> int:
    """First pixel of a window of ``size`` in ``full`` that holds ``span`` as far as it can."""
    last = max(full - size, 0)
    if span is None:
        return np.random.randint(last + 1)
    ends = np.clip([np.ceil(span[1]) - size, np.floor(span[0])], 0, last).astype(int)
    return np.random.randint(ends.min(), ends.max() + 1)
