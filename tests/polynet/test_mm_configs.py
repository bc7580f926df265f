"""Every preset has a config of its name, and each config means what its name says."""

from pathlib import Path

import pytest
from mmengine.config import Config

from vision.polynet.core.arch import PRESETS

FOLDER = Path(__file__).resolve().parents[2] / 'configs' / 'polynet'
PUBLISHED = 'polynet-very-deep_in1k.py'


@pytest.mark.parametrize('preset', PRESETS)
def test_config_of_a_preset(preset):
    config = Config.fromfile(FOLDER / f'polynet-{preset}_in1k.py')
    assert config.model.backbone.arch == preset and config.model.head.num_classes == 1000
    assert config.optim_wrapper.optimizer.lr == 0.45
    assert config.auto_scale_lr.base_batch_size == 512


def test_published_network_has_its_factors():
    config = Config.fromfile(FOLDER / PUBLISHED)
    assert config.model.backbone.path_scales == 'released'
    assert config.model.backbone.residual_scale == 1


def test_ten_crop_config_changes_the_test_only():
    config = Config.fromfile(FOLDER / 'polynet-very-deep_10crop_in1k.py')
    assert [step.type for step in config.test_dataloader.dataset.pipeline] == [
        'ReadImage', 'Resize', 'MultiCrop', 'PackInputs']
    assert config.val_dataloader.dataset.pipeline[2].type == 'CenterCrop'
    assert config.model.test_cfg.crop_topk == 5
