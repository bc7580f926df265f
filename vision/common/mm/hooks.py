"""Hooks of every run: checkpoints that are whole, numbers that are finite, signals obeyed."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.hooks import Hook

from vision.common.core.config_keys import IMPLIED
from vision.common.core.errors import VisionError
from vision.common.core.files import atomic_write
from vision.common.mm.checkpoints import checkpoint_folders
from vision.common.mm.start import StartHook
from vision.common.nn.checkpoint import remove_checkpoint
from vision.common.nn.seeds import seed_everything
from vision.registry import HOOKS


@HOOKS.register_module()
class CheckpointHook(_CheckpointHook):
    """MMEngine's hook and options, but old checkpoints go only once the new one is on the disk.

    MMEngine's deletes first: killed in between, or on a full disk, it loses finished work, with
    ``max_keep_ckpts=1`` all of it. Here what is kept is what lies in the folder, so that the
    folder may be moved. Written by ``ExactRunner.save_checkpoint``, whole or not at all.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.root = self.out_dir  # as the config gives it; MMEngine changes out_dir

    def folder(self, runner) -> Path:
        """Where the checkpoints of this run lie: MMEngine puts a folder of the name of the
        work_dir into ``out_dir``."""
        if self.root is None or Path(self.root) == Path(runner.work_dir):
            return Path(runner.work_dir)
        return Path(self.root) / Path(runner.work_dir).name

    def before_train(self, runner) -> None:
        """Begin in the work_dir where the run lies now, which may have moved since it was
        interrupted."""
        self.out_dir = self.root
        super().before_train(runner)
        self.out_dir = str(self.folder(runner))

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        name = self.filename_tmpl.format(step)
        self.last_ckpt = str(Path(self.out_dir) / name)
        runner.message_hub.update_info('last_ckpt', name)
        is_saved = runner.save_checkpoint(
            self.out_dir, name, save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=self.by_epoch,
            **self.args)
        if not is_saved or runner.rank != 0:  # a full disk is in the log
            return
        try:  # a name, not a path of this machine; only people read it
            with atomic_write(Path(runner.work_dir) / 'last_checkpoint', 'w') as file:
                file.write(name)
        except OSError as error:
            runner.logger.warning(f'last_checkpoint was not written: {error}')
        if self.max_keep_ckpts > 0:
            self._remove_before(step)

    def _remove_before(self, step: int) -> None:
        """Keep ``max_keep_ckpts`` up to this step; later ones are of a run we resumed within."""
        pattern = re.compile(re.escape(self.filename_tmpl).replace(r'\{\}', r'(\d+)'))
        folder = Path(self.out_dir)
        numbers = sorted((int(match[1]) for path in folder.iterdir()
                          if (match := pattern.fullmatch(path.name))), reverse=True)
        earlier = [number for number in numbers if number < step]
        for number in earlier[self.max_keep_ckpts - 1:]:
            remove_checkpoint(folder / self.filename_tmpl.format(number))
        for path in folder.glob('interrupted_iter_*.pth'):  # what was just saved is further
            remove_checkpoint(path)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        """As MMEngine's, but the best so far is removed after the better one is there."""
        if not self.save_best:
            return
        before = self._best_names()
        for key in before:
            self._set_best(key, None)
        super()._save_best_checkpoint(runner, metrics)
        after = self._best_names()
        for key, name in before.items():
            if not after.get(key):
                self._set_best(key, name)
            elif name != after[key] and runner.rank == 0:
                if (Path(self.out_dir) / after[key]).exists():
                    remove_checkpoint(Path(self.out_dir) / name)

    def _best_names(self) -> dict[str, str]:
        """File name of the best checkpoint so far, by metric ('' where there is one metric)."""
        paths = dict(getattr(self, 'best_ckpt_path_dict', {}))
        paths[''] = getattr(self, 'best_ckpt_path', None)
        return {key: Path(path).name for key, path in paths.items() if path}

    def _set_best(self, key: str, name: str | None) -> None:
        path = name and str(Path(self.out_dir) / name)
        if key:
            self.best_ckpt_path_dict[key] = path
        else:
            self.best_ckpt_path = path


