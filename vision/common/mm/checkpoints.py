"""What a checkpoint of a run holds, which one a run goes on from, who may write into a folder."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from mmengine.dist import all_gather_object, get_comm_device, get_rank, get_world_size
from mmengine.dist import gather as _gather
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapperDict
from mmengine.runner import CheckpointLoader

from vision.common.core.config_changes import as_json, changes
from vision.common.core.errors import VisionError
from vision.common.core.files import TEMPORARY, sha256_of
from vision.common.core.references import find_file
from vision.common.mm.agreement import decided_by_first, one_for_all
from vision.common.nn import checkpoint as io
from vision.version import __version__

WEIGHTS_ONLY = 'it holds weights only (save_optimizer or save_param_scheduler was False)'


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


def checkpoint_folders(runner) -> list[Path]:
    """Where the run's checkpoints may lie; the last one is where they are written."""
    folders = [Path(runner.work_dir), *(hook.folder(runner) for hook in runner.hooks
                                        if hasattr(hook, 'folder'))]
    return list(dict.fromkeys(folders))


def newest_valid(folders: Path | Iterable[Path], warn: Callable[[str], None]) -> Path | None:
    """The furthest checkpoint of the folders from which a run can go on; None where no run has
    saved one. Says which ones it passes over and why.

    Raises:
        VisionError: VIS-CKPT-326, there are checkpoints of a run, and none can be used.
    """
    folders = [folders] if isinstance(folders, Path) else list(folders)
    claims = [(_claimed_place(path), path) for path in _candidates(folders)]
    faults = []
    while claims:
        claims.sort()
        claimed, path = claims.pop()
        entry = io.manifest_entry(path)
        if entry is not None and (place := _place(entry, path)) < claimed:
            claims.append((place, path))  # killed before the newer file took the older one's name
            continue
        if not (fault := _hindrance(path, entry)):
            return path
        warn(f'{path.name} is passed over: {fault}')
        if io.manifest_path(path).exists() or _NAMED.fullmatch(path.name):
            faults.append(f'{path.name}: {fault}')
    if faults:
        raise VisionError(
            'VIS-CKPT-326', f'a run has saved {len(faults)} checkpoints here, and it cannot go on '
            'from any of them', where=', '.join(map(str, folders)), why='; '.join(faults[:5]),
            do='bring back a whole checkpoint; or begin anew: without --resume, in another '
            '--work-dir')
    return None


def chosen_checkpoint(runner) -> Path | None:
    """What rank 0 finds in the run's folders, as a path of this rank: a machine may have its
    work_dir elsewhere."""
    folders = checkpoint_folders(runner)

    def choose() -> tuple[int, str] | None:
        path = newest_valid(folders, runner.logger.warning)
        return path and (folders.index(path.parent), path.name)

    chosen = decided_by_first(choose)
    return chosen and folders[chosen[0]] / chosen[1]


_NAMED = re.compile(r'(?:interrupted_)?(iter|epoch)_(\d+)\.pth')


def _candidates(folders: Iterable[Path]) -> Iterator[Path]:
    """Checkpoints in the folders; no link (it is another one's second name, or leads nowhere)."""
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name.startswith(('best_', TEMPORARY)) or path.is_symlink():
                continue
            if path.is_file() and (path.suffix == '.pth' or io.manifest_path(path).exists()) or \
                    path.is_dir() and path.suffix == '.pth':
                yield path


def _place(entry: dict, path: Path) -> tuple[int, int, float]:
    """How far a checkpoint is, to be compared: step, epoch, time of writing."""
    named = _NAMED.fullmatch(path.name)
    by_name = {named[1]: int(named[2])} if named else {}
    try:
        step, epoch = (int(entry.get(key, by_name.get(key, -1))) for key in ('iter', 'epoch'))
    except (TypeError, ValueError):
        step, epoch = -1, -1
    return step, epoch, path.stat().st_mtime


def _claimed_place(path: Path) -> tuple[int, int, float]:
    """The place that the newest entry of the manifest claims, not yet compared with the file."""
    try:
        entry = dict(json.loads(io.manifest_path(path).read_bytes()))
    except (OSError, ValueError, TypeError):
        entry = {}  # a file of others, or a whole one that was killed before its manifest
    return _place(entry, path)


