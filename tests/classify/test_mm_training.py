"""A classifier through tools/train.py and tools/test.py."""

import json
from pathlib import Path

import pytest
from scripts import load_script

from vision.cli.analyze import main as analyze
from vision.cli.eval import main as evaluate
from vision.common.core.errors import VisionError

ROOT = Path(__file__).parents[2]


def run(tool, *arguments) -> None:
    assert load_script(f'tools/{tool}').main([*map(str, arguments)]) == 0


@pytest.mark.slow
def test_train_then_test(colour_folder, tmp_path):
    options = [f'{split}_dataloader.{key}={value}' for split in ('train', 'val', 'test')
               for key, value in (('dataset.data_root', colour_folder), ('num_workers', 0),
                                  ('persistent_workers', False), ('batch_size', 6))]
    config = tmp_path / 'small.py'
    config.write_text(f'''
_base_ = [{str(ROOT / 'configs/polynet/polynet-small_imagenette160.py')!r}]
model = dict(backbone=dict(arch=[['1-way']] * 3), head=dict(num_classes=3))
val_evaluator = dict(topk=(1, 2))
test_evaluator = dict(topk=(1, 2))
optim_wrapper = dict(optimizer=dict(lr=0.005))  # 24 images: no warm-up to 0.05
param_scheduler = [dict(type='ConstantLR', factor=1.0)]
train_cfg = dict(max_epochs=4, val_interval=4)
''')
    work_dir = tmp_path / 'work'
    run('train.py', config, '--work-dir', work_dir, '--cfg-options', *options)
    checkpoint = next(work_dir.glob('best_*.pth'))
    run('test.py', config, checkpoint, '--work-dir', work_dir, '--out',
        tmp_path / 'metrics.json', '--out-item', 'metrics', '--cfg-options', *options)
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    # Chance is 33; one image of nine may be missed, depending on how a processor rounds.
    assert metrics['accuracy/top1'] > 75 and metrics['accuracy/top2'] >= metrics['accuracy/top1']
    judge_again(config, checkpoint, metrics, tmp_path, options)


def judge_again(config, checkpoint, metrics, folder, options) -> None:
    """Predictions on a file give the test's metrics; with mirror images all nine are drawn."""
    run('test.py', config, checkpoint, '--work-dir', folder / 'again', '--out',
        folder / 'results.npz', '--cfg-options', *options)
    assert evaluate([str(config), str(folder / 'results.npz'), '--out', str(folder / 'e.json'),
                     '--cfg-options', *options]) == 0
    assert json.loads((folder / 'e.json').read_text()) == metrics
    assert analyze([str(config), str(folder / 'results.npz'), str(folder / 'analysis'),
                    '--cfg-options', *options]) == 0
    totals = json.loads((folder / 'analysis' / 'analysis.json').read_text())['totals']
    assert 100 * totals['accuracy'] == pytest.approx(metrics['accuracy/top1'])
    run('test.py', config, checkpoint, '--work-dir', folder / 'tta', '--tta', '--show-dir',
        folder / 'drawn', '--out', folder / 't.json', '--out-item', 'metrics', '--cfg-options',
        *options)
    assert json.loads((folder / 't.json').read_text())['accuracy/top1'] > 75
    assert sorted(str(path.relative_to(folder / 'drawn'))
                  for path in (folder / 'drawn').rglob('*.png')) == [
        f'{name}/{i}.png' for name in ('blue', 'green', 'red') for i in range(3)]


@pytest.mark.slow
def test_data_that_does_not_fit_the_head_ends_before_the_first_step(colour_folder, tmp_path):
    options = [f'{split}_dataloader.dataset.data_root={colour_folder}'
               for split in ('train', 'val', 'test')]
    with pytest.raises(VisionError, match='VIS-CONFIG-1230: the data has 3 classes, the head 10'):
        run('train.py', ROOT / 'configs/polynet/polynet-small_imagenette160.py', '--work-dir',
            tmp_path, '--cfg-options', 'model.backbone.arch=ir-3-6-3', *options)
    assert not list(tmp_path.glob('*.pth'))
    log = ''.join(path.read_text() for path in tmp_path.glob('**/*.log'))
    assert log and 'Epoch(train)' not in log