@HOOKS.register_module()
class ExactnessHook(Hook):
    """Seed every iteration from (seed, rank, iteration): dropout then repeats after a resume."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Seed all random generators for this iteration."""
        # The word keeps this stream apart from those of the samples.
        seed_everything(runner.seed, runner.rank, runner.iter, 0x17E4)


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Stops a run whose gradients are not finite ``patience`` steps in a row.

    The steps themselves are left out by the optimizer wrapper, and buffers such as BatchNorm's
    averages, which the forward pass has changed, are put back: a step that is left out leaves
    nothing behind, and the weights, and every checkpoint, stay finite.
    """

    priority = 'HIGH'

    def __init__(self, patience: int = 3) -> None:
        if patience < 1:
            raise ValueError(f'patience must be >= 1 step, got {patience}')
        self.patience = patience
        self.num_seen = 0
        self.kept: list[torch.Tensor] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Keep a copy of the buffers as they are before the step's first forward pass."""
        wrapper = runner.optim_wrapper
        # With accumulated gradients a step has several forward passes.
        if not self.kept or not getattr(wrapper, 'is_step_begun', False):
            self.kept = [buffer.detach().clone() for buffer in runner.model.buffers()]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Put the buffers back where the step was left out, and count.

        Raises:
            VisionError: VIS-RUN-306, ``patience`` steps in a row were; with the names of the
                samples.
        """
        wrapper = runner.optim_wrapper
        if getattr(wrapper, 'num_skipped', 0) == self.num_seen:
            return
        self.num_seen = wrapper.num_skipped
        with torch.no_grad():
            for buffer, kept in zip(runner.model.buffers(), self.kept, strict=True):
                buffer.copy_(kept)
        names = _sample_names(data_batch)
        runner.logger.warning(f'step {runner.iter + 1}: loss or gradient is not finite, left out '
                              f'({wrapper.num_skipped_in_row} in a row); samples: {names}')
        if wrapper.num_skipped_in_row >= self.patience:
            raise VisionError(
                'VIS-RUN-306', f'{self.patience} steps in a row had a loss or gradient that is '
                'not finite', where=f'step {runner.iter + 1}, samples {names}',
                why='a broken sample, or a learning rate that is too high',
                do='look at these samples, lower the learning rate, and resume: the weights '
                'and the checkpoints are still finite')


@HOOKS.register_module()
class LossSpikeHook(Hook):
    """Warns, with step and learning rate, of a loss far above the recent ones.

    Far: above ``factor`` times their median, and further from it than ten times their median
    distance. The recent losses are those of the log buffer, which a checkpoint holds.

    Args:
        window: losses that are looked at; half as many must be there before anything is said.
        factor: > 1.
    """

    priority = 'BELOW_NORMAL'  # after the losses of the step are in the buffer

    def __init__(self, window: int = 50, factor: float = 3.0) -> None:
        if window < 4 or factor <= 1:
            raise ValueError(f'window must be >= 4 steps and factor > 1, got {window}, {factor}')
        self.window, self.factor = window, factor
        self.num_quiet = 0  # steps without another warning

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Warn if this step's loss jumped; after a warning it is quiet for ``window`` steps."""
        buffer = runner.message_hub.log_scalars.get('train/loss')
        losses = buffer.data[0][-self.window - 1:] if buffer is not None else ()
        self.num_quiet -= 1
        if len(losses) <= self.window // 2 or self.num_quiet > 0:
            return
        recent, loss = losses[:-1], losses[-1]
        median = np.median(recent)
        distance = np.median(np.abs(recent - median))
        if loss > self.factor * abs(median) and loss - median > 10 * distance:
            self.num_quiet = self.window
            rate = runner.optim_wrapper.param_groups[0]['lr'] \
                if hasattr(runner.optim_wrapper, 'param_groups') else float('nan')
            runner.logger.warning(
                f'step {runner.iter + 1}: the loss jumped to {loss:.4g}, the median of the last '
                f'{len(recent)} steps is {median:.4g}; learning rate {rate:.4g}')


