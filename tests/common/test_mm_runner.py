import gc
import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from vision.common.core.errors import VisionError
from vision.common.mm.checkpoints import newest_valid, only_run_here
from vision.common.mm.runner import ExactRunner
from vision.common.nn.checkpoint import load_checkpoint

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from runs import assert_equal, config, resumed, train  # noqa: E402


@pytest.mark.parametrize(('loop', 'endless', 'workers'), [
    ('iter', False, 0), ('iter', True, 0), ('iter', True, 2), ('epoch', False, 0),
    ('epoch', False, 2)])
@pytest.mark.fault('R8')
def test_resumed_at_any_step_ends_with_the_same_weights(tmp_path, loop, endless, workers):
    options = dict(loop=loop, endless=endless, workers=workers)
    straight = train(tmp_path / 'straight', interval=17, **options)
    for crash in ((1, 8, 9, 16) if workers == 0 else (9,)):
        work_dir = tmp_path / f'crash{crash}'
        with pytest.raises(RuntimeError, match='crash'):
            train(work_dir, crash=crash, interval=crash, **options)
        assert_equal(straight, resumed(work_dir, interval=17, **options))


@pytest.mark.parametrize('crash', [None, 9])
def test_processes_of_the_loader_end_with_the_run(tmp_path, crash):
    with pytest.raises(RuntimeError, match='crash') if crash else nullcontext():
        train(tmp_path, workers=2, crash=crash)
    assert not multiprocessing.active_children()
    start = time.monotonic()
    gc.collect()  # it would wait five seconds for each process
    assert time.monotonic() - start < 5


def test_two_workers_see_what_no_worker_sees(tmp_path):
    assert_equal(train(tmp_path / 'a', workers=0, interval=17),
                 train(tmp_path / 'b', workers=2, interval=17))


def test_another_seed_is_another_run(tmp_path):
    first = train(tmp_path / 'a')
    cfg = config(tmp_path / 'b')
    cfg.randomness = dict(seed=1)
    other = ExactRunner.from_cfg(cfg).train().state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.slow
@pytest.mark.fault('R8')
def test_a_killed_process_resumes_to_the_same_weights(tmp_path):
    straight = train(tmp_path / 'straight', interval=4)
    code = textwrap.dedent(f'''
        import sys; sys.path.insert(0, {str(HERE)!r})
        import runs as t; from pathlib import Path
        cfg = t.config(Path({str(tmp_path / 'killed')!r}), interval=4)
        cfg.custom_hooks.append(dict(type='CrashHook', step=11, kill=True))
        t.ExactRunner.from_cfg(cfg).train()
    ''')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == -9, result.stderr[-2000:]
    assert_equal(straight, resumed(tmp_path / 'killed', interval=4))


@pytest.mark.fault('R3')
def test_newest_damaged_checkpoint_is_passed_over(tmp_path):
    straight = train(tmp_path / 'a')
    newest = tmp_path / 'a' / 'iter_17.pth'
    newest.write_bytes(newest.read_bytes()[:-100])
    warnings = []
    assert newest_valid(tmp_path / 'a', warnings.append) == tmp_path / 'a' / 'iter_16.pth'
    assert 'iter_17.pth is passed over' in warnings[0]
    assert_equal(straight, resumed(tmp_path / 'a'))


@pytest.mark.fault('R5')
def test_work_dir_can_be_moved(tmp_path):
    straight = train(tmp_path / 'straight')
    with pytest.raises(RuntimeError, match='crash'):
        train(tmp_path / 'old', crash=9)
    (tmp_path / 'old').rename(tmp_path / 'new')
    assert (tmp_path / 'new' / 'last_checkpoint').read_text() == 'iter_9.pth'
    assert_equal(straight, resumed(tmp_path / 'new'))


def test_manifests_go_with_their_checkpoints(tmp_path):
    train(tmp_path / 'a')
    names = {path.name for path in (tmp_path / 'a').glob('*.pth*')}
    assert names == {f'iter_{i}.pth{end}' for i in (15, 16, 17) for end in ('', '.json')}
    manifest = json.loads((tmp_path / 'a' / 'iter_17.pth.json').read_text())
    assert manifest['iter'] == 17 and len(manifest['sha256']) == 64


@pytest.mark.fault('R13')
def test_nan_samples_stop_the_run_and_leave_finite_weights(tmp_path):
    with pytest.raises(VisionError, match='VIS-RUN-306'):
        train(tmp_path / 'a', nan_from=0)
    content = load_checkpoint(newest_valid(tmp_path / 'a', print))
    assert all(v.isfinite().all() for v in content['state_dict'].values())


