"""Configs of each room train under a budget through tools/train.py, to the same weights."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from scripts import load_script

pytest.importorskip('mmdet')

from vision.common.nn.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow
BUDGET = 'activation_memory.budget=0.5'
ONE_PROCESS = ('train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False')


@pytest.fixture(scope='module')
def sprites(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'sprites'
    subprocess.run([sys.executable, 'datasets/moving_sprites/prepare.py', '--out', str(folder),
                    '--num-train', '4', '--num-val', '1', '--num-frames', '12', '--workers', '1'],
                   check=True, cwd=repository, capture_output=True)
    return f'{folder}/'


@pytest.fixture(scope='module')
def people(tmp_path_factory):
    """Ten people, each a folder of two pictures of noise."""
    generator, root = np.random.default_rng(0), tmp_path_factory.mktemp('faces')
    for person in range(10):
        (root / f'p{person}').mkdir()
        for number in range(2):
            cv2.imwrite(str(root / f'p{person}' / f'{number}.png'),
                        generator.integers(0, 256, (112, 112, 3), dtype=np.uint8))
    return root


@pytest.fixture
def compare(repository, tmp_path, monkeypatch):
    """Trains a config for three steps with and without a budget; the names of what differs."""
    monkeypatch.chdir(repository)
    torch.set_num_threads(1)

    def ends(config, options):
        main = load_script('tools/train.py').main

        def weights(folder, *more):
            assert main([str(config), '--work-dir', str(folder), '--cfg-options', *ONE_PROCESS,
                         'train_cfg.max_iters=3', 'default_hooks.checkpoint.interval=3',
                         'default_hooks.logger.interval=1', *options, *more]) == 0
            return load_checkpoint(folder / 'iter_3.pth')['state_dict']

        held = weights(tmp_path / 'held', BUDGET)  # first: the visualizer of a process is one
        (log,) = (tmp_path / 'held').glob('*/vis_data/scalars.json')
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        assert len(rows) == 3
        assert max(row['mem_saved'] for row in rows) > 0  # otherwise this proves nothing
        free = weights(tmp_path / 'free')
        assert free.keys() == held.keys()
        return [key for key, value in free.items() if not torch.equal(value, held[key])]

    return ends


def test_a_face_config(compare, people):
    assert compare('configs/faces/mobilefacenet_ivf_folder.py', [
        f'train_dataloader.dataset.data_root={people}', 'train_dataloader.batch_size=4',
        'model.head.num_classes=10', 'model.head.selector.num_active=6',
        'model.head.selector.num_lists=2']) == []


def test_a_lattice_config(compare, sprites):
    assert compare('configs/lattice/lattice_frcnn-tiny_t8-s2_moving-sprites.py', [
        f'train_dataloader.dataset.data_root={sprites}', 'train_dataloader.batch_size=2']) == []


def test_a_detector_with_images_of_several_sizes(compare, sprites, tmp_path, repository):
    """mmcv's operators write where autograd cannot see it; sizes change from step to step."""
    config = tmp_path / 'detector.py'
    base = repository / 'configs/detectors/faster-rcnn_r18-tiny_moving-sprites.py'
    config.write_text(f'_base_ = [{str(base)!r}]\n'
                      'val_dataloader = val_evaluator = val_cfg = None\n')
    assert compare(config, [f'train_dataloader.dataset.data_root={sprites}',
                            'train_dataloader.batch_size=8']) == []


def test_a_polynet_config(compare, people, tmp_path, repository):
    config = tmp_path / 'polynet.py'
    base = repository / 'configs/polynet/polynet-small_imagenette160.py'
    config.write_text(f'''
_base_ = [{str(base)!r}]
model = dict(backbone=dict(arch=[['1-way'], ['poly-2'], ['1-way']]))
train_dataloader = dict(batch_size=4, dataset=dict(data_root={str(people.parent)!r},
                                                   data_prefix={people.name!r}))
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=3, val_interval=1000)
param_scheduler = [dict(type='ConstantLR', factor=1.0)]
val_dataloader = val_evaluator = val_cfg = None
default_hooks = dict(checkpoint=dict(_delete_=True, type='CheckpointHook', by_epoch=False))
log_processor = dict(by_epoch=False)
''')
    assert compare(config, []) == []
