"""Reading and packing one frame."""

from __future__ import annotations

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from vision.common.core.errors import VisionError
from vision.common.nn.images import read_image
from vision.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadVideoFrame(BaseTransform):
    """Read the image of one frame: ``img_path`` -> ``img``, ``img_shape``, ``ori_shape``.

    Raises:
        VisionError: the item is a whole video; the file is broken; its size is not the one in the
            annotation (then every box would be wrong).
    """

    def transform(self, results: dict) -> dict:
        """``results`` with ``img`` (H, W, 3) uint8 BGR, ``img_shape`` and ``ori_shape`` (H, W).

        Raises:
            VisionError: VIS-CONFIG-211, the item is a whole video; VIS-DATA-212, another size than
                in the annotation; and what ``read_image`` raises.
        """
        if 'img_path' not in results:
            raise VisionError('VIS-CONFIG-211', 'LoadVideoFrame got a whole video',
                              why='the sampler gave a video index, not (video, frame)',
                              do='sampler=dict(type=\'VideoFrameSampler\') in the data loader')
        image = read_image(results['img_path'])
        wanted = results.get('height', image.shape[0]), results.get('width', image.shape[1])
        if image.shape[:2] != tuple(wanted):
            raise VisionError('VIS-DATA-212', f'image {results["img_path"]} is '
                              f'{image.shape[1]}x{image.shape[0]}, its annotation says '
                              f'{wanted[1]}x{wanted[0]}', why='its boxes are in other pixels',
                              do='use the images that the annotation was made for')
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results


@TRANSFORMS.register_module()
class PackVideoFrame(BaseTransform):
    """Pack one unscaled frame for the lattice.

    Returns:
        inputs: uint8 tensor (3, H, W) BGR; data_samples: ``DetDataSample`` whose gt_instances and
        ignored_instances have bboxes (N, 4) float32 xyxy in original pixels, labels and
        instances_ids (N,) int64, and whose metainfo holds ``meta_keys``.
    """

    def __init__(self, meta_keys: tuple[str, ...] = (
            'img_id', 'video_id', 'frame_id', 'video_length', 'img_path', 'ori_shape', 'img_shape',
            'is_labelled')) -> None:
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict) -> dict:
        """dict(inputs, data_samples) of one frame with its boxes."""
        sample = DetDataSample(metainfo={key: results[key] for key in self.meta_keys})
        ignored = torch.from_numpy(results['is_crowd'])
        instances = InstanceData(bboxes=torch.from_numpy(results['bboxes']),
                                 labels=torch.from_numpy(results['labels']),
                                 instances_ids=torch.from_numpy(results['instances_ids']))
        sample.gt_instances, sample.ignored_instances = instances[~ignored], instances[ignored]
        pixels = np.ascontiguousarray(results['img'].transpose(2, 0, 1))
        return dict(inputs=torch.from_numpy(pixels), data_samples=sample)
