"""A run under a budget ends as one without: weights, averages, optimizer, losses, bit for bit."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import runs_memory
from runs_memory import config, memory_hook, runs, train, watch

from vision.common.core.errors import VisionError
from vision.common.mm.flexible import ExactFlexibleRunner
from vision.common.mm.launch import explained, read_config
from vision.common.mm.runner import ExactRunner
from vision.memory.core.graph import StepReport
from vision.memory.mm.hooks import ActivationMemoryHook, describe, find_modules, scalars
from vision.memory.nn.torch_private import set_compiler_budget
from vision.registry import MODELS

RATIO = dict(budget=0.5)


@pytest.mark.parametrize(('memory', 'options'), [
    (RATIO, {}),
    (RATIO, dict(loop='epoch')),
    (RATIO, dict(accumulation=2, ema=True)),
    (RATIO, dict(amp=True)),
    (dict(budget='0.6MB'), {}),
    (dict(budget=0.5, actions='recompute'), {}),
    (dict(budget=0.5, actions='swap'), dict(amp=True)),
    (dict(budget=0.5, mode='reactive', verify='always'), {}),
    (dict(budget=0.5, ignore=['net.4', 'net.5']), {})],
    ids=['ratio', 'epoch', 'accumulation', 'bf16', 'bytes', 'recompute', 'swap', 'reactive',
         'ignore'])
def test_a_run_under_a_budget_ends_as_one_without(tmp_path, memory, options):
    _, expected = train(config(tmp_path / 'free', **options))
    runner, found = train(config(tmp_path / 'held', memory, **options))
    runs.assert_equal(expected, found)
    assert watch(runner).num_dropped > 0  # otherwise this test proves nothing


@pytest.mark.fault('R31')
def test_host_memory_that_ends_costs_time_and_no_value(tmp_path):
    """One tensor fits on the host; what finds no room there is computed again or kept."""
    _, expected = train(config(tmp_path / 'free'))
    runner, found = train(config(tmp_path / 'held', dict(budget=0.4, host_budget=65536)))
    runs.assert_equal(expected, found)
    reports = watch(runner).reports
    assert max(report.host_peak_bytes for report in reports) <= 65536
    assert any(report.drops['drop'] for report in reports)


def test_the_flexible_runner_reads_the_same_key(tmp_path):
    _, expected = train(config(tmp_path / 'free'), ExactFlexibleRunner.from_cfg)
    runner, found = train(config(tmp_path / 'held', RATIO), ExactFlexibleRunner.from_cfg)
    runs.assert_equal(expected, found)
    assert watch(runner).num_dropped > 0


def test_a_run_goes_on_with_and_without_a_budget(tmp_path):
    _, expected = train(config(tmp_path / 'straight'))
    with pytest.raises(RuntimeError, match='crash'):
        train(config(tmp_path / 'run', RATIO, crash=3))
    cfg = config(tmp_path / 'run', crash=6, resume=True)
    with pytest.raises(RuntimeError, match='crash'):
        train(cfg)
    cfg = config(tmp_path / 'run', RATIO, resume=True)
    cfg.experiment_name = 'third'
    runner, found = train(cfg)
    runs.assert_equal(expected, found)
    assert watch(runner).num_dropped > 0


def test_the_log_says_what_each_step_did(tmp_path):
    cfg = config(tmp_path / 'held', dict(RATIO, report_interval=4))
    cfg.default_hooks.logger = dict(type='LoggerHook', interval=1)
    cfg.log_level = 'INFO'
    runner, _ = train(cfg)
    (path,) = (tmp_path / 'held').glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    reports = watch(runner).reports
    assert len(rows) == len(reports) == runs_memory.STEPS
    for row, report in zip(rows, reports, strict=True):
        assert row['mem_peak'] == pytest.approx(report.peak_bytes / 1e9)
        assert {'mem_saved', 'replay_ms', 'swap_gb'} <= row.keys()
    assert rows[-1]['mem_saved'] > 0
    (log,) = (tmp_path / 'held').glob('*/*.log')
    lines = log.read_text().splitlines()
    assert any('mem_peak: ' in line and 'swap_gb: ' in line for line in lines)
    assert [line.split('memory: ')[1].split(': ')[0] for line in lines
            if 'memory: step' in line] == ['step 4', 'step 8']


def test_a_report_in_one_line():
    report = StepReport(mode='planned', budget_bytes=2 * 10**9, peak_bytes=19 * 10**8,
                        unmanaged_peak_bytes=4 * 10**9, replayed_calls=7, replay_seconds=0.05,
                        op_seconds=0.5, swapped_bytes=10**9, is_over=True)
    assert scalars(report) == dict(mem_peak=1.9, mem_saved=2.1, replay_ms=50.0, swap_gb=1.0)
    assert describe(report) == (
        'planned, peak 1.9 GB of 4.0 GB without a budget, budget 2.0 GB (passed); 7 operators '
        "ran again (10.0% of the operators' time), 1.0 GB went to the host")
    assert scalars(StepReport(peak_bytes=10**9))['mem_saved'] == 0.0  # not known yet


@pytest.mark.parametrize('crash', [None, 3])
@pytest.mark.parametrize('build', [ExactRunner.from_cfg, ExactFlexibleRunner.from_cfg])
def test_train_step_is_the_models_own_again(tmp_path, crash, build):
    runner = build(config(tmp_path / 'held', RATIO, crash=crash))
    if crash:
        with pytest.raises(RuntimeError, match='crash'):
            runner.train()
    else:
        runner.train()
    assert all(watch(runner).steps)  # it was replaced in each step
    assert 'train_step' not in vars(runner.model) and memory_hook(runner).manager is None


def test_a_replacement_of_somebody_else_is_put_back(tmp_path):
    runner = ExactRunner.from_cfg(config(tmp_path / 'held', RATIO))
    seen, train_step = [], runner.model.train_step

    def other(*args, **kwargs):
        seen.append(1)
        return train_step(*args, **kwargs)

    runner.model.train_step = other
    runner.train()
    assert len(seen) == runs_memory.STEPS and runner.model.train_step is other


@MODELS.register_module()
class TwoPlayers(BaseModel):
    """A step of its own: two backward passes and two optimizers, as adversarial models have."""

    def __init__(self):
        super().__init__()
        self.maker = nn.Sequential(nn.Linear(6, 64), nn.BatchNorm1d(64), nn.ReLU(True),
                                   nn.Linear(64, 64), nn.Tanh())
        self.judge = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.3), nn.ReLU(True),
                                   nn.Linear(64, 1))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.judge(self.maker(inputs))

    def train_step(self, data, optim_wrapper):
        rows = torch.stack(list(data['inputs'])).repeat(64, 1)
        made = self.maker(rows)
        judge_loss = self.judge(made.detach()).square().mean()
        optim_wrapper['judge'].update_params(judge_loss)
        maker_loss = (self.judge(made) - 1).square().mean()  # by the judge that has just stepped
        optim_wrapper['maker'].update_params(maker_loss)
        return dict(loss=judge_loss + maker_loss)


def test_a_step_with_two_backward_passes_and_optimizers(tmp_path):
    def play(folder, memory):
        cfg = config(folder, memory)
        torch.manual_seed(0)
        model = TwoPlayers()
        wrappers = OptimWrapperDict(**{
            name: OptimWrapper(torch.optim.SGD(getattr(model, name).parameters(), 0.05))
            for name in ('maker', 'judge')})
        runner = ExactRunner(model, str(folder), cfg.train_dataloader, train_cfg=cfg.train_cfg,
                             optim_wrapper=wrappers, custom_hooks=cfg.custom_hooks,
                             default_scope='vision', cfg=cfg, experiment_name=folder.name,
                             log_level='ERROR')
        runner.train()
        return runner, runs.outcome(runner)

    _, expected = play(tmp_path / 'free', None)
    runner, found = play(tmp_path / 'held', RATIO)
    runs.assert_equal(expected, found)
    assert watch(runner).num_dropped > 0


# Refusals: before the first step, with a code.
@pytest.mark.parametrize(('memory', 'code'), [
    (dict(), 'VIS-CONFIG-1436'),
    (dict(budget=0.5, report_interval=0), 'VIS-CONFIG-1440'),
    (dict(budget='12 GBB'), 'VIS-CONFIG-1401'),
    (dict(budget=1.5), 'VIS-CONFIG-1402'),
    (dict(budget=0.5, actions='recompute', host_budget='1GB'), 'VIS-CONFIG-1439'),
    (dict(budget=0.5, host_budget=0.5), 'VIS-CONFIG-1435')])
def test_arguments_that_are_not_possible_are_refused(memory, code):
    with pytest.raises(VisionError, match=code):
        ActivationMemoryHook(**memory)


def test_no_host_memory_at_all_leaves_recomputation():
    assert ActivationMemoryHook(0.5, host_budget=0).host_bytes == 0


@pytest.mark.parametrize(('key', 'value', 'memory', 'code'), [
    ('compile', True, dict(budget='1GB'), '1430[^$]*a ratio only'),
    ('compile', dict(backend='eager'), RATIO, '1430[^$]*eager'),
    ('compile', True, dict(budget=0.5, actions='swap'), '1430[^$]*no swap'),
    ('activation_checkpointing', ['net.0'], RATIO, '1431'),
    ('work_dir', None, dict(budget=0.5, actions='swap', host_budget=0), '1413'),
    ('work_dir', None, dict(budget=0.5, mode='fast'), '1410[^$]*planned'),
    ('work_dir', None, dict(budget=0.5, ignore=['net.33']), '1432[^$]*did you mean net.3'),
    ('work_dir', None, dict(budget=0.5, ignore=['']), '1432[^$]*its parts are')])
def test_what_does_not_go_together_is_refused(tmp_path, monkeypatch, key, value, memory, code):
    monkeypatch.setattr(torch, 'compile', lambda function, **_: function)  # compiled when called
    cfg = config(tmp_path / 'held', memory)
    if key != 'work_dir':
        cfg[key] = value
    runner = ExactRunner.from_cfg(cfg)
    with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}'):
        runner.train()
    assert watch(runner).steps == [] and memory_hook(runner).manager is None


def test_a_key_and_a_hook_are_one_too_many(tmp_path):
    cfg = config(tmp_path / 'held', RATIO)
    cfg.custom_hooks.append(dict(type='ActivationMemoryHook', budget=0.3))
    with pytest.raises(VisionError, match='VIS-CONFIG-1437'):
        ExactRunner.from_cfg(cfg).train()


@pytest.mark.parametrize('value', ['12GB', {}, dict(type='X', budget=0.5), [0.5]])
def test_a_key_that_is_no_dict_of_arguments_is_refused(tmp_path, value):
    cfg = config(tmp_path / 'held')
    cfg.activation_memory = value
    with pytest.raises(VisionError, match='VIS-CONFIG-1438'):
        ExactRunner.from_cfg(cfg)


def test_strategies_with_a_backward_of_their_own_are_refused():
    class DeepSpeedStrategy:
        pass

    runner = SimpleNamespace(hooks=[], cfg={}, strategy=DeepSpeedStrategy())
    with pytest.raises(VisionError, match='VIS-CONFIG-1433[^$]*DeepSpeedStrategy'):
        ActivationMemoryHook(0.5).before_train(runner)


def test_modules_are_found_by_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    assert find_modules(model, ['1.0']) == [model[1][0]]


@pytest.mark.parametrize('fails', [False, True])
def test_a_compiled_run_gets_the_compilers_budget(tmp_path, monkeypatch, fails):
    budgets = []

    def compiled(function, **_):
        def step(*args, **kwargs):
            budgets.append(set_compiler_budget(1.0))  # the value before it comes back
            set_compiler_budget(budgets[-1])
            return function(*args, **kwargs)
        return step

    monkeypatch.setattr(torch, 'compile', compiled)
    cfg = config(tmp_path / 'held', RATIO, crash=2 if fails else None)
    cfg.compile, cfg.log_level = True, 'INFO'
    runner = ExactRunner.from_cfg(cfg)
    if fails:
        with pytest.raises(RuntimeError, match='crash'):
            runner.train()
    else:
        runner.train()
    assert budgets == [0.5] * (2 if fails else runs_memory.STEPS)
    assert set_compiler_budget(1.0) == 1.0 and watch(runner).reports == []
    (log,) = (tmp_path / 'held').glob('*/*.log')
    assert log.read_text().count("the compiler's own") == 1
    assert 'mem_peak' not in log.read_text()


def test_modules_that_recompute_by_themselves_are_told(tmp_path):
    cfg = config(tmp_path / 'held', RATIO, steps=1)
    cfg.log_level = 'INFO'
    runner = ExactRunner.from_cfg(cfg)
    runner.model.net[3].with_cp = True
    runner.train()
    (log,) = (tmp_path / 'held').glob('*/*.log')
    assert log.read_text().count('1 modules recompute by themselves (with_cp), net.3 first') == 1


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text("default_scope = 'vision'\nmodel = dict(type='ToyModel')\n")
    return path


def read(path, options):
    return read_config(argparse.Namespace(config=str(path), cfg_options=options, launcher='none',
                                          local_rank=0, work_dir=None))


def test_the_command_line_sets_and_checks_the_key(file):
    cfg = read(file, {'activation_memory.budget': 0.4, 'activation_memory.actions': 'swap'})
    assert cfg.activation_memory == dict(budget=0.4, actions='swap')
    with pytest.raises(VisionError, match='VIS-CONFIG-319[^$]*activation_memory.bugdet'
                       '[^$]*did you mean budget'):
        read(file, {'activation_memory.bugdet': 0.4})
    file.write_text(file.read_text() + 'activation_memory = dict(budget=0.3)\n')
    assert read(file, {'activation_memory.ignore': ['net.0']}).activation_memory.budget == 0.3
    with pytest.raises(VisionError, match='VIS-CONFIG-311[^$]*did you mean budget'):
        read(file, {'activation_memory.bugdet': 0.4})


def test_a_key_without_a_budget_is_told_when_the_run_is_built(tmp_path):
    cfg = config(tmp_path / 'held', dict(actions='swap'))
    with explained(cfg), pytest.raises(VisionError, match='VIS-CONFIG-1436'):
        ExactRunner.from_cfg(cfg)


@pytest.fixture(scope='module')
def of_ranks(repository, tmp_path_factory):
    """What runs of two ranks ended with, by each strategy, and how much they dropped."""
    folder = tmp_path_factory.mktemp('ranks')
    result = subprocess.run([sys.executable, str(Path(__file__).with_name('rank_runs.py')),
                             str(folder)], capture_output=True, text=True, cwd=repository,
                            timeout=600)
    assert result.returncode == 0, result.stderr[-8000:]
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize(('name', 'num_units'), [('plain', 0), ('ddp', 0), ('layers', 9),
                                                 ('whole', 2)])
@pytest.mark.parametrize('rank', [0, 1])
def test_runs_of_two_ranks_end_as_without_a_budget(of_ranks, name, num_units, rank):
    row = json.loads((of_ranks / f'{name}-{rank}.json').read_text())
    assert row['differs'] == [] and row['num_dropped'] > 0 and row['num_units'] == num_units
    assert row['num_replayed'] > 0 or name == 'layers'
