"""A run begins with a few lines on the console; environment, config and hooks are in the file."""

import re
import sys
import warnings
from pathlib import Path

import pytest

from vision.common.core import errors
from vision.common.mm.runner import ExactRunner
from vision.common.mm.start import TOLD

sys.path.insert(0, str(Path(__file__).parent))
from runs import config


@pytest.fixture(autouse=True)
def called_without_v(monkeypatch):
    """Whatever pytest itself was called with."""
    monkeypatch.setitem(errors._called_with, '-v', False)


def run(tmp_path, capsys, **options) -> tuple[list[str], str]:
    """(lines on the console before the first step, text of the log file)."""
    cfg = config(tmp_path / 'run', steps=2, **options)
    cfg.log_level = 'INFO'
    cfg.log_processor = dict(by_epoch=False)
    cfg.default_hooks.logger = dict(type='LoggerHook', interval=1)
    capsys.readouterr()
    runner = ExactRunner.from_cfg(cfg)
    runner.train()
    lines = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if 'Iter(train)' in line)
    return lines[:first], Path(runner.logger.log_file).read_text()


def test_the_console_says_what_matters_in_a_dozen_lines(tmp_path, capsys):
    lines, log = run(tmp_path, capsys)
    text = '\n'.join(lines)
    assert len(lines) <= 12
    for part in (r'model +ToyModel, \d+ parameters', r'train +ToyDataset, 30 samples, 2 classes; '
                 'batches of 4', 'cpu; seed 0', r'length +2 iterations', r'work_dir +\S+/run',
                 r'log +\S+\.log'):
        assert re.search(part, text), part
    assert 'Config:' not in text and 'Hooks will be executed' not in text
    assert 'FileClient' not in text


def test_the_log_file_keeps_everything(tmp_path, capsys):
    _, log = run(tmp_path, capsys)
    for part in ('System environment:', 'Config:', 'Hooks will be executed', 'ToyModel',
                 'Iter(train)'):
        assert part in log


def test_verbose_shows_the_rest(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(errors._called_with, '-v', True)
    lines, _ = run(tmp_path, capsys)
    text = '\n'.join(lines)
    assert 'Config:' in text and 'Hooks will be executed' in text and len(lines) > 50


def test_warnings_and_what_is_told_pass_before_the_first_step(tmp_path, capsys):
    cfg = config(tmp_path / 'run', steps=1)
    cfg.log_level = 'INFO'
    runner = ExactRunner.from_cfg(cfg)
    capsys.readouterr()
    runner.logger.info('kept back')
    runner.logger.info('told', extra=TOLD)
    runner.logger.warning('a warning')
    runner.logger.warning('"FileClient" will be deprecated in future.')
    out = capsys.readouterr().out
    assert 'told' in out and 'a warning' in out
    assert 'kept back' not in out and 'FileClient' not in out


@pytest.mark.parametrize(('text', 'is_heard'), [
    ('faster_coco_eval is not installed, metrics will not be computed.', False),
    ('torch.meshgrid: in an upcoming release, it will be required', False),
    ('the weights are broken', True)])
def test_only_warnings_that_nobody_can_act_on_are_silent(text, is_heard):
    from vision.common.mm.quiet import quieten
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        quieten()
        warnings.warn(text, stacklevel=1)
    assert bool(caught) == is_heard
