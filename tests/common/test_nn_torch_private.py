"""What we use of torch without its promise is there, and its absence costs no run."""

import json
import os
import signal
import sys
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from vision.common.core.errors import VisionError
from vision.common.mm.exact_data import dead_workers_explained
from vision.common.nn import torch_private


class Dies(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_this_torch_has_every_name():
    missing = torch_private.missing_names()
    assert not missing, (
        f'torch {torch.__version__} has no {", ".join(missing)}: find what took its place and '
        'change vision/common/nn/torch_private.py; until then faults are told with less')


def test_the_processes_of_the_loader_that_failed_are_found():
    with pytest.raises(RuntimeError) as raised:
        next(iter(DataLoader(Dies(), num_workers=1)))
    (process,) = torch_private.loader_processes(raised.value)
    process.join(5)
    assert process.exitcode == -signal.SIGKILL
    assert signal.getsignal(signal.SIGCHLD) not in (signal.SIG_DFL, None)
    torch_private.forget_dead_loaders()
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    iterator = iter(DataLoader([1], num_workers=1))  # torch sets its handler anew
    assert signal.getsignal(signal.SIGCHLD) != signal.SIG_DFL
    assert next(iterator).item() == 1
    del iterator  # the traceback would keep it, and its process


def test_a_torch_without_them_tells_less_and_runs(monkeypatch):
    for module, name in torch_private.NAMES:
        monkeypatch.delattr(sys.modules[module], name)
    assert torch_private.missing_names() == ['.'.join(name) for name in torch_private.NAMES]
    assert torch_private.flight_record() == {}
    with pytest.raises(VisionError, match='VIS-DATA-330'), dead_workers_explained():
        raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. ')


def test_no_module_of_a_torch_that_moved_them(monkeypatch):
    for module, _ in torch_private.NAMES:
        monkeypatch.setitem(sys.modules, module, None)
    assert len(torch_private.missing_names()) == len(torch_private.NAMES)
    assert torch_private.loader_processes(ValueError()) == []


def test_collectives_of_nccl_come_before_those_of_gloo(monkeypatch):
    """NCCL has a recorder of its own, in CUDA builds; gloo's is empty then."""
    module = sys.modules[torch_private.RECORDER[0]]
    for name, entries in ((torch_private.NCCL_RECORDER, [dict(record_id=1)]),
                          (torch_private.RECORDER, [])):
        monkeypatch.setattr(module, name[1], partial(json.dumps, dict(entries=entries)),
                            raising=False)
    assert torch_private.flight_record()['entries'] == [dict(record_id=1)]
    monkeypatch.setattr(module, torch_private.NCCL_RECORDER[1], lambda: '{}')
    assert torch_private.flight_record() == dict(entries=[])
