"""A resumed run equals the uninterrupted one, or is refused: what is not obvious about it."""

import json
import logging
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from vision.common.core.errors import VisionError
from vision.common.mm.checkpoints import newest_valid
from vision.common.mm.launch import build_runner
from vision.common.mm.runner import ExactRunner
from vision.common.nn import checkpoint as io

sys.path.insert(0, str(Path(__file__).parent))
import runs
import toy
from resume_points import POINTS, check
from runs import assert_equal, config, resumed, train

FEW = [point for point in POINTS if (point.kind, point.workers, point.step) in {
    ('plain', 2, 'edge'), ('all', 0, 'first'), ('all', 0, 'inside'), ('all', 0, 'last')}]


def crashed(work_dir: Path, step: int, **options) -> None:
    with pytest.raises(RuntimeError, match='crash'):
        train(work_dir, crash=step, **options)


@pytest.mark.fault('R8')
def test_some_of_the_resume_points_end_bit_identical(tmp_path):
    """All 40: python tests/common/resume_points.py"""
    for row in check(FEW, tmp_path, ExactRunner.from_cfg):
        assert not row['differs'], row


@pytest.mark.fault('R8')
@pytest.mark.parametrize('loop, step, saved', [('iter', 7, 6), ('epoch', 20, 2)])
def test_a_run_that_keeps_its_best_goes_on_at_the_next_step(tmp_path, loop, step, saved):
    """After a validation that was the best so far, its checkpoint is written a second time."""
    def run(name, **options):
        cfg = config(tmp_path / name, loop=loop, **options)
        cfg.train_cfg.update(val_interval=2)
        cfg.default_hooks.checkpoint.update(
            by_epoch=loop == 'epoch', save_best='score', rule='greater',
            interval=2 if loop == 'iter' else 1)
        cfg.update(val_cfg=dict(type='ValLoop'), val_evaluator=dict(type='Better'),
                   val_dataloader=dict(batch_size=4, num_workers=0, dataset=dict(
                       type='ToyDataset'), sampler=dict(type='DefaultSampler', shuffle=False)))
        return cfg

    expected = ExactRunner.from_cfg(run('whole')).train().state_dict()
    with pytest.raises(RuntimeError, match='crash'):
        ExactRunner.from_cfg(run('cut', crash=step)).train()
    meta = io.load_checkpoint(tmp_path / 'cut' / f'{loop}_{saved}.pth')['meta']
    assert (meta['iter'], meta['epoch']) == ((6, 0) if loop == 'iter' else (16, 2))
    cfg = run('cut')
    cfg.update(resume=True, experiment_name='again')
    assert_equal(ExactRunner.from_cfg(cfg).train().state_dict(), expected)


def test_gradients_that_wait_for_their_step_are_in_the_checkpoint(tmp_path):
    crashed(tmp_path / 'a', 8, accumulation=3)
    waiting = io.load_checkpoint(tmp_path / 'a' / 'iter_8.pth')['gradients']
    assert len(waiting) == 1 and all(g.abs().sum() > 0 for g in waiting[0])
    assert io.load_checkpoint(tmp_path / 'a' / 'iter_6.pth')['gradients'] == []


