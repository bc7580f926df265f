"""A disk that is really full: a small file system of its own, in a mount namespace of the test."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from vision.common.nn.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'common'))
ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=f'{ROOT}:{ROOT}/tests/common')
CONFIG = f'''
    _base_ = [{str(ROOT / 'configs/_base_/runtime.py')!r}]
    custom_imports = dict(imports=['toy'])
    model = dict(type='ToyModel', width=2000)
    train_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(type='ToyDataset'),
                            sampler=dict(type='DefaultSampler', shuffle=True))
    train_cfg = dict(type='IterBasedTrainLoop', max_iters=60, val_interval=1000)
    optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.01))
    default_hooks = dict(checkpoint=dict(interval=15), logger=dict(interval=1))
    custom_hooks = [dict(type='ExactnessHook'), dict(type='NonFiniteHook'),
                    dict(type='SignalHook'), dict(type='FullDiskHook', first=FIRST, last=LAST)]
'''


def on_small_disk(folder: Path, script: str) -> subprocess.CompletedProcess:
    """Run a shell script in which $DISK is a file system of 8 MB; it ends with the script."""
    script = f'set -e; mount -t tmpfs -o size=8m none "$DISK"; cp -a "$DISK.in/." "$DISK"\n' \
        f'set +e; {script}\ncode=$?; rm -f "$DISK/w/filler"; cp -a "$DISK/." "$DISK.out"\n' \
        'exit $code'
    for name in ('disk', 'disk.in', 'disk.out'):
        (folder / name).mkdir(exist_ok=True)
    return subprocess.run(
        ['unshare', '-rm', 'bash', '-c', script], cwd=ROOT, text=True, timeout=200,
        env=dict(ENVIRONMENT, DISK=str(folder / 'disk'), PYTHON=sys.executable),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture
def disk(tmp_path):
    try:
        probe = on_small_disk(tmp_path, 'true')
    except FileNotFoundError:
        pytest.skip('there is no unshare on this machine')
    if probe.returncode:
        pytest.skip('this machine mounts nothing for its users: ' + probe.stdout.strip()[-200:])
    return tmp_path


def config(folder: Path, first: int, last: int) -> Path:
    path = folder / f'full_{first}_{last}.py'
    text = textwrap.dedent(CONFIG).replace('FIRST', str(first)).replace('LAST', str(last))
    path.write_text(text)
    return path


def train(folder: Path, first: int, last: int, options: str) -> subprocess.CompletedProcess:
    command = f'$PYTHON tools/train.py {config(folder, first, last)} {options}'
    return on_small_disk(folder, command)


def weights(path: Path) -> dict:
    return load_checkpoint(path)['state_dict']


@pytest.mark.slow
@pytest.mark.fault('R2')
def test_a_run_on_a_full_disk_goes_on_and_saves_when_there_is_room_again(disk):
    torch.set_num_threads(1)  # as ENVIRONMENT says: sums are rounded in the same order
    from vision.cli.train import main
    assert main([str(config(disk, 999, 999)), '--work-dir', str(disk / 'a')]) == 0
    full = train(disk, 20, 55, '--work-dir $DISK/w')
    assert full.returncode == 0, full.stdout[-3000:]
    assert full.stdout.count('ERROR VIS-CKPT-301') == 2 and 'Traceback' not in full.stdout
    assert full.stdout.count('misses lines from here on') == 1
    names = sorted(path.name for path in (disk / 'disk.out' / 'w').glob('*.pth'))
    assert names == ['iter_15.pth', 'iter_60.pth']
    assert not list((disk / 'disk.out' / 'w').glob('.writing-*'))
    expected = weights(disk / 'a' / 'iter_60.pth')
    actual = weights(disk / 'disk.out' / 'w' / 'iter_60.pth')
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.fault('R2')
def test_a_run_that_ends_unsaved_says_so_and_can_be_resumed(disk):
    full = train(disk, 20, 999, '--work-dir $DISK/w')
    assert full.returncode == 5, full.stdout[-3000:]
    assert 'ERROR VIS-CKPT-335' in full.stdout.splitlines()[-4:][0]
    assert 'Traceback' not in full.stdout
    assert [path.name for path in (disk / 'disk.out' / 'w').glob('*.pth')] == ['iter_15.pth']
    (disk / 'disk.in').rmdir()
    (disk / 'disk.out').rename(disk / 'disk.in')
    again = train(disk, 999, 999, '--work-dir $DISK/w --resume')
    assert again.returncode == 0 and 'iteration 15' in again.stdout, again.stdout[-3000:]
    assert (disk / 'disk.out' / 'w' / 'iter_60.pth').exists()
