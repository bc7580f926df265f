"""MMEngine's runner, made exact: interrupted and resumed equals never interrupted, bit for bit."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size, is_distributed
from mmengine.model import (
    MMDistributedDataParallel,
    is_model_wrapper,
    revert_sync_batchnorm,
)
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from vision.common.core.errors import VisionError
from vision.common.core.files import remove_unfinished
from vision.common.core.references import find_file
from vision.common.mm.agreement import decided_by_first, join_ranks, one_for_all
from vision.common.mm.checkpoints import (
    checkpoint_folders,
    chosen_checkpoint,
    gathered_buffers,
    gathered_gradients,
    gathered_kept,
    load_optimizer,
    load_schedulers,
    meta_of,
    only_run_here,
    read_safely_everywhere,
    require_resumable,
    require_same_file,
    restore_buffers,
    restore_gradients,
    restore_kept,
    restored_hub,
    scheduler_states,
    stored_hub,
)
from vision.common.mm.classes import require_head_classes
from vision.common.mm.exact_data import (
    DEFAULT_SEED,
    EndlessBatches,
    build_dataloader,
    dead_workers_explained,
    go_to,
)
from vision.common.mm.hooks import complete_hooks, default_hooks_of_ours, of_ours
from vision.common.mm.logs import survive_full_disk
from vision.common.mm.safe_files import read_plain_files_everywhere
from vision.common.mm.start import TOLD, shorten_start
from vision.common.nn import checkpoint as io
from vision.common.nn.checkpoint_folder import recover_folders, save_folder
from vision.common.nn.torch_private import end_loader_processes
from vision.registry import RUNNERS


class ExactRuns:
    """What both runners of this project add to those of MMEngine.

    Samples and steps are seeded by their place (``exact_data``, ``ExactnessHook``); a resumed run
    begins at the next batch, also inside an epoch; checkpoints are written whole and verified
    (``vision.common.nn.checkpoint``); nothing in a checkpoint is executed; one run per work_dir.
    Without ``randomness.seed`` the seed is 0, so that a run can be repeated.

    A checkpoint is a file that rank 0 writes; where ranks hold something that the others do not
    (sharded parameters, class rows), it is a folder that all write
    (``vision.common.nn.checkpoint_folder``). A hook with ``checkpoint_part(runner)``, called on
    every rank, gives such a part and its name, or None.
    """

    is_exact = True
    is_sharded = False  # do the ranks hold different parts of the parameters?
    data_ranks: tuple[int, int] | None = None  # (i, n): share of the data; None: as the ranks

    def __init__(self, *args, **kwargs) -> None:
        kwargs['randomness'] = _seeded(kwargs.get('randomness'))
        read_safely_everywhere()
        read_plain_files_everywhere()
        self._unsaved: VisionError | None = None
        super().__init__(*args, **kwargs)
        self.config_text = self.cfg.pretty_text  # a tenth of a second, so not at every save
        survive_full_disk(self.logger)

    def build_logger(self, *args, **kwargs):
        """As MMEngine's; its console is short until the first step (``mm.start``)."""
        logger = super().build_logger(*args, **kwargs)
        shorten_start(logger)
        return logger

    @classmethod
    def from_cfg(cls, cfg):
        """As MMEngine's, with seed 0 where the config names none."""
        cfg = copy.deepcopy(cfg)
        cfg['randomness'] = _seeded(cfg.get('randomness'))
        return super().from_cfg(cfg)

    def register_hooks(self, default_hooks: dict | None = None,
                       custom_hooks: list | None = None) -> None:
        """As MMEngine's, then those of ``REQUIRED_HOOKS`` that the config does not name."""
        super().register_hooks(default_hooks_of_ours(default_hooks), custom_hooks)
        complete_hooks(self)

    @staticmethod
    def build_dataloader(dataloader: DataLoader | dict, seed: int | None = None,
                         diff_rank_seed: bool = False) -> DataLoader:
        """As MMEngine's; samples are seeded by their place (``exact_data.build_dataloader``)."""
        return build_dataloader(dataloader, seed, diff_rank_seed)

    def build_train_loop(self, loop):
        """As MMEngine's, and it can begin inside an epoch. The model sees the data set first and
        may refuse it (``check_dataset``)."""
        if isinstance(self._train_dataloader, DataLoader):  # a loop takes it as it is
            self._train_dataloader = build_dataloader(
                self._train_dataloader, self.seed, self._randomness_cfg.get('diff_rank_seed',
                                                                            False))
        loop = self._with_data_checked(super().build_train_loop(loop), 'train_dataloader')
        if isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator = EndlessBatches(loop.dataloader)
            loop.fast_forward_on_resume = False  # it leaves the place, to save a cost we have not
        return loop

    def build_val_loop(self, loop):
        """As MMEngine's. The model sees the data set first and may refuse it
        (``check_dataset``)."""
        return self._with_data_checked(super().build_val_loop(loop), 'val_dataloader')

    def build_test_loop(self, loop):
        """As MMEngine's. The model sees the data set first and may refuse it
        (``check_dataset``)."""
        return self._with_data_checked(super().build_test_loop(loop), 'test_dataloader')

    def _with_data_checked(self, loop, name: str):
        """The loop. A model with ``check_dataset(metainfo, where)`` sees its data set first, and
        may refuse it before the first step; so does a strategy with ``see_data(dataloader)``. Of
        other models, detectors of mmdet, the heads are compared.

        Raises:
            VisionError: VIS-CONFIG-1810, a training set that gives no batch.
        """
        model = self._bare_model()
        dataloader = getattr(loop, 'dataloader', None)
        if hasattr(getattr(self, 'strategy', None), 'see_data'):
            self.strategy.see_data(dataloader)
        metainfo = getattr(getattr(dataloader, 'dataset', None), 'metainfo', None)
        if metainfo is not None:
            if hasattr(model, 'check_dataset'):
                model.check_dataset(metainfo, f'{name}.dataset')
            elif isinstance(model, torch.nn.Module):  # of a FlexibleRunner it is a config here
                require_head_classes(model, metainfo, f'{name}.dataset')
        if name == 'train_dataloader' and isinstance(dataloader, DataLoader) \
                and not _has_batch(dataloader):
            raise VisionError('VIS-CONFIG-1810', f'{len(dataloader.dataset)} samples give no '
                              'batch', where=name, why='drop_last leaves out a batch that is not '
                              'full', do='lower batch_size, or set drop_last=False')
        return loop

    def _bare_model(self) -> torch.nn.Module:
        return self.model.module if is_model_wrapper(self.model) else self.model

    def train(self):
        """As MMEngine's.

        Raises:
            VisionError: VIS-CKPT-335 at the end, when the last checkpoint found no room;
                VIS-DATA-330, a process of the data loader was killed.
        """
        with ExitStack() as stack:
            with one_for_all():
                stack.enter_context(only_run_here(self.work_dir, self.rank))
                if self.rank == 0:
                    for folder in checkpoint_folders(self):
                        recover_folders(folder)
                        remove_unfinished(folder)
            stack.callback(self._end_loaders)
            stack.callback(self._close_hooks)
            stack.enter_context(dead_workers_explained())
            model = super().train()
        if self._unsaved is not None:
            raise VisionError(
                'VIS-CKPT-335', f'the run has ended, but {self._unsaved.what}',
                where=self._unsaved.where, why=self._unsaved.why,
                do='make room, then run the same command with --resume: it goes on from the '
                'last checkpoint that is there')
        return model

    def _close_hooks(self) -> None:
        """``close_run(runner)`` of each hook that has one, however the run ended."""
        for hook in self.hooks:
            if hasattr(hook, 'close_run'):
                hook.close_run(self)

    def _end_loaders(self) -> None:
        for loop in (self._train_loop, self._val_loop, self._test_loop):
            end_loader_processes(getattr(loop, 'dataloader', None))

    def load_or_resume(self) -> None:
        """As MMEngine's; rank 0 chooses the checkpoint, and all go on from it or none does."""
        if self._has_loaded:
            return
        source = self._load_from
        if self._resume and source is None:
            source = chosen_checkpoint(self)
            if source is None:
                self.logger.info(f'nothing to resume in {self.work_dir}: starting from the '
                                 'beginning', extra=TOLD)
        if source is None:
            return
        if self._resume or Path(source).is_dir():
            require_same_file(find_file(source))
        with one_for_all():
            if self._resume:
                self.resume(str(source))
            else:
                self.load_checkpoint(source)

    def load_checkpoint(self, filename: str, map_location: str | Callable = 'cpu',
                        strict: bool = True, revise_keys: list | None = None) -> dict[str, Any]:
        """Weights of ``filename`` (path or zoo:NAME) into the model, all of them or an error."""
        content = self.read_checkpoint(find_file(filename), map_location)
        self.call_hook('after_load_checkpoint', checkpoint=content)
        io.load_model(self._bare_model(), content, where=str(filename))
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}', extra=TOLD)
        return content

    def read_checkpoint(self, path: Path, map_location: str | Callable = 'cpu') -> dict[str, Any]:
        """Content of a file, verified; nothing in it is executed."""
        return io.load_checkpoint(path, map_location)

    def resume(self, filename: str, resume_optimizer: bool = True,
               resume_param_scheduler: bool = True,
               map_location: str | Callable = 'cpu') -> None:
        """Everything that a step depends on, from a checkpoint of ``save_checkpoint``."""
        self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        if self.param_schedulers is not None:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        content = self.load_checkpoint(filename, map_location=map_location)
        require_resumable(self, content, filename)
        meta = content['meta']
        self.train_loop._epoch, self.train_loop._iter = meta['epoch'], meta['iter']
        go_to(self.train_loop, meta['epoch'], meta['iter'])
        self.restore_buffers(content)
        self.message_hub.load_state_dict(restored_hub(content['message_hub']))
        if resume_optimizer:
            self.load_optimizer(content['optimizer'], filename)
            self.restore_gradients(content.get('gradients', []))
            restore_kept(self.hooks, self.model, content.get('kept_buffers', []))
        if resume_param_scheduler and self.param_schedulers is not None:
            load_schedulers(self.param_schedulers, content['param_schedulers'])
        self.logger.info(f'resumed {filename}: epoch {self.epoch}, iteration {self.iter}',
                         extra=TOLD)

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> bool:
        """Write a checkpoint that holds tensors and plain values only; True when it is there.

        Every rank comes here, also where rank 0 alone writes. A full disk is an error in the log,
        not the end of the run: the next interval tries again. Any other error of rank 0 is raised
        on every rank.
        """
        gradients = self.waiting_gradients() if kwargs.get('save_optimizer', True) else []
        spread = dict(gradients=gradients, buffers=self.waiting_buffers(),
                      kept_buffers=self.waiting_kept())
        parts = self.parts_of_ranks() | dict(filter(None, (
            hook.checkpoint_part(self) for hook in self.hooks
            if hasattr(hook, 'checkpoint_part'))))
        write = partial(self._write_checkpoint, Path(out_dir) / filename, spread, parts,
                        *args, **kwargs)
        self._unsaved = write() if self._is_joint(parts) else decided_by_first(write)
        return self._unsaved is None

    def _is_joint(self, parts: dict) -> bool:
        """Is a checkpoint written by all ranks?"""
        return self.is_sharded or bool(parts) and get_world_size() > 1

    # How a model lies on the ranks; ExactFlexibleRunner asks its strategy.
    def waiting_gradients(self) -> list:
        """Gradients of each rank that wait for their step, on rank 0; called on every rank."""
        return gathered_gradients(self.optim_wrapper)

    def restore_gradients(self, ranks: list) -> None:
        """Give this rank's parameters what ``waiting_gradients`` gave."""
        restore_gradients(self.optim_wrapper, ranks)

    def waiting_buffers(self) -> list:
        """Buffers of each rank that differ from rank 0's, on rank 0; called on every rank."""
        return gathered_buffers(self._bare_model())

    def waiting_kept(self) -> list:
        """Buffers as they were before the step that has begun, of each rank, on rank 0, for the
        case that it will be left out; called on every rank."""
        has_begun = getattr(self.optim_wrapper, 'is_step_begun', False)
        return gathered_kept(self.hooks) if has_begun else []

    def restore_buffers(self, content: dict) -> None:
        """Copy what ``waiting_buffers`` gave out of a checkpoint's content to this rank."""
        restore_buffers(self._bare_model(), content.get('buffers', []))

    def optimizer_state(self) -> dict:
        """State of the optimizer wrapper, as it goes into a checkpoint."""
        return self.optim_wrapper.state_dict()

    def load_optimizer(self, state: dict, filename: str) -> None:
        """Take a state out of the checkpoint ``filename``, which is for the error."""
        load_optimizer(self.optim_wrapper, state, filename)

    def parts_of_ranks(self) -> dict[str, dict]:
        """What each rank writes for itself, beside the hooks' parts."""
        return {}

    def _save(self, content: dict, path: Path, parts: dict, **manifest: Any) -> None:
        if self._is_joint(parts):
            save_folder(content, path, parts=parts, **manifest)
        else:
            io.save_checkpoint(content | parts, path, **manifest)

    def _write_checkpoint(self, path: Path, spread: dict, parts: dict,
                          file_client_args: dict | None = None,
                          save_optimizer: bool = True, save_param_scheduler: bool = True,
                          meta: dict | None = None, by_epoch: bool = True,
                          backend_args: dict | None = None) -> VisionError | None:
        """The error, when the disk is full, or a rank cannot write."""
        position = dict(epoch=self.epoch + 1, iter=self.iter) if by_epoch else \
            dict(epoch=self.epoch, iter=self.iter + 1)
        # Hooks save within an epoch or step, which then counts; one that saves after it says so
        # (MMEngine's saves a second time after validation, when that was the best so far).
        position |= {name: meta[name] for name in position if name in (meta or {})}
        content = dict(meta=dict(meta or {}, **meta_of(self, position)),
                       state_dict=self._bare_model().state_dict(),
                       message_hub=stored_hub(self.message_hub.state_dict()))
        if save_optimizer:
            content['optimizer'] = self.optimizer_state()
            content.update(spread)
        if save_param_scheduler and self.param_schedulers is not None:
            content['param_schedulers'] = scheduler_states(self.param_schedulers)
        self.call_hook('before_save_checkpoint', checkpoint=content)
        is_resumable = save_optimizer and (save_param_scheduler or self.param_schedulers is None)
        try:
            self._save(content, path, parts, **position, is_resumable=is_resumable)
        except VisionError as error:
            self.logger.error(f'{error.render()}\nThe run goes on and tries again later.')
            return error
        return None


