"""Pipelines on a GPU: all stages on one rank by NCCL, and two ranks that share the device.

More than one GPU, and NCCL between stages, are not judged here.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.pipelining import PipelineStage

from vision.common.nn.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(
    not hasattr(PipelineStage, '_to_tensor'), reason='pipelines are written for torch 2.13')]


def play(case: str, folder: Path, world: int = 1) -> None:
    """The ranks of a case of ``pipeline_ranks``, all on the first GPU."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    started = [subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name('pipeline_ranks.py')), case, str(folder)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=dict(os.environ, RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK='0',
                 MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), OMP_NUM_THREADS='1',
                 PYTHONPATH=f'{os.environ.get("PYTHONPATH", "")}:{ROOT}'))
        for rank in range(world)]
    try:
        for process in started:
            output = process.communicate(timeout=110)[0]
            assert process.returncode == 0, output[-4000:]
    finally:
        for process in started:
            process.kill()


@pytest.fixture(scope='module')
def played(tmp_path_factory):
    folders: dict[str, Path] = {}

    def of(case: str, world: int = 1) -> Path:
        if case not in folders:
            folders[case] = tmp_path_factory.mktemp(case)
            play(case, folders[case], world)
        return folders[case]
    return of


def told(folder: Path, name: str, rank: int = 0) -> dict:
    return json.loads((folder / f'{name}-{rank}.json').read_text())


def assert_same_weights(folder: Path, name: str, atol: float = 2e-6) -> None:
    found, wanted = (load_checkpoint(folder / each / 'iter_6.pth')['state_dict']
                     for each in (name, 'one'))
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=atol, msg=key)


@pytest.mark.parametrize('name', ['zeropp', 'zbv', '1f1b', 'profiled'])
def test_stages_on_one_rank_train_as_no_pipeline(device, played, name):
    """Clipped; 'profiled' measures its costs on the device after two steps and plans again."""
    folder = played('alone')
    found, wanted = told(folder, name), told(folder, 'one')
    assert found['devices'] == wanted['devices'] == [device.type]
    assert found['losses'] == pytest.approx(wanted['losses'], rel=1e-4)
    assert_same_weights(folder, name)


def test_actions_are_timed_in_order_and_their_memory_counted(device, played):
    """By events of the device on a GPU: F of a micro-batch ends before its backward begins."""
    found = told(played('alone'), 'zeropp')
    assert found['spans'] and all(0 <= start <= end < 60 for _, start, end in found['spans'])
    starts = [start for _, start, _ in found['spans']]
    assert starts == sorted(starts)
    assert len(found['kept']) == found['stages'] == 2 and min(found['kept']) > 0
    assert 1 <= found['peak_in_flight'] <= 8


def test_float16_is_scaled_and_steps_that_overflow_are_left_out(device, played):
    folder = played('narrow')
    one, cut, overflows = (told(folder, name) for name in ('one', 'cut', 'overflows'))
    assert cut['losses'] == pytest.approx(one['losses'], rel=0.1)
    if device.type == 'cuda':  # bfloat16 on a CPU, whose loss has no scale
        assert overflows['skipped'] > 0 and cut['skipped'] == one['skipped']
    state = load_checkpoint(folder / 'overflows' / 'iter_6.pth')['state_dict']
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_two_ranks_on_one_device_train_and_validate_as_one(device, played):
    """Transfers go through the host; streams, events and buffers are those of the device."""
    folder = played('two', world=2)
    one = told(folder, 'one')
    for rank in range(2):
        found = told(folder, 'two', rank)
        assert found['devices'] == [device.type]
        assert found['losses'] == pytest.approx(one['losses'], rel=1e-4)
    assert_same_weights(folder, 'two')
