"""Part 'training' of pipeline.py: real steps of configs under ZeroPP and under what a user would
take instead, on this machine's processors.

Ranks are forks of this process with one thread each; one process alone has as many threads as
there are ranks. They read data/imagenette160.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from rank_faults import fork_ranks
from rich.progress import track

from vision.common.core.errors import VisionError
from vision.common.mm.flexible import ExactFlexibleRunner
from vision.common.mm.runner import ExactRunner
from vision.common.nn.watchdog import ends_together
from vision.registry import HOOKS, import_rooms

ROOT = Path(__file__).resolve().parents[1]
NUM_RANKS, NUM_STEPS, NUM_WARM, NUM_MICROBATCHES = 2, 9, 4, 4
# Config, samples of a step over all ranks, modules that FSDP2 gathers one at a time.
CONFIGS = (('classify/vit-tiny_imagenette160.py', 64, ['Layer']),
           ('polynet/polynet-small_imagenette160.py', 16, ['PolyInception']))


def methods(wrap: list[str]) -> dict[str, dict[str, Any] | None]:
    def pipeline(**options) -> dict[str, Any]:
        return dict(type='ZeroPPStrategy', pp=NUM_RANKS, num_microbatches=NUM_MICROBATCHES,
                    **options)

    return {'one process': None, 'DDP': dict(type='DDPStrategy'),
            'FSDP2': dict(type='FSDP2Strategy', wrap=wrap),
            '1f1b': pipeline(schedule='1f1b'), 'zbv': pipeline(schedule='zbv'),
            'zeropp': pipeline(schedule='zeropp'), 'auto': pipeline()}


def training() -> list[dict[str, Any]]:
    """A row for each config and method."""
    if not (ROOT / 'data/imagenette160/train').is_dir():
        raise VisionError('VIS-DATA-1502', 'data/imagenette160 is not there',
                          where=str(ROOT / 'data'), do='datasets/README.md says where it is from')
    import_rooms()
    tasks = [(config, size, name, strategy) for config, size, wrap in CONFIGS
             for name, strategy in methods(wrap).items()]
    return [row(*task) for task in track(tasks, 'training')]


def row(config: str, size: int, method: str, strategy: dict | None) -> dict[str, Any]:
    num_ranks = 1 if strategy is None else NUM_RANKS
    with tempfile.TemporaryDirectory() as folder:
        ended = fork_ranks(steps, num_ranks, config, size, strategy, Path(folder), wait_s=600)
        for end in ended:
            assert end.code == 0, end.text[-3000:]
        ranks = [json.loads((Path(folder) / f'{rank}.json').read_text())
                 for rank in range(num_ranks)]
    slowest = [max(times) for times in zip(*(rank['steps_s'] for rank in ranks), strict=True)]
    return dict(setting=f'{config}, {size} samples a step', method=method, ranks=num_ranks,
                step_ms=round(1e3 * statistics.median(slowest)),
                least_ms=round(1e3 * min(slowest)), most_ms=round(1e3 * max(slowest)),
                parameters_mb=round(max(rank['parameters_mb'] for rank in ranks), 1),
                resident_mb=round(max(rank['resident_mb'] for rank in ranks)),
                ran=ranks[0]['ran'])


def steps(name: str, size: int, strategy: dict | None, folder: Path) -> None:
    """What a rank does."""
    torch.set_num_threads(1 if strategy else NUM_RANKS)
    config = Config.fromfile(ROOT / 'configs' / name)
    is_pipeline = strategy is not None and strategy['type'] == 'ZeroPPStrategy'
    config.train_dataloader.update(
        batch_size=size if strategy is None or is_pipeline else size // NUM_RANKS, num_workers=0,
        persistent_workers=False)
    config.train_dataloader.dataset.data_root = str(ROOT / 'data/imagenette160')
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=NUM_STEPS, val_interval=10**6)
    for key in ('val', 'test'):
        for part in ('dataloader', 'evaluator', 'cfg'):
            config.pop(f'{key}_{part}', None)
    config.param_scheduler = None
    config.default_hooks.checkpoint = dict(
        type='CheckpointHook', by_epoch=False, interval=10**6, save_last=False)
    config.update(work_dir=str(folder / 'run'), log_level='ERROR', custom_hooks=[
        dict(type='StepTimes')])
    if strategy is not None:
        config.update(strategy=strategy, launcher='pytorch',
                      env_cfg=dict(dist_cfg=dict(backend='gloo')))
    before = status_mb('VmRSS')
    with ends_together(300), mock.patch('mmengine._strategy.base.collect_env', dict):
        kind = ExactRunner if strategy is None else ExactFlexibleRunner
        runner = kind.from_cfg(config)
        runner.train()
    times = next(hook for hook in runner.hooks if isinstance(hook, StepTimes))
    local = [getattr(parameter, '_local_tensor', parameter)
             for parameter in runner.model.parameters()]
    (folder / f'{os.environ["RANK"]}.json').write_text(json.dumps(dict(
        steps_s=times.seconds[NUM_WARM:], resident_mb=status_mb('VmHWM') - before,
        parameters_mb=sum(p.numel() * p.element_size() for p in local) / 1e6,
        ran=told(runner.model.table) if is_pipeline else None)))


def told(table) -> str:
    return table.name if table.unit is None else f'{table.name} U={table.unit}'


@HOOKS.register_module()
class StepTimes(Hook):
    """Of forward, backward and optimizer, without the data."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter and torch.distributed.is_initialized():
            torch.distributed.barrier()  # a rank that loads longer is no part of the step
        self.start = time.perf_counter()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def status_mb(key: str) -> float:
    """VmRSS or VmHWM of this process."""
    text = Path('/proc/self/status').read_text()
    return int(text.partition(f'{key}:')[2].split()[0]) / 1e3