@RUNNERS.register_module()
class ExactRunner(ExactRuns, Runner):
    """Runner of this project; everything that MMEngine's runner takes, it takes."""

    def set_randomness(self, seed: int, diff_rank_seed: bool = False,
                       deterministic: bool = False) -> None:
        """As MMEngine's; ``base_seed`` is that of the run, without the rank."""
        self.base_seed = seed
        super().set_randomness(seed, diff_rank_seed, deterministic)

    def build_optim_wrapper(self, optim_wrapper):
        """As MMEngine's, with wrappers of ours, which never step on numbers that are not
        finite."""
        return super().build_optim_wrapper(of_ours(optim_wrapper))

    def setup_env(self, env_cfg: dict) -> None:
        """As MMEngine's, which asks for CUDA in every process; here processes also run on CPUs,
        and NCCL waits as long as gloo, not a third of it.

        Raises:
            VisionError: VIS-DIST-318, a launcher that only works with GPUs.
        """
        if self.distributed and not is_distributed():
            join_ranks(self._launcher, **(env_cfg.get('dist_cfg') or {}))
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: torch.nn.Module):
        """As MMEngine's, also for several processes on a CPU."""
        if self.distributed and model_wrapper_cfg is None and not torch.cuda.is_available():
            # MMEngine names a GPU for each process; without one none may be named. Its other
            # choices are kept; SyncBN has no CPU form.
            return MMDistributedDataParallel(
                module=revert_sync_batchnorm(model), broadcast_buffers=False,
                find_unused_parameters=self.cfg.get('find_unused_parameters', False))
        return super().wrap_model(model_wrapper_cfg, model)


def _has_batch(dataloader: DataLoader) -> bool:
    try:
        return len(dataloader) > 0
    except TypeError:  # an endless sampler
        return True


def _seeded(randomness: dict | None) -> dict:
    randomness = dict(randomness or {})
    if randomness.get('seed') is None:
        randomness['seed'] = DEFAULT_SEED
    if randomness.get('deterministic'):
        # torch refuses matrix products on a GPU otherwise; cuBLAS reads it when it is first used.
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    return randomness
