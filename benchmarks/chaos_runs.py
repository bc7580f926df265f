"""Runs that are interrupted at any moment, and resumed: a scenario of ``chaos.py``."""

from __future__ import annotations

import gc
import os
import random
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import mmengine.runner.runner
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from vision.common.mm.runner import ExactRunner
from vision.common.nn.checkpoint import load_checkpoint
from vision.registry import DATASETS, HOOKS, MODELS, import_rooms

NUM_STEPS, INTERVAL = 40, 15
NUM_HITS = {signal.SIGKILL: 50, signal.SIGTERM: 25, signal.SIGINT: 25}


@DATASETS.register_module()
class ChaosPoints(BaseDataset):
    """Numbers with noise that is drawn for each sample when it is loaded."""

    METAINFO = dict(classes=('a',))

    def load_data_list(self) -> list[dict]:
        # One end of an epoch in a run: MMEngine's own iterator sleeps two seconds at each.
        return [dict(number=i) for i in range(100)]

    def prepare_data(self, idx: int) -> dict:
        x = torch.full((8,), idx / 100) + torch.randn(8) + random.gauss(0, 1) + np.random.normal()
        return dict(inputs=x, data_samples=float(idx % 3))


@MODELS.register_module()
class ChaosModel(BaseModel):
    """A small network with BatchNorm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3),
                                 nn.Linear(32, 1))

    def forward(self, inputs, data_samples=None, mode: str = 'loss') -> dict:
        x, target = torch.stack(list(inputs)), torch.tensor(data_samples)
        return dict(loss=(self.net(x)[:, 0] - target.to(x)).square().mean())


@HOOKS.register_module()
class TellSteps(Hook):
    """Says that a step was made, and makes it long enough to be hit."""

    priority = 'VERY_LOW'

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.pipe:
            os.write(self.pipe, b'.')
        time.sleep(0.002)


def runs(scale: float, generator: random.Random) -> Iterable[dict]:
    """50 random moments for SIGKILL, 50 for SIGTERM and Ctrl-C; a fifth for MMEngine's runner.

    ``lost``: resumed runs that ended with other weights; for SIGTERM and Ctrl-C also those that
    did not end in 30 s, or whose finished steps were not saved.
    """
    import matplotlib.backends.backend_agg  # noqa: F401  children need not import it again
    import_rooms()
    torch.optim.Adam([nn.Parameter(torch.zeros(1))])  # imports a second's worth too
    gc.freeze()  # children would look through all of it for each data set
    mmengine.runner.runner.collect_env = dict  # two seconds of asking compilers, at every start
    for subject, cls, share in (('run', ExactRunner, 1), ('MMEngine', Runner, 0.2)):
        with tempfile.TemporaryDirectory() as folder:
            straight = Path(folder) / 'straight'
            os.waitpid(in_child(cls, straight), 0)
            for number, num_hits in NUM_HITS.items():
                counts = dict(tried=0, lost=0, other_weights=0, steps_lost=0, late=0)
                for i in range(max(1, round(num_hits * share * scale))):
                    hit(cls, Path(folder) / f'{number}-{i}', straight, number,
                        generator.randrange(1, NUM_STEPS), generator.uniform(0, 0.01), counts)
                yield dict(subject=subject, signal=number.name, **counts)


def hit(cls: type, work_dir: Path, straight: Path, number: int, step: int, wait_seconds: float,
        counts: dict[str, int]) -> None:
    """A signal so long after this step: while the next one runs, or a checkpoint is written."""
    reader, writer = os.pipe()
    child = in_child(cls, work_dir, pipe=writer)
    os.close(writer)
    num_made = sum(len(os.read(reader, 1)) for _ in range(step))
    assert num_made == step, 'the run ended by itself'
    time.sleep(wait_seconds)
    os.kill(child, number)
    start = time.perf_counter()
    os.waitpid(child, 0)
    is_late = time.perf_counter() - start > 30
    with os.fdopen(reader, 'rb') as pipe:
        num_made += len(pipe.read())
    num_saved = max((int(found[1]) for path in work_dir.glob('*.pth')
                     if (found := re.search(r'iter_(\d+)', path.name))), default=0)
    os.waitpid(in_child(cls, work_dir, resume=True), 0)
    try:
        is_other = weights(work_dir) != weights(straight)
    except (OSError, ValueError, RuntimeError):
        is_other = True
    is_unsaved = number != signal.SIGKILL and num_saved < num_made
    counts['tried'] += 1
    counts['other_weights'] += is_other
    counts['steps_lost'] += max(0, num_made - num_saved)
    counts['late'] += is_late
    counts['lost'] += is_other or is_late or is_unsaved
    shutil.rmtree(work_dir, ignore_errors=True)


def in_child(cls: type, work_dir: Path, *, resume: bool = False, pipe: int = 0) -> int:
    """Number of a process that trains."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        cls.from_cfg(run_config(work_dir, resume, pipe)).train()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def run_config(work_dir: Path, resume: bool, pipe: int) -> Config:
    return Config(dict(
        # The scope decides whose hooks the names mean; ours comes to the same in each.
        default_scope='mmengine', work_dir=str(work_dir), model=dict(type='vision.ChaosModel'),
        train_dataloader=dict(batch_size=5, num_workers=0,
                              dataset=dict(type='vision.ChaosPoints'),
                              sampler=dict(type='DefaultSampler', shuffle=True)),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=NUM_STEPS, val_interval=1000),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.01)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False,
                                           interval=INTERVAL)),
        custom_hooks=[dict(type='vision.TellSteps', pipe=pipe)], randomness=dict(seed=0),
        resume=resume, log_level='ERROR', experiment_name=work_dir.name))


def weights(work_dir: Path) -> list:
    state = load_checkpoint(work_dir / f'iter_{NUM_STEPS}.pth')['state_dict']
    return [(name, value.tolist()) for name, value in sorted(state.items())]
