"""Reading, cropping and packing of images for classification.

Everything else (``Resize``, ``RandomResize``, ``CenterCrop``, ``RandomFlip``) is mmcv's.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import BaseDataElement

from vision.classify.core.crops import crop_boxes, random_area_box
from vision.classify.runtime.ink import fit_ink
from vision.common.nn.images import read_image
from vision.registry import TRANSFORMS


@TRANSFORMS.register_module()
class ReadImage(BaseTransform):
    """``img_path`` -> ``img`` (H, W, 3) uint8 BGR, with the orientation of its EXIF data.

    Raises:
        VisionError: VIS-DATA-210, the file is missing, cut short or cannot be decoded.
    """

    def transform(self, results: dict) -> dict:
        """``results`` with ``img`` (H, W, 3) uint8 BGR, ``img_shape`` and ``ori_shape`` (H, W)."""
        image = read_image(
            results['img_path'], do="get this file again; broken='skip' of the data set takes "
            'another image in its place and counts')
        return dict(results, img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])


@TRANSFORMS.register_module()
class RandomResizedCrop(BaseTransform):
    """A random part of the image, resized (Inception's augmentation, arXiv:1409.4842).

    Args:
        scale: side, or (width, height), of the result.
        crop_ratio_range: area of the part over that of the image.
        aspect_ratio_range: width over height of the part.
    """

    def __init__(self, scale: int | Sequence[int], *,
                 crop_ratio_range: tuple[float, float] = (0.08, 1.0),
                 aspect_ratio_range: tuple[float, float] = (3 / 4, 4 / 3)) -> None:
        self.scale = (scale, scale) if isinstance(scale, int) else tuple(scale)
        self.crop_ratio_range, self.aspect_ratio_range = crop_ratio_range, aspect_ratio_range

    def transform(self, results: dict) -> dict:
        """``results`` with another ``img`` (height, width, 3) and ``img_shape``."""
        image = results['img']
        left, top, right, bottom = random_area_box(
            image.shape[0], image.shape[1], self.crop_ratio_range, self.aspect_ratio_range,
            np.random.uniform)
        part = cv2.resize(image[top:bottom, left:right], self.scale)
        return dict(results, img=part, img_shape=part.shape[:2])


@TRANSFORMS.register_module()
class MultiCrop(BaseTransform):
    """Several crops of one image: ``img`` becomes (C, size, size, 3).

    Args:
        crop_size: side in pixels.
        num_crops: 1 centre; 5 centre and corners; 10 those and their mirror images.
    """

    def __init__(self, crop_size: int, num_crops: int = 10) -> None:
        self.crop_size, self.num_crops = crop_size, num_crops

    def transform(self, results: dict) -> dict:
        """``results`` with ``img`` (C, crop_size, crop_size, 3), ``img_shape`` of one crop and
        ``num_crops``."""
        image = results['img']
        boxes = crop_boxes(*image.shape[:2], self.crop_size, 5 if self.num_crops == 10 else
                           self.num_crops)
        crops = [image[top:bottom, left:right] for left, top, right, bottom in boxes]
        if self.num_crops == 10:
            crops += [crop[:, ::-1] for crop in crops]
        return dict(results, img=np.stack(crops), img_shape=crops[0].shape[:2],
                    num_crops=len(crops))


@TRANSFORMS.register_module()
class FitInk(BaseTransform):
    """``img`` -> (size, size) uint8, the character in the middle; see ``runtime.ink``."""

    def __init__(self, size: int = 32, ink_px: int = 26) -> None:
        self.size, self.ink_px = size, ink_px

    def transform(self, results: dict) -> dict:
        """``results`` with ``img`` (size, size) uint8 and ``img_shape``."""
        image = fit_ink(results['img'], self.size, self.ink_px)
        return dict(results, img=image, img_shape=image.shape)


@TRANSFORMS.register_module()
class RandomInk(BaseTransform):
    """Characters as cameras and printers leave them: thicker or thinner, coarse, pale, noisy.

    Each of the four happens with the probability ``prob``, on its own. White ink on black.

    Args:
        coarse: least side, of that of the picture, that it is scaled to and back.
        noise: largest standard deviation, in grey levels.
        gain: least factor of the ink.
    """

    def __init__(self, prob: float = 0.3, *, coarse: float = 0.5, noise: float = 25.0,
                 gain: float = 0.6) -> None:
        self.prob, self.coarse, self.noise, self.gain = prob, coarse, noise, gain

    def transform(self, results: dict) -> dict:
        """``results`` with another ``img`` of the same shape (size, size) uint8."""
        image, size = results['img'], results['img'].shape[0]
        # NumPy's global state is what the runner seeds for each sample.
        happens = np.random.random(4) < self.prob
        if happens[0]:
            change = cv2.dilate if np.random.random() < 0.5 else cv2.erode
            image = cv2.addWeighted(image, 0.5, change(image, np.ones((2, 2), np.uint8)), 0.5, 0)
        if happens[1]:
            side = round(size * np.random.uniform(self.coarse, 1))
            image = cv2.resize(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA),
                               (size, size), interpolation=cv2.INTER_LINEAR)
        if happens[2]:
            image = cv2.convertScaleAbs(image, alpha=np.random.uniform(self.gain, 1))
        if happens[3]:
            noise = np.random.standard_normal(image.shape).astype(np.float32)
            image = np.clip(image + np.random.uniform(0, self.noise) * noise, 0, 255
                            ).astype(np.uint8)
        return dict(results, img=image)


@TRANSFORMS.register_module()
class MirrorToo(BaseTransform):
    """The image and its mirror image: ``img`` (H, W, 3) becomes (2, H, W, 3)."""

    def transform(self, results: dict) -> dict:
        """``results`` with ``img`` and its mirror image as two crops."""
        image = results['img']
        return dict(results, img=np.stack([image, image[:, ::-1]]), num_crops=2)


@TRANSFORMS.register_module()
class PackInputs(BaseTransform):
    """``img`` -> ``inputs`` (3, H, W) uint8, (1, H, W) of a grey image, or (C, 3, H, W) of crops;
    ``gt_label`` and metainfo -> ``data_samples``, a BaseDataElement with ``gt_label`` (1,) int64.
    """

    META_KEYS = ('sample_idx', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip',
                 'num_crops')

    def __init__(self, meta_keys: Sequence[str] = META_KEYS) -> None:
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict) -> dict:
        """dict(inputs, data_samples) of one image or its crops."""
        image = results['img']
        image = image[..., None] if image.ndim == 2 else image  # grey, as mmcv reads it
        image = np.ascontiguousarray(np.moveaxis(image, -1, -3))
        sample = BaseDataElement(metainfo={key: results[key] for key in self.meta_keys
                                           if key in results})
        if 'gt_label' in results:
            sample.gt_label = torch.tensor([results['gt_label']], dtype=torch.int64)
        return dict(inputs=torch.from_numpy(image), data_samples=sample)
