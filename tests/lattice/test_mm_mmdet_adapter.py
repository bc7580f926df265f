"""MMDetDetector against mmdet's own path, its laws and its refusals."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from vision.common.core.errors import VisionError
from vision.lattice.mm.mmdet_adapter import MMDetDetector
from vision.registry import MODELS

CONFIG = Path(__file__).parents[2] / 'configs/detectors/faster-rcnn_r18-tiny_moving-sprites.py'
SPRITES = ('disc', 'square', 'triangle', 'star', 'cross', 'ring', 'crescent', 'arrow')


@pytest.fixture(scope='module')
def config():
    return Config.fromfile(CONFIG)


@pytest.fixture(scope='module')
def detector(config):
    """Random weights: its boxes mean nothing, but each of them is the model's."""
    torch.manual_seed(0)
    return MMDetDetector(config, allow_random=True, score_thr=0.0)


@pytest.fixture(scope='module')
def checkpoint(detector, tmp_path_factory):
    """Holds what MMEngine stores too: names, and a config text that must never run."""
    path = tmp_path_factory.mktemp('checkpoint') / 'random.pth'
    meta = dict(cfg='raise SystemExit("config text was run")',
                dataset_meta=dict(classes=SPRITES))
    torch.save(dict(meta=meta, state_dict=detector.model.state_dict()), path)
    return path


