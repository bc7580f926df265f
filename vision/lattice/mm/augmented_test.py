"""Test-time augmentation of mmdet's detectors: the picture and its mirror image."""

from __future__ import annotations

from mmengine.config import Config

from vision.common.core.errors import VisionError

# mmdet's own defaults (tools/test.py of MMDetection).
TTA_MODEL = dict(type='mmdet.DetTTAModel', tta_cfg=dict(
    nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
META_KEYS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip',
             'flip_direction')
# The mirror image is made before these: mmdet turns boxes back in the unpadded picture.
AFTER_FLIP = ('Pad', 'PackDetInputs')


def with_tta(config: Config) -> None:
    """Let the test of a detector's config also look at each picture's mirror image.

    ``tta_model`` and ``tta_pipeline`` of the config are used where it has them.

    Raises:
        VisionError: VIS-CONFIG-1784, its pipeline is not one of a detector.
    """
    dataset = config.test_dataloader['dataset']
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset['dataset']
    dataset.pipeline = config.get('tta_pipeline') or _mirrored(dataset.get('pipeline') or [])
    model = dict(config.get('tta_model') or TTA_MODEL)
    config.setdefault('custom_hooks', [])
    config.custom_hooks = [*config.custom_hooks, dict(type='mmengine.PrepareTTAHook',
                                                      tta_cfg=model)]


def _mirrored(pipeline: list) -> list:
    steps = [dict(step) for step in pipeline]
    names = [step['type'].rpartition('.')[2] for step in steps]
    if not steps or names[-1] != 'PackDetInputs' or 'RandomFlip' in names \
            or 'TestTimeAug' in names:
        raise VisionError('VIS-CONFIG-1784', 'the test pipeline cannot be mirrored',
                          where='test_dataloader.dataset.pipeline',
                          why=f'its steps are {", ".join(names) or "none"}', do='end it with '
                          'PackDetInputs and flip nowhere in it, or write tta_model and '
                          'tta_pipeline into the config as MMDetection has them')
    cut = next(i for i, name in enumerate(names) if name in AFTER_FLIP)
    steps[-1]['meta_keys'] = tuple(dict.fromkeys((*steps[-1].get('meta_keys', ()), *META_KEYS)))
    flips = [dict(type='mmdet.RandomFlip', prob=prob) for prob in (0.0, 1.0)]
    return [*steps[:cut], dict(type='mmcv.TestTimeAug',
                               transforms=[flips, *([step] for step in steps[cut:])])]