@pytest.mark.parametrize('accumulation', [2, 4])
def test_accumulated_gradients_are_those_of_the_larger_batch(tmp_path, accumulation):
    """Also of the last, shorter window: 6 steps are one and a half windows of 4."""
    def weights(size, counts, steps):
        cfg = config(tmp_path / f'{size}{counts}', steps=steps, accumulation=counts)
        cfg.train_dataloader.update(batch_size=size, drop_last=True)
        cfg.model.is_plain = True  # BatchNorm and dropout look at the batch
        cfg.train_dataloader.dataset.is_plain = True
        cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.1)
        cfg.param_scheduler = []
        return ExactRunner.from_cfg(cfg).train().state_dict()

    small = weights(2, accumulation, 6)
    large = weights(2 * accumulation, 1, 6 // accumulation)
    if 6 % accumulation:  # the large run lacks the rest: one more step on its samples alone
        rest = weights(2, accumulation, 4)
        assert_close(large, rest)
        assert any(not torch.equal(small[name], rest[name]) for name in small)
    else:
        assert_close(small, large)


def assert_close(a, b):
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


def test_a_seed_for_each_rank_is_no_other_run(tmp_path, monkeypatch):
    """diff_rank_seed: samplers share the seed, and the checkpoint holds that of the run."""
    def options(cfg):
        cfg.randomness = dict(seed=7, diff_rank_seed=True)
        return cfg

    straight = ExactRunner.from_cfg(options(config(tmp_path / 'a'))).train().state_dict()
    with pytest.raises(RuntimeError, match='crash'):
        ExactRunner.from_cfg(options(config(tmp_path / 'b', crash=9))).train()
    cfg = options(config(tmp_path / 'b'))
    cfg.resume, cfg.experiment_name = True, 'again'
    torch.rand(3)  # what else is drawn in between must not matter
    assert_equal(straight, ExactRunner.from_cfg(cfg).train().state_dict())
    # The second rank of two: its own seed is 8, its order and its checkpoint are of seed 7.
    monkeypatch.setattr('mmengine.runner.utils.get_rank', lambda: 1)
    monkeypatch.setattr('vision.common.mm.exact_data.get_rank', lambda: 1)
    cfg.experiment_name = 'second'
    runner = ExactRunner.from_cfg(cfg)
    assert (runner.seed, runner.base_seed) == (8, 7)
    assert runner.train_dataloader.sampler.inner.seed == 7


@pytest.mark.parametrize('missing', ['save_optimizer', 'save_param_scheduler'])
def test_checkpoints_of_weights_alone_are_not_resumed(tmp_path, missing):
    cfg = config(tmp_path / 'a')
    cfg.default_hooks.checkpoint[missing] = False
    ExactRunner.from_cfg(cfg).train()
    with pytest.raises(VisionError, match='VIS-CKPT-326[^$]*weights only'):
        resumed(tmp_path / 'a')
    cfg = config(tmp_path / 'a')
    cfg.resume, cfg.load_from = True, str(tmp_path / 'a' / 'iter_17.pth')
    cfg.experiment_name = missing
    with pytest.raises(VisionError, match='VIS-CKPT-308[^$]*load_from='):
        ExactRunner.from_cfg(cfg).train()


@pytest.mark.fault('R5')
def test_checkpoints_elsewhere_are_found(tmp_path):
    """CheckpointHook(out_dir=...), where a signal's checkpoint goes too."""
    def elsewhere(cfg):
        cfg.default_hooks.checkpoint.out_dir = str(tmp_path / 'out')
        return cfg

    straight = train(tmp_path / 'straight')
    with pytest.raises(RuntimeError, match='crash'):
        ExactRunner.from_cfg(elsewhere(config(tmp_path / 'a', crash=9))).train()
    assert (tmp_path / 'out' / 'a' / 'iter_9.pth').is_file()
    assert not list((tmp_path / 'a').glob('*.pth'))
    cfg = elsewhere(config(tmp_path / 'a'))
    cfg.resume, cfg.experiment_name = True, 'again'
    runner = ExactRunner.from_cfg(cfg)
    steps = []
    runner.register_hook(Count(steps))
    assert_equal(straight, runner.train().state_dict())
    assert steps[0] == 9  # the tenth step is the first
    runner.call_hook('before_train')
    assert runner.hooks[-1] and (tmp_path / 'out' / 'a') == next(
        hook.folder(runner) for hook in runner.hooks if hasattr(hook, 'folder'))


class Count(toy.Hook):
    def __init__(self, steps):
        self.steps = steps

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.steps.append(runner.iter)


GARBAGE = ['', 'iter_3.pth', '/nowhere/iter_17.pth', '../iter_1.pth', 'iter_17.pth\n\n', '\0' * 9,
           'x' * 5000, '[1, 2]', 'ß€', None]


@pytest.mark.fault('R5')
@pytest.mark.parametrize('number', range(len(GARBAGE)))
def test_what_last_checkpoint_says_is_not_believed(tmp_path, number):
    (tmp_path / 'last_checkpoint').write_text(GARBAGE[number] or '')
    if GARBAGE[number] is None:
        (tmp_path / 'last_checkpoint').unlink()
    for step in (9, 10):
        io.save_checkpoint(dict(state_dict={}, optimizer={}), tmp_path / f'iter_{step}.pth',
                           iter=step)
    assert newest_valid(tmp_path, print) == tmp_path / 'iter_10.pth'


@pytest.mark.fault('R5')
def test_links_are_second_names(tmp_path):
    io.save_checkpoint(dict(state_dict={}), tmp_path / 'iter_9.pth', iter=9)
    (tmp_path / 'latest.pth').symlink_to('iter_9.pth')
    (tmp_path / 'dangling.pth').symlink_to('iter_10.pth')
    (tmp_path / 'folder.pth').mkdir()
    assert newest_valid(tmp_path, print) == tmp_path / 'iter_9.pth'


@pytest.mark.fault('R3')
def test_a_run_with_damaged_checkpoints_alone_does_not_begin_at_zero(tmp_path):
    train(tmp_path / 'a')
    for path in (tmp_path / 'a').glob('*.pth'):
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(VisionError, match='VIS-CKPT-326[^$]*3 checkpoints[^$]*iter_17.pth: it'):
        resumed(tmp_path / 'a')


def test_weights_that_lie_in_the_folder_are_no_run(tmp_path):
    torch.save(dict(state_dict={}), tmp_path / 'pretrained.pth')
    assert newest_valid(tmp_path, print) is None


def test_a_template_without_pth_is_found(tmp_path):
    cfg = config(tmp_path / 'a')
    cfg.default_hooks.checkpoint.filename_tmpl = 'step{}.ckpt'
    ExactRunner.from_cfg(cfg).train()
    assert newest_valid(tmp_path / 'a', print).name == 'step17.ckpt'


@pytest.mark.fault('R1')
@pytest.mark.parametrize('moment', ['manifest', 'rename', 'end'])
def test_a_name_written_again_is_one_generation_or_the_other(tmp_path, monkeypatch, moment):
    """Killed before the manifest, between it and the new name, and after both."""
    path = tmp_path / 'iter_4.pth'
    for value in (1., 2.):
        io.save_checkpoint(dict(state_dict=dict(w=torch.tensor(value))), path, iter=value)

    class Killed(BaseException):
        pass

    names = []

    def replace(source, target):
        names.append(Path(target).name)
        if moment == 'manifest' or (moment == 'rename' and names[-1] == path.name):
            raise Killed
        os.rename(source, target)

    monkeypatch.setattr('vision.common.core.files.os.replace', replace)
    try:
        io.save_checkpoint(dict(state_dict=dict(w=torch.tensor(3.))), path, iter=3.)
    except Killed:
        pass
    expected = 3 if moment == 'end' else 2
    assert newest_valid(tmp_path, print) == path and not io.damage(path)
    assert io.load_checkpoint(path)['state_dict']['w'] == expected
    assert io.manifest_entry(path)['iter'] == expected


def test_the_older_generation_does_not_claim_the_place_of_the_newer(tmp_path):
    io.save_checkpoint(dict(state_dict={}), tmp_path / 'best.pth', iter=3)
    old = (tmp_path / 'best.pth').read_bytes()
    io.save_checkpoint(dict(state_dict={}), tmp_path / 'iter_5.pth', iter=5)
    io.save_checkpoint(dict(state_dict=dict(w=torch.ones(1))), tmp_path / 'best.pth', iter=7)
    (tmp_path / 'best.pth').write_bytes(old)
    assert newest_valid(tmp_path, print) == tmp_path / 'iter_5.pth'


class Loader:
    """Batches by a sampler object, as a user may hand them over."""

    batches = staticmethod(lambda: BatchSampler(RandomSampler(range(30)), 4, False))
    lists = staticmethod(lambda: [list(range(i, min(i + 4, 30))) for i in range(0, 30, 4)])


@pytest.mark.fault('R8')
@pytest.mark.parametrize('kind', ['batches', 'lists', 'loader', 'generator'])
@pytest.mark.parametrize('loop', ['iter', 'epoch'])
def test_ready_made_samplers_and_loaders_are_entered_at_the_same_place(tmp_path, kind, loop):
    from mmengine.dataset import pseudo_collate

    def build(cfg):
        dataset = toy.ToyDataset()
        if kind in ('batches', 'lists'):
            loader = dict(dataset=dataset, sampler=None, batch_sampler=getattr(Loader, kind)())
            cfg.train_dataloader = dict(num_workers=0, **loader)
            cfg.train_dataloader['sampler'] = dict(type='DefaultSampler', shuffle=True)
        else:
            generator = torch.Generator() if kind == 'generator' else None
            cfg = cfg.to_dict()
            cfg['train_dataloader'] = DataLoader(dataset, batch_size=4, shuffle=True,
                                                 generator=generator, collate_fn=pseudo_collate)
        return cfg

    def end(work_dir, resume=False, **options):
        cfg = config(work_dir, loop=loop, **options)
        cfg.resume, cfg.experiment_name = resume, f'{work_dir}{resume}{kind}'.replace('/', '-')
        full = build(cfg)
        runner = ExactRunner(**{name: full[name] for name in (
            'model', 'work_dir', 'train_dataloader', 'train_cfg', 'optim_wrapper',
            'param_scheduler', 'default_hooks', 'custom_hooks', 'resume', 'default_scope',
            'experiment_name', 'log_level')})
        runner.train()
        return runs.outcome(runner)

    straight = end(tmp_path / 'a')
    with pytest.raises(RuntimeError, match='crash'):
        end(tmp_path / 'b', crash=11)
    assert_equal(straight, end(tmp_path / 'b', resume=True))


def test_a_config_cannot_drop_what_makes_a_run_exact(tmp_path):
    """Whatever its hooks, scope and order; MMEngine's hook of our name becomes ours."""
    cfg = config(tmp_path / 'a')
    cfg.custom_hooks, cfg.default_scope = None, 'mmengine'
    cfg.model.type, cfg.train_dataloader.dataset.type = 'vision.ToyModel', 'vision.ToyDataset'
    runner = ExactRunner.from_cfg(cfg)
    names = {f'{type(hook).__module__}.{type(hook).__name__}' for hook in runner.hooks}
    assert {f'vision.common.mm.hooks.{name}' for name in (
        'ExactnessHook', 'NonFiniteHook', 'LossSpikeHook', 'SignalHook', 'CheckpointHook')} \
        <= names
    assert 'vision.common.mm.logs.LoggerHook' in names
    runner.train()
    assert type(runner.optim_wrapper).__module__ == 'vision.common.mm.optim'
    cfg.default_hooks.checkpoint = dict(type='mmengine.CheckpointHook')
    cfg.experiment_name = 'stock'
    with pytest.raises(VisionError, match='VIS-CONFIG-331'):
        ExactRunner.from_cfg(cfg)


@pytest.mark.parametrize('name', ['Runner', 'mmengine.Runner', 'FlexibleRunner'])
def test_runners_of_others_are_refused(name):
    with pytest.raises(VisionError, match='VIS-CONFIG-333'):
        build_runner(Config(dict(runner_type=name, default_scope='vision')))


# Row R10: an edit of the config between the runs, and what becomes of it.
EDITS = [
    ('model.width', 17, 'VIS-CKPT-305'),
    ('train_dataloader.batch_size', 3, 'VIS-CONFIG-321'),
    ('train_dataloader.dataset.indices', 20, 'VIS-CONFIG-321'),
    ('randomness', dict(seed=1), 'VIS-CONFIG-309'),
    ('optim_wrapper.optimizer', dict(type='SGD', lr=0.01), 'VIS-CONFIG-329'),
    ('optim_wrapper.paramwise_cfg', dict(bias_lr_mult=2.), 'VIS-CONFIG-348'),
    ('param_scheduler', [dict(type='MultiStepLR', milestones=[9])], 'VIS-CONFIG-329'),
    ('optim_wrapper.optimizer.lr', 0.1, 'optimizer.lr: 0.01 -> 0.1 (no effect'),
    ('param_scheduler', [dict(type='CosineAnnealingLR', T_max=30, by_epoch=False)],
     'param_scheduler.0.T_max: 20 -> 30 (no effect'),
    ('train_cfg.max_iters', 18, 'train_cfg.max_iters: 17 -> 18'),
    ('optim_wrapper.clip_grad', dict(max_norm=1.), 'clip_grad.max_norm: (not there) -> 1.0'),
    ('train_dataloader.drop_last', True, 'train_dataloader.drop_last: (not there) -> True'),
    ('custom_hooks', [dict(type='EMAHook')], "custom_hooks.0.type: (not there) -> 'EMAHook'"),
    ('train_dataloader.num_workers', 1, None),
    ('default_hooks.checkpoint.interval', 5, None),
]


@pytest.fixture(scope='module')
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('r10') / 'a'
    train(folder)
    return folder


@pytest.mark.fault('R10')
@pytest.mark.parametrize('number', range(len(EDITS)))
def test_an_edit_between_the_runs_is_refused_told_or_of_no_concern(
        finished_run, tmp_path, number, caplog, monkeypatch):
    key, value, expected = EDITS[number]
    shutil.copytree(finished_run, tmp_path / 'a')
    cfg = config(tmp_path / 'a')
    cfg.resume, cfg.experiment_name = True, f'edit{number}'
    cfg.merge_from_dict({key: value}, allow_list_keys=False) if isinstance(value, int | float) \
        else _set(cfg, key, value)
    told = []
    runner = ExactRunner.from_cfg(cfg)
    monkeypatch.setattr(runner.logger, 'warning', told.append)
    if expected and expected.startswith('VIS-'):
        with pytest.raises(VisionError, match=expected):
            runner.train()
        return
    runner.train()
    changes = [text for text in told if 'the config has changed' in text]
    if expected is None:
        assert not changes
    else:
        assert expected in changes[0]


def _set(cfg, key, value):
    *path, last = key.split('.')
    for part in path:
        cfg = cfg[part]
    cfg[last] = value


@pytest.mark.fault('R10')
def test_the_config_in_a_checkpoint_is_read_as_json_alone(tmp_path):
    train(tmp_path / 'a', steps=2)
    meta = io.load_checkpoint(tmp_path / 'a' / 'iter_2.pth')['meta']
    assert json.loads(meta['config'])['optim_wrapper']['optimizer']['lr'] == 0.01


@pytest.mark.fault('R6')
def test_the_lock_of_a_process_that_died_is_taken_over(tmp_path):
    from vision.common.mm.checkpoints import only_run_here
    (tmp_path / 'a').mkdir()
    child = os.fork()
    if not child:
        only_run_here(tmp_path / 'a', 0)
        os._exit(0)  # no clean-up
    os.waitpid(child, 0)
    assert str(child) in (tmp_path / 'a' / '.lock.owner').read_text()
    train(tmp_path / 'a', steps=2)


def test_an_epoch_of_few_batches_has_these_alone(tmp_path):
    """num_batch_per_epoch: the sampler must know too."""
    cfg = config(tmp_path / 'a', loop='epoch')
    cfg.train_dataloader.num_batch_per_epoch = 3
    runner = ExactRunner.from_cfg(cfg)
    runner.train()
    assert len(runner.train_dataloader) == 3 and runner.iter == 9
    assert len(runner.train_dataloader.dataset) == 12


def test_no_option_of_the_loop_loses_the_place(tmp_path):
    straight = train(tmp_path / 'straight')
    crashed(tmp_path / 'a', 9)
    cfg = config(tmp_path / 'a')
    cfg.resume, cfg.train_cfg.fast_forward_on_resume = True, True
    cfg.experiment_name = 'fast'
    assert_equal(straight, ExactRunner.from_cfg(cfg).train().state_dict())


def test_nothing_is_said_of_lost_gradients(tmp_path, caplog):
    crashed(tmp_path / 'a', 8, accumulation=3)
    with caplog.at_level(logging.WARNING):
        resumed(tmp_path / 'a', accumulation=3)
    assert 'not divisible' not in caplog.text
