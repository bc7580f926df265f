"""What a checkpoint of a run holds, which one a run goes on from, who may write into a folder."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from mmengine.dist import get_world_size
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from vision.common.core.errors import VisionError
from vision.common.nn import checkpoint as io


def only_run_here(work_dir: str | Path, rank: int):
    """Context of a run that alone writes into the folder.

    Raises:
        VisionError: VIS-RUN-307, another process does already.
    """
    if rank != 0:
        return open('/dev/null')
    lock = FileLock(Path(work_dir) / '.lock', timeout=0)
    owner = Path(work_dir) / '.lock.owner'
    try:
        proxy = lock.acquire()
        owner.write_text(f'process {os.getpid()} on {socket.gethostname()}')
        return proxy
    except Timeout as error:
        holder = owner.read_text() if owner.exists() else 'a process that did not sign'
        raise VisionError('VIS-RUN-307', 'another run is writing into this work_dir',
                          where=f'{work_dir}, held by {holder}',
                          why='two runs would overwrite each other',
                          do='wait for it or end it, or give another --work-dir') from error


def newest_valid(work_dir: Path, warn: Callable[[str], None]) -> Path | None:
    """The furthest undamaged checkpoint in a folder; says which ones it passes over and why."""
    def iteration(path: Path) -> tuple[int, float]:
        try:
            position = json.loads(io.manifest_path(path).read_text())['iter']
        except (OSError, ValueError, KeyError, TypeError):
            named = re.search(r'iter_(\d+)', path.name)  # a whole file, killed before its manifest
            position = int(named[1]) if named else -1
        return position, path.stat().st_mtime

    candidates = [path for path in work_dir.glob('*.pth') if not path.name.startswith('best_')]
    for path in sorted(candidates, key=iteration, reverse=True):
        fault = io.damage(path)
        if not fault and not io.manifest_path(path).exists():
            fault = _unreadable(path)  # nothing to compare with: only reading it tells
        if not fault:
            return path
        warn(f'{path.name} is passed over: {fault}')
    return None


def _unreadable(path: Path) -> str:
    try:
        io.load_checkpoint(path)
    except VisionError as error:
        return error.why
    return ''


def read_safely_everywhere() -> None:
    """Let MMEngine's own loading (init_cfg=Pretrained, EMA, ...) go through our reader too."""
    def load_file(filename: str, map_location=None) -> dict:
        from vision.zoo import resolve
        return io.load_checkpoint(resolve(filename), map_location)

    def refuse(filename: str, map_location=None) -> dict:
        raise VisionError('VIS-NET-310', f'weights are not loaded from an address: {filename}',
                          why='such a file would be used without a known hash',
                          do='download it, compare its hash, and give its path; or zoo:NAME')

    CheckpointLoader.register_scheme('', loader=load_file, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://', 'openmmlab://', 'open-mmlab://',
                                      'mmcls://', 'modelzoo://', 'torchvision://'),
                                     loader=refuse, force=True)


def steps_of(runner) -> dict[str, int | None]:
    """What makes a step: the position in the data is a number of steps."""
    dataloader = runner.train_loop.dataloader
    batches = dataloader.batch_sampler
    size = dataloader.batch_size or getattr(batches, 'batch_size', None)
    return dict(processes=get_world_size(), batch_size=size, samples=len(dataloader.dataset))


def require_same_steps(runner, before: dict | None, filename: str) -> None:
    """``before``: None in a checkpoint that does not tell, which is then trusted."""
    now = steps_of(runner)
    if before is None or before == now:
        return
    if None is not _samples_of_a_step(before) == _samples_of_a_step(now):
        runner.logger.warning(
            f'resumed with {now["processes"]} processes instead of {before["processes"]}: '
            'each step has the same samples as before, but augmentation and dropout are '
            'drawn by process, so the run ends as the uninterrupted one only without them')
        return
    changes = [f'{name} {before.get(name)} -> {now[name]}' for name in now
               if before.get(name) != now[name]]
    raise VisionError(
        'VIS-CONFIG-321', f'a step of this run is another one: {", ".join(changes)}',
        where=filename, why='the place in the data is counted in steps of all processes, and '
        'augmentation and dropout are seeded by process: samples would be repeated or left '
        'out, and the run would not end as the uninterrupted one',
        do='resume with the same number of processes, batch_size (of each process) and data '
        f'set; or begin a new run from these weights: load_from={filename}')


def _samples_of_a_step(steps: dict[str, int | None]) -> tuple[int, int] | None:
    """(samples of a step over all processes, samples of the data set), or None: not known."""
    if not steps.get('batch_size'):
        return None
    return steps['processes'] * steps['batch_size'], steps['samples']


def plain(value: Any) -> Any:
    """Tensors and plain values of a nested structure; anything else as text."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    if value is None or isinstance(value, str | int | float | bool | torch.Tensor):
        return value
    return value.item() if getattr(value, 'ndim', None) == 0 else str(value)


def stored_hub(state: dict) -> dict:
    """The message hub as tensors and plain values; its log buffers are numpy arrays."""
    buffers = {name: dict(values=torch.tensor(buffer.data[0]), counts=torch.tensor(buffer.data[1]),
                          max_length=buffer.max_length)
               for name, buffer in state['log_scalars'].items()}
    return dict(log_scalars=buffers, runtime_info=plain(state['runtime_info']),
                resumed_keys=dict(state['resumed_keys']))


def restored_hub(state: dict) -> dict:
    buffers = {name: HistoryBuffer(entry['values'].numpy(), entry['counts'].numpy(),
                                   entry['max_length'])
               if isinstance(entry, dict) else entry
               for name, entry in state['log_scalars'].items()}
    return dict(state, log_scalars=buffers)


def scheduler_states(schedulers: list | dict) -> list | dict:
    if isinstance(schedulers, dict):
        return {name: scheduler_states(part) for name, part in schedulers.items()}
    return [plain(scheduler.state_dict()) for scheduler in schedulers]


def load_schedulers(schedulers: list | dict, states: list | dict) -> None:
    if isinstance(schedulers, dict):
        for name, part in schedulers.items():
            load_schedulers(part, states[name])
        return
    for scheduler, state in zip(schedulers, states, strict=True):
        scheduler.load_state_dict(state)
