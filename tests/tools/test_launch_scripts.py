"""What the launchers start: torchrun and srun are stood in for by a script that prints."""

import os
import subprocess

import pytest
from mmengine.config import Config

from vision.common.mm.launch import resume_after_restart


@pytest.fixture
def launch(repository, tmp_path):
    """The arguments with which a script starts ``python`` or ``srun``."""
    for name in ('python', 'srun'):
        (tmp_path / name).write_text(
            f'#!/bin/sh\necho {name}; for a in "$@"; do echo "$a"; done\n')
        (tmp_path / name).chmod(0o755)

    def launched(script, *arguments, **environment):
        return subprocess.run(
            ['bash', f'tools/{script}', *arguments], cwd=repository, check=True, text=True,
            capture_output=True, env={**os.environ, **environment, 'PATH': f'{tmp_path}:'
                                      + os.environ['PATH']}).stdout.splitlines()
    return launched


def test_dist_train_starts_torchrun(launch):
    words = launch('dist_train.sh', 'c.py', '2', '--cfg-options', 'a=1 b')
    assert words[:4] == ['python', '-m', 'torch.distributed.run', '--nproc-per-node=2']
    assert words[-6:] == ['tools/train.py', 'c.py', '--launcher', 'pytorch', '--cfg-options',
                          'a=1 b']
    assert '--max-restarts' not in ' '.join(words)


@pytest.mark.parametrize('option', [['--max-restarts', '3'], ['--max-restarts=3']])
def test_dist_train_hands_restarts_to_torchrun(launch, option):
    words = launch('dist_train.sh', 'c.py', '8', '--amp', *option, MASTER_ADDR='h', NNODES='2',
                   MASTER_PORT='5')
    assert {'--max-restarts=3', '--rdzv-endpoint=h:5', '--nnodes=2'} < set(words)
    assert words[-5:] == ['tools/train.py', 'c.py', '--launcher', 'pytorch', '--amp']


def test_slurm_scripts_take_what_those_of_mmdetection_take(launch):
    words = launch('slurm_train.sh', 'part', 'job', 'c.py', 'out', '--amp', GPUS='4',
                   SRUN_ARGS='--qos low -t 5')
    assert {'--partition=part', '--job-name=job', '--ntasks=4', '--gres=gpu:4', '--qos', 'low',
            '--kill-on-bad-exit=1'} < set(words)
    assert words[-7:] == ['tools/train.py', 'c.py', '--work-dir', 'out', '--launcher', 'slurm',
                          '--amp']
    words = launch('slurm_test.sh', 'part', 'job', 'c.py', 'w.pth')
    assert words[-5:] == ['tools/test.py', 'c.py', 'w.pth', '--launcher', 'slurm']


@pytest.mark.parametrize(('command', 'problem'), [
    ('dist_train.sh c.py', ''), ('dist_test.sh c.py 2', ''), ('slurm_test.sh part job c.py', ''),
    ('dist_train.sh c.py two', "NUM_PROCESSES is a count, got 'two'"),
    ('dist_test.sh c.py 2 w.pth', "NUM_PROCESSES is a count, got 'w.pth'"),
    ('dist_train.sh c.py 2 --max-restarts', "--max-restarts is a count, got ''")])
def test_what_a_script_cannot_use_is_answered_with_its_usage(repository, command, problem):
    done = subprocess.run(['bash', *f'tools/{command}'.split()], cwd=repository, text=True,
                          capture_output=True)
    script = command.split()[0]
    first = f'{script}: {problem}\n' if problem else ''
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.startswith(f'{first}bash tools/{script} ')


@pytest.mark.parametrize(('count', 'has_saved', 'load_from', 'expected'), [
    ('0', True, None, (False, None)), ('1', True, None, (True, None)),
    ('1', False, None, (True, None)), ('1', True, 'w.pth', (True, None)),
    ('1', False, 'w.pth', (False, 'w.pth'))])
def test_a_restarted_run_goes_on_from_what_it_has_saved(tmp_path, monkeypatch, count, has_saved,
                                                         load_from, expected):
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', count)
    if has_saved:
        (tmp_path / 'iter_1.pth').touch()
    config = Config(dict(work_dir=str(tmp_path), resume=False, load_from=load_from))
    resume_after_restart(config)
    assert (config.resume, config.load_from) == expected