def _hindrance(path: Path, entry: dict | None) -> str:
    """What speaks against going on from this file, '' if nothing does."""
    if entry is not None:
        return '' if entry.get('is_resumable', True) else WEIGHTS_ONLY
    if fault := io.damage(path):
        return fault
    try:  # nothing to compare with: only reading it tells
        content = io.load_checkpoint(path)
    except VisionError as error:
        return error.why
    return '' if 'optimizer' in content else WEIGHTS_ONLY


def require_same_file(path: Path) -> None:
    """After rank 0 chose: every rank must have this very file (call it on every rank).

    Raises:
        VisionError: VIS-DIST-325 on every rank, with the first that has not.
    """
    if get_world_size() == 1:
        return

    def digest() -> str | None:
        file = io.manifest_path(path) if path.is_dir() else path
        return sha256_of(file) if file.is_file() else None

    expected = decided_by_first(digest)
    if expected is None:  # loading it says so, on every rank
        return
    with one_for_all():
        found = digest()
        if found != expected:
            raise VisionError(
                'VIS-DIST-325', f'rank {get_rank()} has {"another" if found else "no"} '
                f'{path.name}', where=f'{socket.gethostname()}:{path.parent}',
                why='all ranks go on from the file that rank 0 chose', do='put the work_dir on a '
                'folder that all machines share, or copy this file to each of them')


def read_safely_everywhere() -> None:
    """Let MMEngine's own loading (init_cfg=Pretrained, EMA, ...) go through our reader too.
    Loading from an address is refused then (VIS-NET-310)."""
    def load_file(filename: str, map_location=None) -> dict:
        return io.load_checkpoint(find_file(filename), map_location)

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
    processes = runner.data_ranks[1] if runner.data_ranks else get_world_size()
    return dict(processes=processes, batch_size=size, samples=len(dataloader.dataset))


def require_same_steps(runner, before: dict | None, filename: str) -> None:
    """Refuse to resume where a step would take other samples than before; processes that together
    take the same ones get a warning.

    Args:
        before: what ``steps_of`` gave then; None in a checkpoint that does not tell, which is
            trusted.

    Raises:
        VisionError: VIS-CONFIG-321, with what has changed.
    """
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
    """The message hub's state as MMEngine has it, from what ``stored_hub`` gave."""
    buffers = {name: HistoryBuffer(entry['values'].numpy(), entry['counts'].numpy(),
                                   entry['max_length'])
               if isinstance(entry, dict) else entry
               for name, entry in state['log_scalars'].items()}
    return dict(state, log_scalars=buffers)


def scheduler_states(schedulers: list | dict) -> list | dict:
    """Plain values of schedulers, in a list or by optimizer name, as they came."""
    if isinstance(schedulers, dict):
        return {name: scheduler_states(part) for name, part in schedulers.items()}
    return [plain(scheduler.state_dict()) for scheduler in schedulers]


def load_schedulers(schedulers: list | dict, states: list | dict) -> None:
    """Give each scheduler its state from what ``scheduler_states`` gave of as many."""
    if isinstance(schedulers, dict):
        for name, part in schedulers.items():
            load_schedulers(part, states[name])
        return
    for scheduler, state in zip(schedulers, states, strict=True):
        scheduler.load_state_dict(state)


