"""Two real processes (gloo) that go on together or end together."""

import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from vision.common.core.errors import VisionError
from vision.common.mm import agreement
from vision.common.mm.agreement import decided_by_first, join_ranks, one_for_all
from vision.common.mm.runner import ExactRunner
from vision.common.nn import watchdog

sys.path.insert(0, str(Path(__file__).parent))
import runs

pytestmark = pytest.mark.distributed


def on_two_ranks(folder: Path, function, *args) -> list[str]:
    """What ``function(rank, *args)`` gives on each rank, or ``NAME: text`` of its exception."""
    context = multiprocessing.get_context('fork')
    answers = context.SimpleQueue()
    store = folder / f'store-{function.__name__}'

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ.update(RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank))
        dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
        try:
            answer = str(function(rank, *args))
        except Exception as error:
            answer = f'{type(error).__name__}: {error}'
        answers.put((rank, answer))
        dist.destroy_process_group()

    processes = [context.Process(target=run, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    hung = [process for process in processes if process.exitcode is None]
    for process in hung:
        process.kill()
    assert not hung, 'a rank waits for the other'
    return [answer for _, answer in sorted(answers.get() for _ in processes)]


def decide(rank, what):
    def first():
        assert rank == 0, 'the other rank decided too'
        if what == 'refuse':
            raise VisionError('VIS-CKPT-326', 'nothing can be used')
        if what == 'fail':
            raise PermissionError('not yours')
        return Path('chosen')

    return decided_by_first(first)


def test_the_first_decides_and_its_error_is_everybodys(tmp_path):
    assert on_two_ranks(tmp_path, decide, 'answer') == ['chosen', 'chosen']
    (tmp_path / 'store-decide').unlink(missing_ok=True)
    assert all('VIS-CKPT-326' in answer for answer in on_two_ranks(tmp_path, decide, 'refuse'))
    (tmp_path / 'store-decide').unlink(missing_ok=True)
    first, second = on_two_ranks(tmp_path, decide, 'fail')
    assert first == 'PermissionError: not yours'
    assert 'VIS-DIST-328: rank 0 failed: PermissionError: not yours' in second


def fail_on(rank, which):
    with one_for_all():
        if rank == which:
            raise KeyError('lost')
    return 'went on'


@pytest.mark.parametrize('which', [0, 1])
def test_what_one_rank_raises_all_raise(tmp_path, which):
    answers = on_two_ranks(tmp_path, fail_on, which)
    assert answers[which] == "KeyError: 'lost'"
    assert f'VIS-DIST-328: rank {which} failed' in answers[1 - which]


def config(work_dir: Path, **options):
    cfg = runs.config(work_dir, **options)
    cfg.launcher, cfg.train_dataloader.batch_size = 'pytorch', 3
    cfg.env_cfg = dict(dist_cfg=dict(backend='gloo'))
    cfg.randomness = dict(seed=3, diff_rank_seed=True)
    return cfg


def train(rank, work_dir, options, is_resumed=False):
    cfg = config(work_dir, **options)
    cfg.resume, cfg.experiment_name = is_resumed, f'{work_dir.name}{is_resumed}'
    runner = ExactRunner.from_cfg(cfg)
    runner.train()
    return runs.outcome(runner)


def end_and_compare(rank, folder):
    """Interrupted between two updates, with seeds by rank: the gradients of each rank return."""
    options = dict(accumulation=3, workers=0)
    straight = train(rank, folder / 'straight', options)
    try:
        train(rank, folder / 'a', dict(options, crash=8))
    except RuntimeError as error:
        assert str(error) == 'crash'
    differs = runs.differences(straight, train(rank, folder / 'a', options, True))
    return [name for name in differs if rank == 0 or name != '/losses']  # rank 0 keeps the logs


@pytest.mark.slow
@pytest.mark.fault('R8')
def test_two_ranks_resume_between_two_updates(tmp_path):
    assert on_two_ranks(tmp_path, end_and_compare, tmp_path) == ['[]', '[]']


def save_nowhere(rank, folder):
    """The folder of rank 0 cannot be written from the fifth step on."""
    if rank == 0:
        import vision.common.mm.runner as module
        save = module.io.save_checkpoint

        def refused(content, path, **manifest):
            if manifest['iter'] == 5:
                raise PermissionError(f'{path} is not yours')
            save(content, path, **manifest)

        module.io.save_checkpoint = refused
    train(rank, folder / 'a', {})
    return 'went on'


@pytest.mark.slow
@pytest.mark.fault('R28')
def test_what_keeps_rank_0_from_saving_ends_all(tmp_path):
    first, second = on_two_ranks(tmp_path, save_nowhere, tmp_path)
    assert first.startswith('PermissionError') and 'VIS-DIST-328: rank 0 failed' in second


def resume_without_a_share(rank, folder, other):
    work_dir = folder / f'machine{rank}' / 'a'
    if rank:
        work_dir.mkdir(parents=True)
        if other:
            (work_dir / 'iter_4.pth').write_bytes(b'another file')
    return train(rank, work_dir, {}, True)


@pytest.mark.slow
@pytest.mark.parametrize(('other', 'word'), [(False, 'no'), (True, 'another')])
def test_machines_without_a_common_folder_are_told(tmp_path, other, word):
    """Rank 1 would begin at zero, or go on from elsewhere, and average with rank 0."""
    runs.train(tmp_path / 'machine0' / 'a', steps=4)
    shutil.rmtree(tmp_path / 'machine1', ignore_errors=True)
    answers = on_two_ranks(tmp_path, resume_without_a_share, tmp_path, other)
    for answer in answers:
        assert f'VIS-DIST-325: rank 1 has {word} iter_4.pth' in answer


def test_nccl_ends_a_process_later_than_the_watchdog_that_names_the_cause(monkeypatch):
    """With torch's own ten minutes it would be first, under either runner."""
    asked = []
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('vision.common.mm.agreement.init_dist',
                        lambda launcher, backend, timeout: asked.append((backend, timeout)))
    join_ranks('pytorch')
    join_ranks('pytorch', timeout=5)
    assert asked == [('nccl', watchdog.TIMEOUT_S + agreement.LATER_S),
                     ('nccl', 5 + agreement.LATER_S)] and agreement.LATER_S > watchdog.GRACE_S


def test_a_deterministic_run_names_the_workspace_of_cublas(tmp_path, monkeypatch):
    """torch refuses products on a GPU without; what a user has set stays."""
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)
    for wanted in (':4096:8', ':16:8'):
        cfg = runs.config(tmp_path / wanted[1:3], steps=1)
        cfg.randomness = dict(deterministic=True)
        ExactRunner.from_cfg(cfg)
        assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == wanted
        monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':16:8')
    torch.use_deterministic_algorithms(False)
