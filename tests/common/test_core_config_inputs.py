"""What a run will read is looked for first; the error has the command that makes it."""

from pathlib import Path

import pytest

from vision.common.core.config_inputs import require_inputs, weights_named
from vision.common.core.errors import VisionError


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / 'set' / 'annotations').mkdir(parents=True)
    (tmp_path / 'set' / 'train').mkdir()
    (tmp_path / 'set' / 'annotations' / 'train.json').write_text('{}')
    return tmp_path


def config(root: Path, **changes) -> dict:
    dataset = dict(type='X', data_root=str(root / 'set'), ann_file='annotations/train.json',
                   data_prefix=dict(img='train')) | changes
    return dict(train_dataloader=dict(dataset=dataset), val_dataloader=None,
                prepare={str(root / 'other'): 'python prepare.py --out other'})


def test_what_is_there_passes(root):
    require_inputs(config(root), ('train_dataloader', 'val_dataloader'))
    require_inputs(config(root, ann_file='', data_prefix='train'), ('train_dataloader',))
    require_inputs(config(root, data_root='s3://bucket'), ('train_dataloader',))
    # a key of that name of somebody else's data set may mean anything
    require_inputs(config(root, pairs='/nowhere', path='/nowhere'), ('train_dataloader',))


@pytest.mark.parametrize(('changes', 'key', 'near'), [
    (dict(ann_file='annotations/trian.json'), 'ann_file', 'train.json'),
    (dict(data_prefix=dict(img='trian')), 'data_prefix.img', 'train'),
    (dict(data_prefix='trian'), 'data_prefix', 'train'),
    (dict(type='vision.FacePairs', pairs='/nowhere/pairs.txt'), 'pairs', '')])
def test_what_is_missing_is_named_by_its_key_with_names_like_it(root, changes, key, near):
    with pytest.raises(VisionError) as caught:
        require_inputs(config(root, **changes), ('train_dataloader',))
    assert caught.value.code == 'VIS-DATA-1800'
    assert caught.value.where == f'train_dataloader.dataset.{key}'
    assert near in caught.value.why and 'PATH' in caught.value.do


def test_a_missing_data_set_comes_with_the_command_that_makes_it(root):
    with pytest.raises(VisionError) as caught:
        require_inputs(config(root, data_root=str(root / 'other')), ('train_dataloader',))
    assert caught.value.do == 'python prepare.py --out other'
    assert caught.value.where.endswith('data_root') and 'set' in caught.value.why


def test_the_command_is_not_given_where_the_folder_is_there(root):
    (root / 'other').mkdir()
    with pytest.raises(VisionError) as caught:
        require_inputs(config(root, data_root=str(root / 'other')), ('train_dataloader',))
    assert 'python prepare.py' not in caught.value.do


def test_sets_inside_of_others_and_evaluators_are_looked_at(root):
    inner = config(root, data_root='/nowhere')['train_dataloader']['dataset']
    for dataset, key in ((dict(type='Repeat', dataset=inner), 'dataset.dataset.data_root'),
                         (dict(type='Concat', datasets=[inner]), 'dataset.datasets.0.data_root'),
                         (dict(type='Mixed', videos=[inner]), 'dataset.videos.0.data_root')):
        with pytest.raises(VisionError, match=f'train_dataloader.{key}'):
            require_inputs(dict(train_dataloader=dict(dataset=dataset)), ('train_dataloader',))
    with pytest.raises(VisionError, match='test_evaluator.1.ann_file'):
        require_inputs(dict(test_dataloader=dict(dataset=dict()), test_evaluator=[
            dict(type='A'), dict(type='B', ann_file='/nowhere.json')]), ('test_dataloader',))


def test_every_data_set_of_ours_that_a_command_makes_says_so(repository):
    """The commands stand in the configs alone, and name files that are there."""
    from mmengine.config import Config
    for path in sorted((repository / 'configs/_base_/datasets').glob('*.py')):
        found = Config.fromfile(path)
        folder = Path(found.train_dataloader.dataset.get('data_root') or 'data/ILSVRC')
        if path.stem == 'coco':
            continue  # everybody's own copy
        assert str(folder) in found.prepare, path.name
        for command in found.prepare.values():
            scripts = [word for word in command.split() if word.endswith('prepare.py')]
            assert all((repository / script).is_file() for script in scripts), command


def test_weights_of_parts_and_detectors_are_found():
    model = dict(type='A', backbone=dict(init_cfg=[dict(type='Pretrained', checkpoint='b.pth')]),
                 neck=dict(init_cfg=dict(type='Pretrained', checkpoint='torchvision://r50')),
                 detector=dict(type='MMDetDetector', config='c.py', checkpoint='d.pth'))
    backbone = ('model.backbone.init_cfg.0.checkpoint', 'b.pth')
    assert list(weights_named(model, with_detector=False)) == [backbone]
    assert list(weights_named(model, with_detector=True)) == [
        backbone, ('model.detector.checkpoint', 'd.pth')]
    onnx = dict(type='A', detector=dict(type='OnnxDetector', path='zoo:x'))
    assert list(weights_named(onnx, with_detector=True)) == [('model.detector.path', 'zoo:x')]