@HOOKS.register_module()
class SignalHook(Hook):
    """SIGTERM and Ctrl-C: finish the step, save, leave with 143 or 130. A second one leaves at
    once."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.received = 0

    def before_train(self, runner) -> None:
        """Take SIGTERM and SIGINT over; in another thread than the main one nothing is done."""
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                signal.signal(number, self._receive)
            except ValueError:  # not the main thread: whoever started us handles signals
                return

    def after_train(self, runner) -> None:
        """Give both signals back to Python."""
        for number, handler in ((signal.SIGTERM, signal.SIG_DFL),
                                (signal.SIGINT, signal.default_int_handler)):
            if signal.getsignal(number) == self._receive:
                signal.signal(number, handler)

    def _receive(self, number, frame) -> None:
        if self.received:
            raise SystemExit(128 + number)
        self.received = number

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """After a signal to any rank, save ``interrupted_iter_N.pth`` and leave on all of them.

        Raises:
            SystemExit: 143 after SIGTERM, 130 after Ctrl-C.
        """
        if get_world_size() > 1:
            # All ranks stop after the same step: one that left alone would hang the others.
            flag = torch.tensor(self.received)
            all_reduce(flag, 'max')
            self.received = int(flag)
        if self.received:
            name = f'interrupted_iter_{runner.iter + 1}.pth'
            is_saved = runner.save_checkpoint(str(checkpoint_folders(runner)[-1]), name,
                                              by_epoch=False)
            what = f'saved {name}' if is_saved else 'not saved'
            runner.logger.info(f'stopped by a signal after step {runner.iter + 1}; {what}; '
                               'go on with --resume')
            raise SystemExit(128 + self.received)


# What makes a run exact and its end orderly; a config may name them to give options.
REQUIRED_HOOKS = (StartHook, ExactnessHook, NonFiniteHook, LossSpikeHook, SignalHook)
# Names that mean our class whatever the config's default scope is, with MMEngine's options.
OUR_NAMES = ('CheckpointHook', 'LoggerHook', 'OptimWrapper', 'AmpOptimWrapper')


def of_ours(config):
    """A dict of a config, with our class in place of MMEngine's of the same name."""
    is_ours = isinstance(config, dict) and config.get('type') in OUR_NAMES
    return dict(config, type=f'vision.{config["type"]}') if is_ours else config


def default_hooks_of_ours(config: dict | None) -> dict:
    """``default_hooks`` of a config, with a logger and a checkpoint an epoch if it names none;
    classes of ours stand in the place of MMEngine's of the same name."""
    hooks = dict(logger=dict(type='LoggerHook'),
                 checkpoint=dict(type='CheckpointHook', interval=1)) | dict(config or {})
    return {name: of_ours(hook) for name, hook in hooks.items()}


def complete_hooks(runner) -> None:
    """Add what ``REQUIRED_HOOKS`` the config does not name, and the hooks that keys stand for.

    Raises:
        VisionError: VIS-CONFIG-331, a checkpoint hook that is not ours; VIS-CONFIG-1438, a key
            that stands for a hook holds no dict of its arguments.
    """
    for key, name in IMPLIED.items():
        options = runner.cfg.get(key)
        if options is None:
            continue
        if not isinstance(options, Mapping) or not options or 'type' in options:
            raise VisionError('VIS-CONFIG-1438', f'{key} is {options!r}', where=key,
                              why=f'it holds the arguments of {name}, and nothing else',
                              do=f'{key}=dict(...), or None to do without')
        runner.register_hook(dict(options, type=f'vision.{name}'))
    for cls in REQUIRED_HOOKS:
        if not any(isinstance(hook, cls) for hook in runner.hooks):
            runner.register_hook(cls())
    for hook in runner.hooks:
        if isinstance(hook, _CheckpointHook) and not isinstance(hook, CheckpointHook):
            raise VisionError('VIS-CONFIG-331', f'{type(hook).__name__} of '
                              f'{type(hook).__module__} writes checkpoints',
                              where='default_hooks.checkpoint', why='it removes the old one '
                              'before the new one is on the disk', do="type='CheckpointHook'")


def _sample_names(data_batch) -> list[str]:
    """Image paths or ids of a batch, as far as its data samples tell."""
    samples = data_batch.get('data_samples', []) if isinstance(data_batch, dict) else []
    return [str(getattr(sample, 'img_path', getattr(sample, 'img_id', '?')))
            for sample in samples][:8]
