"""Any mmdet detector as the lattice sees it: one BGR frame in, boxes in original pixels out.

This is the only door through which mmdet's models enter the room. The network is wrapped, never
subclassed, and always frozen: evaluation mode, no gradients. Measured on 320 x 240 frames, mmdet's
test pipeline and preprocessor take 0.5 ms of the 60-120 ms of a Faster R-CNN, so the pipeline is
kept as it is, built once, without its annotation transforms.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from torch import nn

from vision.common.core.errors import VisionError
from vision.common.mm.safe_files import read_plain_files_everywhere
from vision.common.nn.checkpoint import class_names, load_checkpoint, load_state
from vision.lattice.core.structures import FrameBoxes
from vision.registry import MODELS

# Class names printed in an error; all of them would fill the screen.
NUM_NAMES = 4


@MODELS.register_module()
class MMDetDetector(nn.Module):
    """A frozen detector of mmdet.

    Args:
        config: path of a config file, an installed mmdet config such as
            ``mmdet::yolox/yolox_s_8xb8-300e_coco.py``, or a ``Config``.
        checkpoint: path or ``zoo:NAME``. Only tensors are read from it: the config text that
            MMEngine stores in checkpoints is ignored, and no pickled code runs.
        score_thr: boxes below are dropped. It cannot bring back what the model's own
            ``test_cfg`` has dropped.
        max_per_frame: at most this many boxes, the best ones.
        allow_random: accept ``checkpoint=None`` and leave the weights as they are initialised.
            Without it a forgotten checkpoint would look like a bad detector.

    Attributes:
        classes: class names in label order.

    Raises:
        VisionError: VIS-CONFIG-801..804, VIS-CONFIG-815 about the config, VIS-CKPT-805..806 about
            the checkpoint, and what loading it raises (``vision.common.nn.checkpoint``).
    """

    def __init__(self, config: str | PathLike | Config, checkpoint: str | PathLike | None = None,
                 *, score_thr: float = 0.01, max_per_frame: int = 100,
                 allow_random: bool = False) -> None:
        super().__init__()
        if not 0 <= score_thr < 1 or max_per_frame < 1:
            raise VisionError('VIS-CONFIG-801', f'score_thr={score_thr} must be in [0, 1) and '
                              f'max_per_frame={max_per_frame} at least 1', where='MMDetDetector',
                              do='change what is out of its range, or leave it out')
        if checkpoint is None and not allow_random:
            raise VisionError('VIS-CKPT-805', 'the detector has no checkpoint',
                              where='MMDetDetector', why='random weights detect nothing',
                              do='give checkpoint=PATH or zoo:NAME, or allow_random=True')
        self.score_thr, self.max_per_frame = score_thr, max_per_frame
        config = read_config(config)
        with _scope_of(config):
            self.model = _build_model(config)
            self.pipeline = _build_pipeline(config)
        saved_classes = () if checkpoint is None else _load_weights(self.model, checkpoint)
        self.classes = _class_names(config, saved_classes, self.model)
        self.model.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> MMDetDetector:
        """Stays in evaluation mode: batch statistics of a frozen detector never move."""
        return super().train(False)

    @torch.no_grad()
    def detect(self, image_bgr: np.ndarray) -> FrameBoxes:
        """Boxes of one frame, best first, in pixels of ``image_bgr``.

        Shapes: image_bgr (H, W, 3) uint8.

        Raises:
            ValueError: the array has another shape or type.
        """
        return self.detect_batch([image_bgr])[0]

    @torch.no_grad()
    def detect_batch(self, images_bgr: Sequence[np.ndarray]) -> list[FrameBoxes]:
        """``detect`` of several frames in one pass of the network. Frames of unequal sizes are
        padded to the largest, which may change boxes a little.

        Raises:
            ValueError: an array has another shape or type.
        """
        for image in images_bgr:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ValueError('image_bgr must be (H, W, 3) uint8, got '
                                 f'{image.shape} {image.dtype}')
        packed = [self.pipeline(dict(img=image, img_id=0)) for image in images_bgr]
        batch = {key: [sample[key] for sample in packed] for key in ('inputs', 'data_samples')}
        return [self._best(sample.pred_instances) for sample in self.model.test_step(batch)]

    def _best(self, found) -> FrameBoxes:
        boxes = FrameBoxes(found.bboxes.cpu().numpy(), found.scores.cpu().numpy(),
                           found.labels.cpu().numpy())
        # Stable, so that equal scores keep the model's order on every platform.
        order = np.argsort(-boxes.scores, kind='stable')
        return boxes.select(order[boxes.scores[order] >= self.score_thr][:self.max_per_frame])


def read_config(config: str | PathLike | Config) -> Config:
    """A detector's config from a path, an ``mmdet::`` name or a ``Config`` (which is copied).

    Raises:
        VisionError: VIS-CONFIG-802, it cannot be read.
    """
    if isinstance(config, Config):
        return copy.deepcopy(config)
    try:
        read_plain_files_everywhere()  # a YAML config is data
        return get_config(config) if '::' in str(config) else Config.fromfile(config)
    except (OSError, ValueError, KeyError, SyntaxError) as error:
        raise VisionError('VIS-CONFIG-802', f'cannot read the detector config {config}',
                          where='MMDetDetector', why=str(error),
                          do='give the path of a config file or mmdet::FOLDER/NAME.py') from error


@contextmanager
def _scope_of(config: Config) -> Iterator[None]:
    """Resolve mmdet's short names while building, whatever scope the process has."""
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    scope = config.get('default_scope') or 'mmdet'
    # The vision scope knows nothing of mmdet's short names but reaches them by prefix.
    with DefaultScope.overwrite_default_scope(scope):
        yield


