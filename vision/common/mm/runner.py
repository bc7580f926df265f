"""MMEngine's runner, made exact: interrupted and resumed equals never interrupted, bit for bit."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_distributed, master_only
from mmengine.model import (
    MMDistributedDataParallel,
    is_model_wrapper,
    revert_sync_batchnorm,
)
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from vision.common.core.errors import VisionError
from vision.common.core.files import remove_unfinished
from vision.common.mm.checkpoints import (
    load_schedulers,
    newest_valid,
    only_run_here,
    plain,
    read_safely_everywhere,
    require_same_steps,
    restored_hub,
    scheduler_states,
    steps_of,
    stored_hub,
)
from vision.common.mm.exact_data import DEFAULT_SEED, EndlessBatches, build_dataloader, go_to
from vision.common.mm.logs import survive_full_disk
from vision.common.nn import checkpoint as io
from vision.registry import RUNNERS
from vision.version import __version__


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
        read_safely_everywhere()
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
        return build_dataloader(dataloader, seed, diff_rank_seed)

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
        with only_run_here(self.work_dir, self.rank):
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
        require_same_steps(self, meta.get('steps_of'), filename)
        self.train_loop._epoch, self.train_loop._iter = meta['epoch'], meta['iter']
        go_to(self.train_loop, meta['epoch'], meta['iter'])
        self.message_hub.load_state_dict(restored_hub(content['message_hub']))
        if resume_optimizer:
            self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
            self.optim_wrapper.load_state_dict(content['optimizer'])
        if resume_param_scheduler and self.param_schedulers is not None:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
            load_schedulers(self.param_schedulers, content['param_schedulers'])
        self.logger.info(f'resumed {filename}: epoch {self.epoch}, iteration {self.iter}')

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
                    steps_of=steps_of(self),
                    time=time.strftime('%Y%m%d_%H%M%S'))
        if metainfo := getattr(self.train_dataloader.dataset, 'metainfo', None):
            meta['dataset_meta'] = plain(metainfo)
        content = dict(meta=meta, state_dict=model.state_dict(),
                       message_hub=stored_hub(self.message_hub.state_dict()))
        if save_optimizer:
            content['optimizer'] = self.optim_wrapper.state_dict()
        if save_param_scheduler and self.param_schedulers is not None:
            content['param_schedulers'] = scheduler_states(self.param_schedulers)
        self.call_hook('before_save_checkpoint', checkpoint=content)
        try:
            io.save_checkpoint(content, Path(out_dir) / filename, **position)
        except VisionError as error:
            self._unsaved = error
            self.logger.error(f'{error.render()}\nThe run goes on and tries again later.')
            return False
        self._unsaved = None
        return True


