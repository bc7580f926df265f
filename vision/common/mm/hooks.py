"""Hooks of every run: checkpoints that are whole, numbers that are finite, signals obeyed."""

from __future__ import annotations

import signal
from pathlib import Path

from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.hooks import Hook

from vision.common.core.errors import VisionError
from vision.common.nn.seeds import seed_everything
from vision.registry import HOOKS


@HOOKS.register_module()
class CheckpointHook(_CheckpointHook):
    """MMEngine's hook and options; manifests go when their checkpoints go.

    Written by ``ExactRunner.save_checkpoint``: whole or not at all, with a manifest beside it.
    """

    def after_train_epoch(self, runner) -> None:
        super().after_train_epoch(runner)
        self._tidy(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            self._tidy(runner)

    def _tidy(self, runner) -> None:
        for manifest in Path(self.out_dir).glob('*.pth.json'):
            if not manifest.with_suffix('').exists():
                manifest.unlink(missing_ok=True)
        pointer = Path(runner.work_dir) / 'last_checkpoint'
        if pointer.exists():  # a name, not a path of this machine: the folder may be moved
            pointer.write_text(Path(pointer.read_text()).name)


@HOOKS.register_module()
class ExactnessHook(Hook):
    """Seed every iteration from (seed, rank, iteration): dropout then repeats after a resume."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        # The word keeps this stream apart from those of the samples.
        seed_everything(runner.seed, runner.rank, runner.iter, 0x17E4)


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Stops a run whose gradients are not finite ``patience`` steps in a row.

    The steps themselves are left out by the optimizer wrapper, so that the weights, and every
    checkpoint, stay finite.
    """

    priority = 'HIGH'

    def __init__(self, patience: int = 3) -> None:
        if patience < 1:
            raise ValueError(f'patience must be >= 1 step, got {patience}')
        self.patience = patience
        self.num_seen = 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        wrapper = runner.optim_wrapper
        if getattr(wrapper, 'num_skipped', 0) == self.num_seen:
            return
        self.num_seen = wrapper.num_skipped
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
class SignalHook(Hook):
    """SIGTERM and Ctrl-C: finish the step, save, leave with 143 or 130. A second one leaves at
    once."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.received = 0

    def before_train(self, runner) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                signal.signal(number, self._receive)
            except ValueError:  # not the main thread: whoever started us handles signals
                return

    def after_train(self, runner) -> None:
        for number, handler in ((signal.SIGTERM, signal.SIG_DFL),
                                (signal.SIGINT, signal.default_int_handler)):
            if signal.getsignal(number) == self._receive:
                signal.signal(number, handler)

    def _receive(self, number, frame) -> None:
        if self.received:
            raise SystemExit(128 + number)
        self.received = number

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.received:
            name = f'interrupted_iter_{runner.iter + 1}.pth'
            runner.save_checkpoint(runner.work_dir, name, by_epoch=False)
            runner.logger.info(f'stopped by a signal after step {runner.iter + 1}; saved {name}; '
                               'go on with --resume')
            raise SystemExit(128 + self.received)


def _sample_names(data_batch) -> list[str]:
    """Image paths or ids of a batch, as far as its data samples tell."""
    samples = data_batch.get('data_samples', []) if isinstance(data_batch, dict) else []
    return [str(getattr(sample, 'img_path', getattr(sample, 'img_id', '?')))
            for sample in samples][:8]


