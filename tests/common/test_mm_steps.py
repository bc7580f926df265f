"""What a step may meet: numbers that are not finite, a loss that jumps, a loader that dies."""

import json
import multiprocessing
import sys
from pathlib import Path

import pytest
import torch

from vision.common.core.errors import VisionError
from vision.common.mm.checkpoints import newest_valid
from vision.common.mm.optim import AmpOptimWrapper
from vision.common.mm.runner import ExactRunner
from vision.common.nn import checkpoint as io

sys.path.insert(0, str(Path(__file__).parent))
import toy
from runs import assert_equal, config, outcome, train


@pytest.mark.parametrize('accumulation', [1, 2])
def test_a_step_that_is_not_finite_leaves_nothing_behind(tmp_path, accumulation):
    """One bad sample: BatchNorm's averages are as if its batches had never been seen."""
    runner = ExactRunner.from_cfg(config(tmp_path / 'a', nan_from=29, accumulation=accumulation))
    states = [{k: v.clone() for k, v in runner.model.state_dict().items()}]
    runner.register_hook(States(states), priority='LOWEST')
    runner.train()
    ends = [*range(0, len(states), accumulation), len(states) - 1]  # of the steps' windows
    unchanged = [end for begin, end in zip(ends, ends[1:], strict=False) if begin != end and all(
        torch.equal(states[begin][name], states[end][name]) for name in states[0])]
    assert runner.optim_wrapper.num_skipped == len(unchanged) == 2  # one in each of two epochs
    assert all(value.isfinite().all() for value in states[-1].values())


class States(toy.Hook):
    def __init__(self, states):
        self.states = states

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.states.append({k: v.clone() for k, v in runner.model.state_dict().items()})


@pytest.mark.fault('R13')
@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('where', ['data', 'loss', 'gradient'])
def test_nan_at_a_step_costs_this_step_and_three_end_the_run(tmp_path, where, amp):
    def with_nan(number, steps):
        cfg = config(tmp_path / f'{number}', amp=amp)
        cfg.custom_hooks = [dict(type='PoisonHook', where=where, steps=steps)]
        runner = ExactRunner.from_cfg(cfg)
        runner.train()
        return runner

    runner = with_nan(0, [6])
    assert runner.optim_wrapper.num_skipped == 1 and runner.optim_wrapper.num_skipped_in_row == 0
    assert all(v.isfinite().all() for v in runner.model.state_dict().values())
    with pytest.raises(VisionError, match='VIS-RUN-306[^$]*step 8'):
        with_nan(1, [6, 7, 8])
    content = io.load_checkpoint(newest_valid(tmp_path / '1', print))
    assert all(v.isfinite().all() for v in content['state_dict'].values())


@pytest.mark.fault('R14')
def test_a_loss_that_jumps_is_told_once_with_step_and_rate(tmp_path, monkeypatch):
    cfg = config(tmp_path / 'a', steps=60)
    cfg.custom_hooks = [dict(type='PoisonHook', where='spike', steps=[41, 43])]
    runner = ExactRunner.from_cfg(cfg)
    told = []
    monkeypatch.setattr(runner.logger, 'warning', told.append)
    runner.train()
    spikes = [text for text in told if 'jumped' in text]
    assert len(spikes) == 1 and spikes[0].startswith('step 41: the loss jumped to')
    assert 'learning rate 0.01' in spikes[0]


@pytest.mark.fault('R15')
@pytest.mark.parametrize(('how', 'why'), [
    ('SIGKILL', 'no memory left'), ('SIGBUS', '/dev/shm'), ('memory', 'no memory left'),
    ('exit', 'ended it from outside')])
def test_a_killed_worker_names_the_likely_cause(tmp_path, how, why):
    """The run ends at once, and so do its other processes."""
    def run():
        cfg = config(tmp_path / 'a', workers=2)
        cfg.train_dataloader.dataset.die = how
        try:
            ExactRunner.from_cfg(cfg).train()
        except VisionError as error:
            workers = [process.pid for process in multiprocessing.active_children()]
            (tmp_path / 'said').write_text(json.dumps([str(error), workers]))

    process = multiprocessing.get_context('fork').Process(target=run)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    said, workers = json.loads((tmp_path / 'said').read_text())
    assert said.startswith('ERROR VIS-DATA-330') and why in said
    assert not [pid for pid in workers if Path(f'/proc/{pid}').exists()]


def test_mixed_precision_on_a_cpu_is_bfloat16_alone(tmp_path):
    cfg = config(tmp_path / 'a', amp=True)
    runner = ExactRunner.from_cfg(cfg)
    runner.train()
    assert runner.optim_wrapper.cast_dtype == torch.bfloat16
    plain = train(tmp_path / 'b')
    assert any(not torch.equal(plain[k], v) for k, v in runner.model.state_dict().items())
    for options, code in ((dict(dtype='float16'), 332), (dict(loss_scale=512.), 349)):
        cfg = config(tmp_path / 'c', amp=True)
        cfg.optim_wrapper.update(options)
        cfg.experiment_name = str(options)
        with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}'):
            ExactRunner.from_cfg(cfg).train()


def test_a_loss_scale_that_falls_below_one_counts(tmp_path):
    """As in float16, where the scaler leaves steps out: here its CPU form, on one parameter."""
    weight = torch.nn.Parameter(torch.ones(2))
    wrapper = AmpOptimWrapper(optimizer=torch.optim.SGD([weight], lr=0.1), dtype='bfloat16')
    wrapper.is_scaled = True
    wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=4.)
    counts = []
    for factor in (1., float('inf'), 1., *[float('inf')] * 4):
        wrapper.update_params((weight * factor).sum())
        counts.append((wrapper.num_skipped, wrapper.num_skipped_in_row))
    # 4 -> 2, then 1, 1/2, 1/4, 1/8: only those below one count in a row.
    assert counts == [(0, 0), (1, 0), (1, 0), (2, 0), (3, 1), (4, 2), (5, 3)]
    torch.testing.assert_close(weight.data, torch.full((2,), 0.8))


@pytest.mark.parametrize('crash', [1, 2, 4])
def test_a_step_that_is_left_out_after_a_resume_leaves_as_little_behind(tmp_path, crash):
    """Of three batches, one before the interruption: what is put back is what was before all."""
    def ended(name, **options):
        cfg = config(tmp_path / name, accumulation=3, steps=7, **options)
        cfg.custom_hooks.append(dict(type='PoisonHook', where='gradient', steps=[3, 5]))
        cfg.resume, cfg.experiment_name = True, f'{name}-{options}'
        return outcome(run_of(cfg))

    def run_of(cfg):
        runner = ExactRunner.from_cfg(cfg)
        runner.train()
        return runner
    straight = ended('straight')
    with pytest.raises(RuntimeError, match='crash'):
        ended('cut', crash=crash)
    assert_equal(straight, ended('cut'))
