"""benchmarks/lattice_quality.py as its docstring calls it, on two generated videos."""

import json
import subprocess
import sys

import pytest


@pytest.fixture(scope='module')
def sprites(tmp_path_factory, repository):
    folder = tmp_path_factory.mktemp('quality') / 'sprites'
    subprocess.run([sys.executable, 'datasets/moving_sprites/prepare.py', '--out', str(folder),
                    '--num-train', '1', '--num-val', '2', '--num-frames', '16'], cwd=repository,
                   check=True, capture_output=True)
    return folder


def test_the_shipped_weights_move_true_boxes(sprites, repository, tmp_path):
    # These weights also judge classes, which is not asked here.
    done = subprocess.run(
        [sys.executable, 'benchmarks/lattice_quality.py', '--ann',
         str(sprites / 'annotations/val.json'), '--images', str(sprites / 'val'), '--checkpoint',
         'zoo:lattice-pru_moving-sprites', '--gaps', '4', '--step', '2', '--json',
         str(tmp_path / 'rows.json')],
        cwd=repository, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / 'rows.json').read_text())['rows']
    assert {row['method'] for row in rows} == {'linear', 'propagated', 'merged', 'refined'}
    total = {method: sum(row['iou'] * row['count'] for row in rows if row['method'] == method)
             for method in ('linear', 'propagated', 'refined')}
    count = sum(row['count'] for row in rows if row['method'] == 'linear')
    assert count >= 4 and done.stdout.count('refined') == len(rows) // 4
    assert total['propagated'] / count > 0.6 and total['refined'] / count > 0.7


def test_another_architecture_is_refused_with_names(sprites, repository, tmp_path):
    import torch
    torch.save(dict(state_dict=dict(w=torch.ones(1))), tmp_path / 'x.pth')
    done = subprocess.run(
        [sys.executable, 'benchmarks/lattice_quality.py', '--ann',
         str(sprites / 'annotations/val.json'), '--images', str(sprites / 'val'), '--checkpoint',
         str(tmp_path / 'x.pth')], cwd=repository, capture_output=True, text=True, timeout=120)
    assert done.returncode == 5 and 'VIS-CKPT-305' in done.stderr