def require_resumable(runner, content: dict, filename: str) -> None:
    """Refuse what a run cannot go on from exactly; print what has changed in the config.

    Raises:
        VisionError: VIS-CKPT-308 weights only, VIS-CONFIG-309 another seed, VIS-CONFIG-329
            another optimizer or schedule, VIS-CONFIG-321 other steps.
    """
    meta = content.get('meta', {})
    missing = [name for name in ('optimizer', 'param_schedulers') if name not in content and (
        name == 'optimizer' or runner.param_schedulers is not None)]
    if missing or 'iter' not in meta:
        raise VisionError('VIS-CKPT-308', f'{filename} does not hold all of a run: '
                          f'{" and ".join(missing) or "its position"} is missing',
                          where=filename, why='a run is resumed from its optimizer, schedule and '
                          'position too (save_optimizer and save_param_scheduler of '
                          'CheckpointHook)',
                          do='begin a new run from these weights: load_from=' + filename)
    if meta.get('seed') != runner.base_seed:
        raise VisionError('VIS-CONFIG-309', f'this run has seed {runner.base_seed}, the '
                          f'checkpoint {meta.get("seed")}', where='randomness.seed',
                          why='the order of the data would change in the middle of a run',
                          do=f'set randomness.seed={meta.get("seed")}, or begin anew')
    now = kinds_of(runner)
    for name, before in (meta.get('kinds') or {}).items():
        if before != now[name]:
            raise VisionError('VIS-CONFIG-329', f'the run had {name} {before}, this config has '
                              f'{now[name]}', where=filename, why='the state of one means nothing '
                              'to the other', do='go on with the same, or begin a new run from '
                              f'these weights: load_from={filename}')
    require_same_steps(runner, meta.get('steps_of'), filename)
    _tell_changes(runner, meta.get('config'))


def _tell_changes(runner, config: Any) -> None:
    """``config``: JSON; older checkpoints and those of others hold Python alone, not read."""
    try:
        lines = changes(dict(json.loads(config)), runner.cfg.to_dict())
    except (TypeError, ValueError):
        return
    if lines:
        runner.logger.warning('the config has changed since this checkpoint was written:\n  '
                              + '\n  '.join(lines))


def kinds_of(runner) -> dict[str, list[str]]:
    """Class names of optimizers and schedulers."""
    optimizers = [type(part.optimizer).__name__ for part in _parts(runner.optim_wrapper)]
    return dict(optimizer=optimizers, schedulers=_scheduler_kinds(runner.param_schedulers or []))


def _scheduler_kinds(schedulers: list | dict) -> list[str]:
    if isinstance(schedulers, dict):
        return [f'{name} {kind}' for name, part in sorted(schedulers.items())
                for kind in _scheduler_kinds(part)]
    return [type(scheduler).__name__ for scheduler in schedulers]


def meta_of(runner, position: dict[str, int]) -> dict[str, Any]:
    """What a checkpoint tells of its run beside tensors. Nothing of it is ever executed."""
    meta = dict(position, cfg=runner.config_text, config=as_json(runner.cfg.to_dict()),
                seed=runner.base_seed, experiment_name=runner.experiment_name,
                version=__version__, steps_of=steps_of(runner), kinds=kinds_of(runner),
                time=time.strftime('%Y%m%d_%H%M%S'))
    if metainfo := getattr(runner.train_dataloader.dataset, 'metainfo', None):
        meta['dataset_meta'] = plain(metainfo)
    return meta


def gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    """A tensor of any shape from each rank, on rank 0; MMEngine's does not bring a GPU's to where
    gloo takes it."""
    return _gather(tensor.contiguous().to(get_comm_device()))


def gathered_gradients(wrapper) -> list[list[torch.Tensor | None]]:
    """Gradients that wait for their step (``accumulative_counts``), of each rank, on rank 0, in
    host memory; [] when none wait. Each has the shape of its parameter, None where there is none.
    Call it on every rank."""
    if all(part.should_update() for part in _parts(wrapper)):
        return []
    own = [parameter.grad for parameter in parameters_of(wrapper)]
    if get_world_size() == 1:
        return [[gradient if gradient is None else gradient.cpu() for gradient in own]]
    has_any = all_gather_object([gradient is not None for gradient in own])
    ranks: list[list[torch.Tensor | None]] = [[] for _ in has_any]
    for i, (parameter, gradient) in enumerate(zip(parameters_of(wrapper), own, strict=True)):
        flags = [flags[i] for flags in has_any]
        # One after the other: the device holds one tensor of each rank at a time.
        parts = any(flags) and gather(
            torch.zeros_like(parameter) if gradient is None else gradient)
        for rank, flag in enumerate(flags):
            ranks[rank].append(parts[rank].cpu() if flag and parts else None)
    return ranks if get_rank() == 0 else []


