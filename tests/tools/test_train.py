"""tools/train.py and tools/test.py as a user starts them, in processes of their own."""

import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'common'))
ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=f'{ROOT}:{ROOT}/tests/common',
                   PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}')


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'toy_config.py'
    path.write_text(textwrap.dedent(f'''
        _base_ = [{str(ROOT / 'configs/_base_/runtime.py')!r}]
        custom_imports = dict(imports=['toy'])
        model = dict(type='ToyModel')
        train_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(type='ToyDataset'),
                                sampler=dict(type='DefaultSampler', shuffle=True))
        train_cfg = dict(type='IterBasedTrainLoop', max_iters=12, val_interval=1000)
        optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.01))
        default_hooks = dict(checkpoint=dict(interval=3))
        '''))
    return path


def start(*command, **options) -> subprocess.Popen:
    return subprocess.Popen([str(part) for part in command], cwd=ROOT, env=ENVIRONMENT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


def run(*command) -> tuple[int, str]:
    process = start(*command)
    output = process.communicate(timeout=240)[0]
    return process.returncode, output


def main_of(tool: str):
    """``main`` of a tool in this process, where a process of its own would prove no more."""
    torch.set_num_threads(1)  # as ENVIRONMENT says: sums are rounded in the same order
    return importlib.import_module(f'vision.cli.{tool}').main


def weights(work_dir: Path) -> dict:
    return load_checkpoint(work_dir / 'iter_12.pth')['state_dict']


def assert_equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_unknown_keys_and_arguments_are_one_clear_error_each(config, tmp_path):
    command = sys.executable, 'tools/train.py', config, '--work-dir', tmp_path / 'w'
    code, output = run(*command, '--cfg-options', 'modle.width=1')
    assert code == 2 and 'VIS-CONFIG-311' in output and 'model' in output
    assert 'Traceback' not in output
    config.write_text(config.read_text().replace("type='ToyModel'", "type='ToyModel', widht=3"))
    with pytest.raises(VisionError, match=r'VIS-CONFIG-319[^$]*model\.widht') as raised:
        main_of('train')([str(config), '--work-dir', str(tmp_path / 'w')])
    assert 'did you mean width?' in str(raised.value) and not (tmp_path / 'w').exists()


def test_a_config_that_says_nothing_of_training_is_refused_by_name():
    with pytest.raises(VisionError, match='VIS-CONFIG-1790[^$]*no train_dataloader'):
        main_of('train')(['yolox-nano_coco'])


def test_unread_keys_of_a_json_config_are_refused_too(tmp_path):
    path = tmp_path / 'c.json'
    path.write_text(json.dumps(dict(model=dict(type='ToyModel'), modle=dict(width=1))))
    with pytest.raises(VisionError, match='VIS-CONFIG-312[^$]*did you mean model[?]'):
        main_of('config')([str(path)])


@pytest.mark.slow
@pytest.mark.fault('R7')
def test_sigterm_saves_and_the_resumed_run_ends_the_same(config, tmp_path):
    main = main_of('train')
    assert main([str(config), '--work-dir', str(tmp_path / 'a')]) == 0
    slow = tmp_path / 'slow_config.py'
    slow.write_text(config.read_text() + textwrap.dedent('''
        custom_hooks = [dict(type='ExactnessHook'), dict(type='NonFiniteHook'),
                        dict(type='SlowHook', seconds=1), dict(type='SignalHook')]
        '''))
    work_dir = tmp_path / 'b'
    process = start(sys.executable, 'tools/train.py', slow, '--work-dir', work_dir)
    deadline = time.monotonic() + 120
    while not (work_dir / 'iter_3.pth.json').exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 143, output[-2000:]
    assert list(work_dir.glob('interrupted_iter_*.pth'))
    assert main([str(config), '--work-dir', str(work_dir), '--resume']) == 0
    assert_equal(weights(tmp_path / 'a'), weights(work_dir))
    assert not list(work_dir.glob('interrupted_iter_*'))


def test_mixed_precision_trains_on_a_cpu(config, tmp_path):
    assert main_of('train')([str(config), '--amp', '--work-dir', str(tmp_path / 'a')]) == 0
    assert "type='AmpOptimWrapper'" in (tmp_path / 'a' / config.name).read_text()
    assert all(value.isfinite().all() for value in weights(tmp_path / 'a').values())


@pytest.mark.slow
@pytest.mark.distributed
def test_two_gloo_processes_killed_and_resumed_end_the_same(config, tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, 'MASTER_PORT', str(29600 + os.getpid() % 300))
    command = 'bash', ROOT / 'tools/dist_train.sh'
    code, output = run(*command, config, 2, '--work-dir', tmp_path / 'a')
    assert code == 0, output[-3000:]
    killed = tmp_path / 'killed_config.py'
    killed.write_text(config.read_text() + textwrap.dedent('''
        custom_hooks = [dict(type='ExactnessHook'), dict(type='NonFiniteHook'),
                        dict(type='CrashHook', step=8, kill=True), dict(type='SignalHook')]
        '''))
    code, output = run(*command, killed, 2, '--work-dir', tmp_path / 'b')
    assert code != 0 and (tmp_path / 'b' / 'iter_6.pth').exists(), output[-3000:]
    with pytest.raises(VisionError, match='VIS-CONFIG-321[^$]*processes 2 -> 1'):
        main_of('train')([str(config), '--work-dir', str(tmp_path / 'b'), '--resume'])
    code, output = run(*command, config, 2, '--work-dir', tmp_path / 'b', '--resume')
    assert code == 0 and 'resumed' in output, output[-3000:]
    assert_equal(weights(tmp_path / 'a'), weights(tmp_path / 'b'))
    manifest = json.loads((tmp_path / 'b' / 'iter_12.pth.json').read_text())
    assert manifest['iter'] == 12