def frame(height=240, width=320, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def refusal(code, *args, **kwargs):
    with pytest.raises(VisionError) as caught:
        MMDetDetector(*args, **kwargs)
    assert caught.value.code == code
    return caught.value.render()


@pytest.mark.parametrize('size', [(240, 320), (97, 201), (480, 360)])
def test_boxes_equal_those_of_mmdets_own_pipeline_on_a_file(config, detector, tmp_path, size):
    from mmcv.transforms import Compose
    image = frame(*size)
    cv2.imwrite(str(tmp_path / 'frame.png'), image)
    data = Compose(config.test_dataloader.dataset.pipeline)(
        dict(img_path=str(tmp_path / 'frame.png'), img_id=0))
    with torch.no_grad():
        judge = detector.model.test_step(
            dict(inputs=[data['inputs']], data_samples=[data['data_samples']]))[0].pred_instances
    boxes = detector.detect(image)
    assert len(boxes) == len(judge) > 10
    order = np.argsort(-judge.scores.numpy(), kind='stable')
    np.testing.assert_array_equal(boxes.boxes_xyxy, judge.bboxes.numpy()[order])
    np.testing.assert_array_equal(boxes.scores, judge.scores.numpy()[order])
    np.testing.assert_array_equal(boxes.labels, judge.labels.numpy()[order])


def test_a_frame_of_twice_the_size_gives_boxes_of_twice_the_size(detector):
    """Halving repeated pixels gives the small frame back, so the network sees the same."""
    small = frame(seed=1)
    large = small.repeat(2, axis=0).repeat(2, axis=1)
    once, twice = detector.detect(small), detector.detect(large)
    assert len(once) > 10
    np.testing.assert_allclose(twice.boxes_xyxy, 2 * once.boxes_xyxy, atol=1e-3)
    np.testing.assert_array_equal(twice.scores, once.scores)


def test_boxes_are_sorted_cut_and_thresholded(config, checkpoint, detector):
    every = detector.detect(frame())
    assert (np.diff(every.scores) <= 0).all()
    threshold = float(every.scores[20])
    few = MMDetDetector(config, checkpoint, score_thr=threshold, max_per_frame=7)
    np.testing.assert_array_equal(few.detect(frame()).boxes_xyxy, every.boxes_xyxy[:7])
    strict = MMDetDetector(config, checkpoint, score_thr=threshold)
    assert len(strict.detect(frame())) == (every.scores >= np.float32(threshold)).sum()
    assert len(MMDetDetector(config, checkpoint, score_thr=0.999).detect(frame())) == 0


def test_it_stays_frozen_whatever_training_does_around_it(detector):
    parent = torch.nn.ModuleList([detector]).train()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    detector.detect(frame(seed=2))
    assert parent.training and not any(module.training for module in detector.modules())
    assert not any(parameter.requires_grad for parameter in detector.parameters())
    assert all(torch.equal(before[name], value) for name, value in detector.state_dict().items())


@pytest.mark.parametrize('scope', ['vision', 'mmdet'])
def test_it_is_built_from_any_scope_and_leaves_the_scope_alone(scope, checkpoint):
    with DefaultScope.overwrite_default_scope(scope):
        built = MODELS.build(dict(type='vision.MMDetDetector', config=str(CONFIG),
                                  checkpoint=str(checkpoint)))
        assert DefaultScope.get_current_instance().scope_name == scope
    assert built.classes == SPRITES


def test_weights_come_from_the_checkpoint_and_its_config_text_is_not_run(
        config, checkpoint, detector):
    torch.manual_seed(1)
    loaded = MMDetDetector(config, checkpoint)
    wanted = detector.state_dict()
    assert all(torch.equal(wanted[name], value) for name, value in loaded.state_dict().items())


def test_safetensors_hold_the_same_weights(config, checkpoint, detector, tmp_path):
    from safetensors.torch import save_file
    save_file(detector.model.state_dict(), tmp_path / 'random.safetensors')
    loaded = MMDetDetector(config, tmp_path / 'random.safetensors', score_thr=0.0)
    np.testing.assert_array_equal(loaded.detect(frame()).scores, detector.detect(frame()).scores)


def test_class_names_come_from_config_then_checkpoint_then_data_set(checkpoint):
    config = Config.fromfile(CONFIG)
    metainfo = config.test_dataloader.dataset.metainfo
    metainfo.classes = tuple('abcdefgh')
    assert MMDetDetector(config, checkpoint).classes == tuple('abcdefgh')
    del config.test_dataloader.dataset['metainfo']
    assert MMDetDetector(config, checkpoint).classes == SPRITES
    message = refusal('VIS-CONFIG-804', config, allow_random=True)
    assert 'knows 8 classes but 80 names' in message


def test_an_installed_mmdet_config_is_found_by_name():
    found = MMDetDetector('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', allow_random=True)
    assert len(found.classes) == 80 and found.classes[0] == 'person'


def test_a_wrapped_test_data_set_is_looked_through(config, checkpoint):
    wrapped = Config(dict(
        model=config.model, test_dataloader=dict(dataset=dict(
            type='ConcatDataset', datasets=[config.test_dataloader.dataset]))))
    assert MMDetDetector(wrapped, checkpoint).classes == SPRITES


def test_a_forgotten_checkpoint_is_refused(config):
    assert 'allow_random=True' in refusal('VIS-CKPT-805', config)


@pytest.mark.parametrize('limits', [dict(score_thr=1.0), dict(score_thr=-0.1),
                                    dict(max_per_frame=0)])
def test_limits_that_mean_nothing_are_refused(config, limits):
    assert 'max_per_frame' in refusal('VIS-CONFIG-801', config, allow_random=True, **limits)


@pytest.mark.parametrize('name', ['missing.py', 'mmdet::yolox/missing.py'])
def test_an_unknown_config_is_refused(name):
    assert name in refusal('VIS-CONFIG-802', name, allow_random=True)


def test_a_config_without_model_or_pipeline_is_refused(config):
    assert 'no model' in refusal('VIS-CONFIG-803', Config(dict(a=1)), allow_random=True)
    bare = Config(dict(model=config.model))
    assert 'LoadImageFromFile' in refusal('VIS-CONFIG-815', bare, allow_random=True)


def test_another_architecture_is_refused_with_names(config, detector, tmp_path):
    state = dict(detector.model.state_dict())
    state['extra.weight'] = state.pop('backbone.conv1.weight')
    state['roi_head.bbox_head.fc_cls.bias'] = torch.zeros(81)
    torch.save(dict(state_dict=state), tmp_path / 'other.pth')
    message = refusal('VIS-CKPT-305', config, tmp_path / 'other.pth')
    assert '1 missing (backbone.conv1.weight)' in message
    assert '1 unknown (extra.weight)' in message
    assert 'roi_head.bbox_head.fc_cls.bias (81,) instead of (9,)' in message


def test_a_checkpoint_cut_short_is_refused(config, checkpoint, tmp_path):
    content = checkpoint.read_bytes()
    (tmp_path / 'short.pth').write_bytes(content[:len(content) // 2])
    refusal('VIS-CKPT-303', config, tmp_path / 'short.pth')
    torch.save([torch.zeros(1)], tmp_path / 'list.pth')
    assert 'holds a list' in refusal('VIS-CKPT-337', config, tmp_path / 'list.pth')


class _Hostile:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (Path(self.mark),)


@pytest.mark.parametrize('write', [torch.save,
                                   lambda what, path: path.write_bytes(pickle.dumps(what))])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(config, tmp_path, write):
    write(dict(state_dict=_Hostile(str(tmp_path / 'mark'))), tmp_path / 'hostile.pth')
    refusal('VIS-CKPT-304', config, tmp_path / 'hostile.pth')
    assert not (tmp_path / 'mark').exists()


@pytest.mark.parametrize('image', [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32),
                                   np.zeros((8, 8, 4), np.uint8)])
def test_what_is_no_frame_is_refused(detector, image):
    with pytest.raises(ValueError, match=r'\(H, W, 3\) uint8'):
        detector.detect(image)
