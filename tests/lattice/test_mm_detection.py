"""Detectors of MMDetection: batches, and test-time augmentation by a law of symmetry."""

import copy

import numpy as np
import pytest
import torch
from mmengine.config import Config

from vision.common.core.errors import VisionError
from vision.common.mm.launch import read_config_alone
from vision.common.mm.tasks import task_of
from vision.lattice.mm.augmented_test import META_KEYS, with_tta
from vision.lattice.mm.mmdet_adapter import MMDetDetector

CONFIG = 'configs/detectors/faster-rcnn_r18-tiny_moving-sprites.py'
PACK = dict(type='mmdet.PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape',
                                                   'scale_factor'))


def noise(seed: int, height=96, width=128) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope='module')
def config(repository_root) -> Config:
    config = read_config_alone(repository_root / CONFIG)
    # A network without weights finds something everywhere.
    config.model.test_cfg.rcnn.score_thr = 0.0
    return config


@pytest.fixture(scope='module')
def repository_root():
    from pathlib import Path
    return Path(__file__).resolve().parents[2]


def test_a_batch_finds_what_single_pictures_do(config):
    torch.manual_seed(0)
    detector = MMDetDetector(config, allow_random=True)
    images = [noise(seed) for seed in range(3)]
    together = detector.detect_batch(images)
    assert [len(boxes) > 0 for boxes in together] == [True] * 3
    for image, boxes in zip(images, together, strict=True):
        alone = detector.detect(image)
        np.testing.assert_allclose(boxes.boxes_xyxy, alone.boxes_xyxy, atol=0.05)
        np.testing.assert_allclose(boxes.scores, alone.scores, atol=1e-4)
    with pytest.raises(ValueError, match='uint8'):
        detector.detect_batch([images[0], images[0].astype(float)])


def augmented(config: Config, pipeline: list):
    """What TTA finds on a picture: a function of the picture."""
    from mmengine.registry import MODELS, init_default_scope
    config = copy.deepcopy(config)
    config.test_dataloader.dataset.pipeline = pipeline
    with_tta(config)
    init_default_scope('vision')
    from mmengine.dataset import Compose, pseudo_collate
    torch.manual_seed(0)
    inner = MMDetDetector(_plain(config), allow_random=True).model
    hook = dict(config.custom_hooks[-1])
    assert hook['type'] == 'mmengine.PrepareTTAHook'
    model = MODELS.build(dict(hook['tta_cfg'], module=inner))
    steps = config.test_dataloader.dataset.pipeline
    assert steps[0]['type'] == 'LoadImageFromFile'
    compose = Compose([dict(type='mmdet.LoadImageFromNDArray'), *steps[1:]])

    def find(image: np.ndarray):
        with torch.no_grad():
            found = model.test_step(pseudo_collate([compose(dict(img=image, img_id=0))]))
        return found[0].pred_instances
    return find


def _plain(config: Config) -> Config:
    """The same model with a pipeline that the adapter reads."""
    config = copy.deepcopy(config)
    config.test_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile'), PACK]
    return config


@pytest.mark.parametrize('pad', [False, True])
def test_the_mirror_image_gives_the_mirrored_boxes(config, pad):
    """Both views are in the sum, so that mirroring the picture only exchanges them. Turned back
    in the padded picture, boxes would be off by the padding."""
    padding = [dict(type='mmdet.Pad', size=(160, 160))] if pad else []
    find = augmented(config, [dict(type='LoadImageFromFile'),
                              dict(type='mmdet.Resize', scale=(128, 96), keep_ratio=True),
                              *padding, PACK])
    image = noise(1)
    plain, mirrored = find(image), find(np.ascontiguousarray(image[:, ::-1]))
    assert len(plain.scores) > 5
    turned = mirrored.bboxes.clone()
    turned[:, 0], turned[:, 2] = 128 - mirrored.bboxes[:, 2], 128 - mirrored.bboxes[:, 0]
    torch.testing.assert_close(plain.scores[:5], mirrored.scores[:5], atol=1e-4, rtol=0)
    torch.testing.assert_close(plain.bboxes[:5], turned[:5], atol=0.1, rtol=0)


def test_pipelines_that_cannot_be_mirrored_are_refused(config):
    for steps in ([dict(type='LoadImageFromFile')],
                  [dict(type='LoadImageFromFile'), dict(type='mmdet.RandomFlip', prob=1.0), PACK]):
        changed = copy.deepcopy(config)
        changed.test_dataloader.dataset.pipeline = steps
        with pytest.raises(VisionError, match='VIS-CONFIG-1784'):
            with_tta(changed)


def test_a_pipeline_of_the_config_is_taken(config):
    changed = copy.deepcopy(config)
    changed.tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='Own')]
    changed.tta_model = dict(type='mmdet.DetTTAModel', tta_cfg=dict(max_per_img=7))
    with_tta(changed)
    assert changed.test_dataloader.dataset.pipeline == changed.tta_pipeline
    assert changed.custom_hooks[-1].tta_cfg.tta_cfg.max_per_img == 7
    assert 'flip_direction' in META_KEYS


@pytest.mark.parametrize(('path', 'task'), [
    (CONFIG, 'detect'), ('configs/lattice/lattice_yolox-nano_flow_coco.py', 'video'),
    ('configs/polynet/polynet-small_in1k.py', 'classify'),
    ('configs/faces/mobilefacenet_ms1m.py', 'faces')])
def test_tasks_of_configs(repository_root, path, task):
    assert task_of(read_config_alone(repository_root / path)) == task


def test_a_model_of_no_task_is_refused():
    with pytest.raises(VisionError, match='VIS-CONFIG-1793'):
        task_of(Config(dict(model=dict(type='vision.LinearClsHead'))))