@pytest.mark.fault('R6')
def test_second_run_in_one_work_dir_is_refused(tmp_path):
    from filelock import FileLock
    (tmp_path / 'a').mkdir()
    with FileLock(tmp_path / 'a' / '.lock'), pytest.raises(VisionError, match='VIS-RUN-307'):
        train(tmp_path / 'a')


@pytest.mark.fault('R10')
def test_resuming_another_architecture_names_the_tensors(tmp_path):
    train(tmp_path / 'a')
    cfg = config(tmp_path / 'a')
    cfg.resume, cfg.model.width, cfg.experiment_name = True, 17, 'wider'
    with pytest.raises(VisionError, match=r'VIS-CKPT-305.*another architecture[^$]*net.0.weight'):
        ExactRunner.from_cfg(cfg).train()


@pytest.mark.fault('S34')
def test_code_in_a_checkpoint_is_never_run(tmp_path):
    train(tmp_path / 'a')
    path, marker = tmp_path / 'a' / 'iter_17.pth', tmp_path / 'marker'
    content = load_checkpoint(path)
    content['meta']['cfg'] = content['meta']['config'] = f'open({str(marker)!r}, "w")'
    torch.save(content, tmp_path / 'hostile.pth')
    cfg = config(tmp_path / 'a', steps=18)
    cfg.resume, cfg.load_from, cfg.experiment_name = True, str(tmp_path / 'hostile.pth'), 'h'
    ExactRunner.from_cfg(cfg).train()
    assert not marker.exists()


def test_weights_from_an_address_are_refused():
    from mmengine.runner import CheckpointLoader
    with pytest.raises(VisionError, match='VIS-NET-310'):
        CheckpointLoader.load_checkpoint('https://example.org/x.pth')


@pytest.mark.fault('R2')
def test_a_save_that_never_succeeds_again_costs_no_finished_checkpoint(tmp_path, monkeypatch):
    from vision.common.mm import runner as module
    save = module.io.save_checkpoint

    def full_after_9(content, path, **manifest):
        if manifest['iter'] > 9:
            raise VisionError('VIS-CKPT-301', 'the disk is full')
        save(content, path, **manifest)

    straight = train(tmp_path / 'straight')
    monkeypatch.setattr(module.io, 'save_checkpoint', full_after_9)
    with pytest.raises(VisionError, match='VIS-CKPT-335: the run has ended'):
        train(tmp_path / 'a')
    names = sorted(path.name for path in (tmp_path / 'a').glob('*.pth'))
    assert names == ['iter_7.pth', 'iter_8.pth', 'iter_9.pth']
    assert (tmp_path / 'a' / 'last_checkpoint').read_text() == 'iter_9.pth'
    monkeypatch.setattr(module.io, 'save_checkpoint', save)
    assert_equal(straight, resumed(tmp_path / 'a'))


@pytest.mark.parametrize(('key', 'value', 'change'), [
    ('batch_size', 3, 'batch_size 4 -> 3'), ('dataset', dict(type='ToyDataset', indices=20),
                                             'samples 30 -> 20')])
def test_resuming_with_other_steps_is_refused(tmp_path, key, value, change):
    train(tmp_path / 'a')
    cfg = config(tmp_path / 'a')
    cfg.resume, cfg.experiment_name = True, f'other-{key}'
    cfg.train_dataloader[key] = value
    with pytest.raises(VisionError, match=f'VIS-CONFIG-321[^$]*{change}'):
        ExactRunner.from_cfg(cfg).train()


def test_other_workers_are_no_other_steps(tmp_path):
    straight = train(tmp_path / 'straight')
    with pytest.raises(RuntimeError, match='crash'):
        train(tmp_path / 'a', crash=9)
    assert_equal(straight, resumed(tmp_path / 'a', workers=1))


def test_cut_file_without_manifest_is_passed_over(tmp_path):
    train(tmp_path / 'a', steps=4)
    newest = tmp_path / 'a' / 'iter_4.pth'
    newest.with_suffix('.pth.json').unlink()
    assert newest_valid(tmp_path / 'a', print) == newest  # killed before its manifest: whole
    newest.write_bytes(newest.read_bytes()[:-500])
    assert newest_valid(tmp_path / 'a', print).name == 'iter_3.pth'


@pytest.mark.fault('R6')
def test_the_second_run_is_told_who_holds_the_folder(tmp_path):
    runner = ExactRunner.from_cfg(config(tmp_path / 'a'))
    with only_run_here(runner.work_dir, 0), \
            pytest.raises(VisionError, match=f'process {os.getpid()} on'):
        ExactRunner.from_cfg(config(tmp_path / 'a', crash=1)).train()