def _build_model(config: Config) -> nn.Module:
    from mmdet.registry import MODELS as MMDET_MODELS
    if 'model' not in config:
        raise VisionError('VIS-CONFIG-803', 'the detector config has no model',
                          where=str(config.filename), do='give a config of a detector')
    # ``init_cfg`` entries that would download act only in init_weights(), which nobody calls.
    return revert_sync_batchnorm(MMDET_MODELS.build(config.model))


def _build_pipeline(config: Config):
    """The test pipeline, fed with an array and without transforms that read annotations."""
    from mmcv.transforms import Compose
    steps = [step for step in _find(config, 'pipeline') or []
             if not step['type'].endswith('Annotations')]
    if not steps or not steps[0]['type'].endswith('LoadImageFromFile'):
        raise VisionError('VIS-CONFIG-815', 'the test pipeline of the detector config does not '
                          'begin with LoadImageFromFile', where=str(config.filename),
                          why='frames take the place of the file that it would read',
                          do='give a config with test_dataloader.dataset.pipeline')
    steps[0] = dict(type='mmdet.LoadImageFromNDArray',
                    to_float32=steps[0].get('to_float32', False))
    return Compose(steps)


def _find(config: Config, key: str):
    """``key`` of the test data set, through wrappers such as RepeatDataset and ConcatDataset."""
    dataset = config.get('test_dataloader', {}).get('dataset', {})
    while key not in dataset and ('dataset' in dataset or dataset.get('datasets')):
        dataset = dataset.get('dataset') or dataset['datasets'][0]
    return dataset.get(key)


def _load_weights(model: nn.Module, checkpoint: str | PathLike) -> tuple[str, ...]:
    """Load exactly the model's tensors; the class names that the file carries, if any."""
    from vision.zoo import resolve
    path = resolve(checkpoint)
    if path.suffix == '.onnx':
        raise VisionError('VIS-CKPT-806', f'{path.name} is an ONNX file, not a checkpoint',
                          where=str(path), why='mmdet loads its own tensors',
                          do='convert it: vision convert yolox '
                          f'{checkpoint} work_dirs/yolox_nano.pth')
    content = load_checkpoint(path)
    load_state(model, content['state_dict'], where=str(path))
    return class_names(content) or ()


def _class_names(config: Config, saved: tuple[str, ...], model: nn.Module) -> tuple[str, ...]:
    """Names by the config, else the checkpoint, else the type of the config's test data set."""
    from mmdet.registry import DATASETS
    metainfo = _find(config, 'metainfo') or {}
    dataset = DATASETS.get(_find(config, 'type') or '')
    default = getattr(dataset, 'METAINFO', {}).get('classes', ())
    names = tuple(metainfo.get('classes') or saved or default)
    head = getattr(model, 'bbox_head', None) or getattr(model.roi_head, 'bbox_head', None)
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    if len(names) != head.num_classes:
        raise VisionError('VIS-CONFIG-804', f'the detector knows {head.num_classes} classes but '
                          f'{len(names)} names are given', where=str(config.filename),
                          why='labels would get wrong names: ' + ', '.join(names[:NUM_NAMES]),
                          do='set test_dataloader.dataset.metainfo.classes in its config')
    return names
