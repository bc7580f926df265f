"""Runs on a GPU that a launcher starts: NCCL with one rank, two ranks on one device by gloo."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vision.common.core.errors import EXIT_CODES
from vision.common.nn.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'common'))
import runs  # noqa: E402

pytestmark = pytest.mark.gpu


def port() -> int:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def environment(**more: object) -> dict[str, str]:
    paths = ROOT, ROOT / 'tests' / 'common', os.environ.get('PYTHONPATH', '')
    return dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=':'.join(map(str, paths)),
                PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
                MASTER_ADDR='127.0.0.1', **{name: str(value) for name, value in more.items()})


def start(*command: object, **more: object) -> subprocess.Popen:
    return subprocess.Popen([str(part) for part in command], cwd=ROOT, text=True,
                            env=environment(**more), stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


def write_config(path: Path, *lines: str) -> Path:
    path.write_text('\n'.join((
        f"_base_ = [{str(ROOT / 'configs/_base_/runtime.py')!r}]",
        "custom_imports = dict(imports=['toy'])", "model = dict(type='ToyModel')",
        "randomness = dict(deterministic=True)",
        "train_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(type='ToyDataset'),",
        "    sampler=dict(type='DefaultSampler', shuffle=True))",
        "train_cfg = dict(type='IterBasedTrainLoop', max_iters=12, val_interval=1000)",
        "optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.01))",
        "default_hooks = dict(checkpoint=dict(interval=3))", *lines, '')))
    return path


STRATEGIES = dict(
    plain=[], ddp=["runner_type = 'ExactFlexibleRunner'", "strategy = dict(type='DDPStrategy')"],
    fsdp2=["runner_type = 'ExactFlexibleRunner'",
           "strategy = dict(type='FSDP2Strategy', wrap=['Sequential'])"],
    fsdp2_bf16=["runner_type = 'ExactFlexibleRunner'", "strategy = dict(type='FSDP2Strategy', "
                "wrap=['Sequential'], param_dtype='bfloat16')",
                "model = dict(type='ToyModel', is_plain=True)"])  # a CPU's BatchNorm: float32


def dist_train(config: Path, work_dir: Path, *options: object) -> subprocess.Popen:
    return start('bash', 'tools/dist_train.sh', config, 1, '--work-dir', work_dir, *options,
                 MASTER_PORT=port())


def state_of(path: Path) -> dict[str, torch.Tensor]:
    content = load_checkpoint(path)
    return dict(runs._tensors({name: content[name] for name in ('state_dict', 'optimizer')}, ''))


@pytest.mark.timeout(200)
def test_launched_runs_end_and_one_is_cut_and_goes_on(device, tmp_path):
    """One rank of NCCL (of gloo on a CPU), under each strategy; all end by themselves. One rank
    of DDP computes what no rank does; FSDP2's checkpoints are folders, and a run of 6 steps that
    goes on to 12 ends with the bits of one of 12."""
    configs = {name: write_config(tmp_path / f'{name}.py', *lines)
               for name, lines in STRATEGIES.items()}
    started = {name: dist_train(config, tmp_path / name) for name, config in configs.items()}
    started['cut'] = dist_train(configs['fsdp2'], tmp_path / 'cut', '--cfg-options',
                                'train_cfg.max_iters=6')
    require_good_ends(started)
    require_good_ends(dict(again=dist_train(configs['fsdp2'], tmp_path / 'cut', '--resume')))
    for name in configs:
        assert (tmp_path / name / 'iter_12.pth').is_dir() == name.startswith('fsdp2')
    states = {name: state_of(tmp_path / name / 'iter_12.pth') for name in (*configs, 'cut')}
    runs.assert_equal(states['plain'], states['ddp'])
    runs.assert_equal(states['fsdp2'], states['cut'])
    for name, tensor in states['plain'].items():
        torch.testing.assert_close(states['fsdp2'][name], tensor, rtol=1e-4, atol=1e-5)


def require_good_ends(started: dict[str, subprocess.Popen]) -> None:
    for name, process in started.items():
        output = process.communicate(timeout=180)[0]
        assert process.returncode == 0, f'{name}: {output[-3000:]}'


def test_a_fault_of_the_only_rank_ends_the_run(device, tmp_path):
    config = write_config(tmp_path / 'c.py', "custom_hooks = [dict(type='CrashHook', step=4)]")
    process = dist_train(config, tmp_path / 'work')
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0 and 'RuntimeError: crash' in output, output[-3000:]


RANK_FAULT = '''
import os
custom_hooks = [dict(type='CrashHook', step=4, kill=True)] if os.environ['RANK'] == '1' else []
env_cfg = dict(dist_cfg=dict(backend='gloo', timeout=60))
'''


def two_ranks(config: Path, work_dir: Path) -> list[tuple[int, str]]:
    """Exit codes and outputs of two ranks that share the device; NCCL wants one for each, so they
    talk by gloo."""
    meet = port()
    started = [start(sys.executable, 'tools/train.py', config, '--work-dir', work_dir,
                     '--launcher', 'pytorch', RANK=rank, WORLD_SIZE=2, LOCAL_RANK=0,
                     MASTER_PORT=meet) for rank in range(2)]
    return [(process.returncode, output) for process in started
            for output in process.communicate(timeout=180)[:1]]


def test_two_ranks_on_one_device_and_one_that_dies(device, tmp_path):
    """DDP over gloo with tensors of the device; then rank 1 is killed, and rank 0 ends and says
    so."""
    whole = write_config(tmp_path / 'whole.py',
                         "env_cfg = dict(dist_cfg=dict(backend='gloo', timeout=60))")
    for code, output in two_ranks(whole, tmp_path / 'whole'):
        assert code == 0, output[-3000:]
    assert load_checkpoint(tmp_path / 'whole' / 'iter_12.pth')['meta']['iter'] == 12
    faulty = write_config(tmp_path / 'faulty.py', RANK_FAULT)
    (code, output), (killed, _) = two_ranks(faulty, tmp_path / 'faulty')
    assert killed == -signal.SIGKILL
    assert code == EXIT_CODES['DIST'] and 'rank 1 of 2 is gone' in output, output[-3000:]


def test_collectives_of_nccl_are_recorded(device, tmp_path):
    """What the watchdog tells of a hang: the number of collectives begun, and the last one."""
    if device.type != 'cuda':
        pytest.skip('NCCL is of GPUs')
    code = '''
import torch, torch.distributed as dist
from vision.common.nn.watchdog import last_collective
torch.cuda.set_device(0)
dist.init_process_group('nccl')
for _ in range(3):
    dist.all_reduce(torch.ones(5, device='cuda'))
torch.cuda.synchronize()
print(last_collective())
dist.destroy_process_group()
'''
    process = start(sys.executable, '-c', code, RANK=0, WORLD_SIZE=1, LOCAL_RANK=0,
                    MASTER_PORT=port())
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert "'begun': 0" not in output and 'all_reduce of (5,)' in output, output
