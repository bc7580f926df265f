"""MMEngine's runner, made exact: interrupted and resumed equals never interrupted, bit for bit."""

from __future__ import annotations

import copy
import json
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from mmengine.dist import get_rank, get_world_size, is_distributed, master_only
from mmengine.logging import HistoryBuffer
from mmengine.model import (
    MMDistributedDataParallel,
    is_model_wrapper,
    revert_sync_batchnorm,
)
from mmengine.registry import DATA_SAMPLERS, DATASETS
from mmengine.runner import CheckpointLoader, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from vision.common.core.errors import VisionError
from vision.common.core.files import remove_unfinished
from vision.common.mm.exact_data import (
    EndlessBatches,
    PlacedSampler,
    SeededDataset,
    SkippableBatches,
    skip_batches,
)
from vision.common.mm.logs import survive_full_disk
from vision.common.nn import checkpoint as io
from vision.registry import RUNNERS
from vision.version import __version__

DEFAULT_SEED = 0


@RUNNERS.register_module()
class ExactRunner(Runner):
    """Runner of this project; everything that MMEngine's runner takes, it takes.

    What it adds: samples and steps are seeded by their place (``exact_data``, ``ExactnessHook``);
    a resumed run begins at the next batch, also inside an epoch; checkpoints are written whole
    and verified (``vision.common.nn.checkpoint``); nothing in a checkpoint is executed; one run
    per work_dir. Without ``randomness.seed`` the seed is 0, so that a run can be repeated.
    """

    def __init__(self, *args, **kwargs) -> None:
        randomness = dict(kwargs.get('randomness') or {})
        randomness.setdefault('seed', DEFAULT_SEED)
        if randomness['seed'] is None:
            randomness['seed'] = DEFAULT_SEED
        kwargs['randomness'] = randomness
        _read_safely_everywhere()
        self._unsaved: VisionError | None = None
        super().__init__(*args, **kwargs)
        survive_full_disk(self.logger)

    @classmethod
    def from_cfg(cls, cfg) -> ExactRunner:
        cfg = copy.deepcopy(cfg)
        cfg['randomness'] = dict(cfg.get('randomness') or {})
        cfg['randomness'].setdefault('seed', DEFAULT_SEED)
        return super().from_cfg(cfg)

    @staticmethod
    def build_dataloader(dataloader: DataLoader | dict, seed: int | None = None,
                         diff_rank_seed: bool = False) -> DataLoader:
        """As MMEngine's; data set, sampler and batch sampler are wrapped by ``exact_data``."""
        if isinstance(dataloader, DataLoader):
            return dataloader
        config = copy.deepcopy(dict(dataloader))
        dataset = config['dataset']
        if isinstance(dataset, dict):
            dataset = DATASETS.build(dataset)
            if hasattr(dataset, 'full_init'):
                dataset.full_init()
        seed = DEFAULT_SEED if seed is None else seed
        sampler = config['sampler']
        if isinstance(sampler, dict):
            sampler = DATA_SAMPLERS.build(sampler, default_args=dict(
                dataset=dataset, seed=None if diff_rank_seed else seed))
        config['sampler'] = PlacedSampler(sampler)
        if isinstance(config.get('batch_sampler'), dict):
            config['batch_sampler'] = SkippableBatches(DATA_SAMPLERS.build(
                config['batch_sampler'], default_args=dict(
                    sampler=config['sampler'], batch_size=config.pop('batch_size'))))
        config['dataset'] = SeededDataset(dataset, seed, get_rank())
        return Runner.build_dataloader(config, seed=seed, diff_rank_seed=diff_rank_seed)

    def build_train_loop(self, loop):
        loop = self._with_data_checked(super().build_train_loop(loop), 'train_dataloader')
        if isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator = EndlessBatches(loop.dataloader)
        return loop

    def build_val_loop(self, loop):
        return self._with_data_checked(super().build_val_loop(loop), 'val_dataloader')

    def build_test_loop(self, loop):
        return self._with_data_checked(super().build_test_loop(loop), 'test_dataloader')

    def _with_data_checked(self, loop, name: str):
        """The loop. A model with ``check_dataset(metainfo, where)`` sees its data set first, and
        may refuse it before the first step."""
        model = self.model.module if is_model_wrapper(self.model) else self.model
        dataloader = getattr(loop, 'dataloader', None)
        metainfo = getattr(getattr(dataloader, 'dataset', None), 'metainfo', None)
        if metainfo is not None and hasattr(model, 'check_dataset'):
            model.check_dataset(metainfo, f'{name}.dataset')
        return loop

    def setup_env(self, env_cfg: dict) -> None:
        """As MMEngine's, which asks for CUDA in every process; here processes also run on CPUs.

        Raises:
            VisionError: VIS-DIST-318, a launcher that only works with GPUs.
        """
        if self.distributed and not is_distributed() and not torch.cuda.is_available():
            if self._launcher != 'pytorch':
                raise VisionError('VIS-DIST-318', f'--launcher {self._launcher} found no GPU',
                                  why='only torchrun starts processes on CPUs',
                                  do='bash tools/dist_train.sh CONFIG NUM_PROCESSES')
            torch.distributed.init_process_group('gloo')
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: torch.nn.Module):
        if self.distributed and model_wrapper_cfg is None and not torch.cuda.is_available():
            # MMEngine names a GPU for each process; without one none may be named. Its other
            # choices are kept; SyncBN has no CPU form.
            return MMDistributedDataParallel(
                module=revert_sync_batchnorm(model), broadcast_buffers=False,
                find_unused_parameters=self.cfg.get('find_unused_parameters', False))
        return super().wrap_model(model_wrapper_cfg, model)

    def train(self):
        """As MMEngine's.

        Raises:
            VisionError: VIS-CKPT-301 at the end, when the last checkpoint found no room.
        """
        with self._only_run_here():
            if self.rank == 0:
                remove_unfinished(Path(self.work_dir))
            model = super().train()
            if self._unsaved is not None:
                raise VisionError(
                    'VIS-CKPT-301', f'the run has ended, but {self._unsaved.what}',
                    where=self._unsaved.where, why=self._unsaved.why,
                    do='make room, then run the same command with --resume: it goes on from the '
                    'last checkpoint that is there')
            return model

    def _only_run_here(self):
        if self.rank != 0:
            return open('/dev/null')
        lock = FileLock(Path(self.work_dir) / '.lock', timeout=0)
        owner = Path(self.work_dir) / '.lock.owner'
        try:
            proxy = lock.acquire()
            owner.write_text(f'process {os.getpid()} on {socket.gethostname()}')
            return proxy
        except Timeout as error:
            holder = owner.read_text() if owner.exists() else 'a process that did not sign'
            raise VisionError('VIS-RUN-307', 'another run is writing into this work_dir',
                              where=f'{self.work_dir}, held by {holder}',
                              why='two runs would overwrite each other',
                              do='wait for it or end it, or give another --work-dir') from error

    def load_or_resume(self) -> None:
        if self._has_loaded:
            return
        if self._resume:
            source = self._load_from or newest_valid(Path(self.work_dir), self.logger.warning)
            if source is None:
                self.logger.info(f'nothing to resume in {self.work_dir}: starting from the '
                                 'beginning')
            else:
                self.resume(str(source))
        elif self._load_from is not None:
            self.load_checkpoint(self._load_from)

    def load_checkpoint(self, filename: str, map_location: str | Callable = 'cpu',
                        strict: bool = True, revise_keys: list | None = None) -> dict[str, Any]:
        """Weights of ``filename`` (path or zoo:NAME) into the model, all of them or an error."""
        from vision.zoo import resolve
        content = io.load_checkpoint(resolve(filename), map_location)
        self.call_hook('after_load_checkpoint', checkpoint=content)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        io.load_model(model, content, where=str(filename))
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return content

    def resume(self, filename: str, resume_optimizer: bool = True,
               resume_param_scheduler: bool = True,
               map_location: str | Callable = 'cpu') -> None:
        """Everything that a step depends on, from a checkpoint of ``save_checkpoint``."""
        content = self.load_checkpoint(filename, map_location=map_location)
        meta = content.get('meta', {})
        if 'optimizer' not in content or 'iter' not in meta:
            raise VisionError('VIS-CKPT-308', f'{filename} holds weights only', where=filename,
                              why='a run is resumed from its optimizer and position too',
                              do='begin a new run from these weights: load_from=' + filename)
        if meta.get('seed') != self.seed:
            raise VisionError('VIS-CONFIG-309', f'this run has seed {self.seed}, the checkpoint '
                              f'{meta.get("seed")}', where='randomness.seed',
                              why='the order of the data would change in the middle of a run',
                              do=f'set randomness.seed={meta.get("seed")}, or begin anew')
        self._require_same_steps(meta.get('steps_of'), filename)
        self.train_loop._epoch, self.train_loop._iter = meta['epoch'], meta['iter']
        self._go_to(meta['epoch'], meta['iter'])
        self.message_hub.load_state_dict(_restored_hub(content['message_hub']))
        if resume_optimizer:
            self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
            self.optim_wrapper.load_state_dict(content['optimizer'])
        if resume_param_scheduler and self.param_schedulers is not None:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
            _load_schedulers(self.param_schedulers, content['param_schedulers'])
        self.logger.info(f'resumed {filename}: epoch {self.epoch}, iteration {self.iter}')

    def _steps_of(self) -> dict[str, int | None]:
        """What makes a step: the position in the data is a number of steps."""
        dataloader = self.train_loop.dataloader
        batches = dataloader.batch_sampler
        size = dataloader.batch_size or getattr(batches, 'batch_size', None)
        return dict(processes=get_world_size(), batch_size=size, samples=len(dataloader.dataset))

    def _require_same_steps(self, before: dict | None, filename: str) -> None:
        """``before``: None in a checkpoint that does not tell, which is then trusted."""
        now = self._steps_of()
        if before is None or before == now:
            return
        if None is not _samples_of_a_step(before) == _samples_of_a_step(now):
            self.logger.warning(
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

    def _go_to(self, epoch: int, iteration: int) -> None:
        """Place the data at the batch that follows; iteration-based loops do it themselves."""
        if isinstance(self.train_loop, EpochBasedTrainLoop):
            dataloader = self.train_loop.dataloader
            skip_batches(dataloader, iteration - epoch * len(dataloader))

    def save_checkpoint(self, *args, **kwargs) -> bool:
        """Write a checkpoint that holds tensors and plain values only; True when it is there.

        Every rank comes here: hooks with a ``gather_checkpoint`` bring together what is spread
        over ranks, then rank 0 writes. A full disk is an error in the log, not the end of the
        run: the next interval tries again.
        """
        self.call_hook('gather_checkpoint')
        return bool(self._write_checkpoint(*args, **kwargs))

    @master_only
    def _write_checkpoint(self, out_dir: str, filename: str, file_client_args: dict | None = None,
                          save_optimizer: bool = True, save_param_scheduler: bool = True,
                          meta: dict | None = None, by_epoch: bool = True,
                          backend_args: dict | None = None) -> bool:
        position = dict(epoch=self.epoch + 1, iter=self.iter) if by_epoch else \
            dict(epoch=self.epoch, iter=self.iter + 1)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        meta = dict(meta or {}, **position, cfg=self.cfg.pretty_text, seed=self.seed,
                    experiment_name=self.experiment_name, version=__version__,
                    steps_of=self._steps_of(),
                    time=time.strftime('%Y%m%d_%H%M%S'))
        if metainfo := getattr(self.train_dataloader.dataset, 'metainfo', None):
            meta['dataset_meta'] = _plain(metainfo)
        content = dict(meta=meta, state_dict=model.state_dict(),
                       message_hub=_stored_hub(self.message_hub.state_dict()))
        if save_optimizer:
            content['optimizer'] = self.optim_wrapper.state_dict()
        if save_param_scheduler and self.param_schedulers is not None:
            content['param_schedulers'] = _scheduler_states(self.param_schedulers)
        self.call_hook('before_save_checkpoint', checkpoint=content)
        try:
            io.save_checkpoint(content, Path(out_dir) / filename, **position)
        except VisionError as error:
            self._unsaved = error
            self.logger.error(f'{error.render()}\nThe run goes on and tries again later.')
            return False
        self._unsaved = None
        return True


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


def _read_safely_everywhere() -> None:
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


def _plain(value: Any) -> Any:
    """Tensors and plain values of a nested structure; anything else as text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    if value is None or isinstance(value, str | int | float | bool | torch.Tensor):
        return value
    return value.item() if getattr(value, 'ndim', None) == 0 else str(value)


def _stored_hub(state: dict) -> dict:
    """The message hub as tensors and plain values; its log buffers are numpy arrays."""
    buffers = {name: dict(values=torch.tensor(buffer.data[0]), counts=torch.tensor(buffer.data[1]),
                          max_length=buffer.max_length)
               for name, buffer in state['log_scalars'].items()}
    return dict(log_scalars=buffers, runtime_info=_plain(state['runtime_info']),
                resumed_keys=dict(state['resumed_keys']))


def _restored_hub(state: dict) -> dict:
    buffers = {name: HistoryBuffer(entry['values'].numpy(), entry['counts'].numpy(),
                                   entry['max_length'])
               if isinstance(entry, dict) else entry
               for name, entry in state['log_scalars'].items()}
    return dict(state, log_scalars=buffers)


def _scheduler_states(schedulers: list | dict) -> list | dict:
    if isinstance(schedulers, dict):
        return {name: _scheduler_states(part) for name, part in schedulers.items()}
    return [_plain(scheduler.state_dict()) for scheduler in schedulers]


def _load_schedulers(schedulers: list | dict, states: list | dict) -> None:
    if isinstance(schedulers, dict):
        for name, part in schedulers.items():
            _load_schedulers(part, states[name])
        return
    for scheduler, state in zip(schedulers, states, strict=True):
        scheduler.load_state_dict(state)


def _samples_of_a_step(steps: dict[str, int | None]) -> tuple[int, int] | None:
    """(samples of a step over all processes, samples of the data set), or None: not known."""
    if not steps.get('batch_size'):
        return None
    return steps['processes'] * steps['batch_size'], steps['samples']