def gathered_buffers(model: torch.nn.Module) -> list[dict[str, torch.Tensor]]:
    """Of each rank, on rank 0: its buffers that differ from those of rank 0, as BatchNorm's
    averages do, which each rank takes over its own samples. Names and shapes are the model's. Call
    it on every rank."""
    if get_world_size() == 1:
        return []
    ranks: list[dict[str, torch.Tensor]] = [{} for _ in range(get_world_size())]
    for name, buffer in model.named_buffers():
        parts = gather(buffer)
        for rank, part in enumerate(parts):
            if not torch.equal(part, parts[0]):
                ranks[rank][name] = part.cpu()
    return ranks


def gathered_kept(hooks) -> list[list[torch.Tensor]]:
    """Of each rank, on rank 0: the buffers (of any shape) that ``NonFiniteHook`` would put back,
    where a step has begun (``accumulative_counts``); else []. Call it on every rank."""
    kept = next((hook.kept for hook in hooks if hasattr(hook, 'kept')), [])
    if get_world_size() == 1:
        return [[buffer.cpu() for buffer in kept]]
    ranks: list[list[torch.Tensor]] = [[] for _ in range(get_world_size())]
    for buffer in kept:
        for rank, part in enumerate(gather(buffer)):
            ranks[rank].append(part.cpu())
    return ranks if get_rank() == 0 else []


def restore_kept(hooks, model: torch.nn.Module, ranks: list[list[torch.Tensor]]) -> None:
    """What ``gathered_kept`` gave, tensors of any shape, to the hook of this rank; with another
    number of ranks rank 0's are everybody's."""
    if ranks:
        own = ranks[get_rank() if len(ranks) == get_world_size() else 0]
        for hook in hooks:
            if hasattr(hook, 'kept'):
                hook.kept = [value.to(buffer.device) for value, buffer in
                             zip(own, model.buffers(), strict=False)]


def restore_buffers(model: torch.nn.Module, ranks: list[dict[str, torch.Tensor]]) -> None:
    """Copy what ``gathered_buffers`` gave into the model's buffers of the same names and shapes;
    with another number of ranks rank 0's are everybody's."""
    if len(ranks) == get_world_size():
        own = dict(model.named_buffers())
        with torch.no_grad():
            for name, value in ranks[get_rank()].items():
                own[name].copy_(value)


def load_optimizer(wrapper, state: dict, filename: str) -> None:
    """Raises VIS-CONFIG-348 when the state is of other parameters."""
    try:
        wrapper.load_state_dict(state)
    except (ValueError, KeyError) as error:
        raise other_parameters(filename, str(error)) from error


def other_parameters(filename: str, why: str) -> VisionError:
    """VIS-CONFIG-348: the state of an optimizer that is of other parameters."""
    return VisionError('VIS-CONFIG-348', 'the optimizer of the checkpoint steps other parameters',
                       where=filename, why=why, do='give the parameter groups of that run, or '
                       f'begin a new one: load_from={filename}')


def restore_gradients(wrapper, ranks: list[list[torch.Tensor | None]]) -> None:
    """What ``gathered_gradients`` gave, to the parameters of this rank, whose shapes they have.

    Raises:
        VisionError: VIS-CONFIG-347, other ranks accumulated them.
    """
    if not ranks:
        return
    if len(ranks) != get_world_size():
        raise VisionError('VIS-CONFIG-347', f'gradients of {len(ranks)} processes wait for their '
                          f'step, there are {get_world_size()}', where='accumulative_counts',
                          why='each process goes on with the sum that it had',
                          do=f'resume with {len(ranks)} processes, or from a checkpoint at a '
                          'multiple of accumulative_counts')
    for parameter, gradient in zip(parameters_of(wrapper), ranks[get_rank()], strict=True):
        parameter.grad = None if gradient is None else gradient.to(parameter)


def parameters_of(wrapper) -> list[torch.Tensor]:
    """Parameters of any shape, by optimizer and group, in their order."""
    return [p for part in _parts(wrapper) for group in part.optimizer.param_groups
            for p in group['params']]


def _parts(wrapper) -> list:
    """The optimizer wrappers of a run: one, or several by name."""
    return list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]
