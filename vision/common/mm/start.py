"""What a run says before its first step: a few lines on the console, all in the log file."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from torch import nn

from vision.common.core.errors import is_verbose
from vision.common.mm.quiet import LOG_WARNINGS
from vision.registry import HOOKS

# ``extra`` of a log record that the console shows before the first step, too.
TOLD = dict(is_told=True)


class ShortStart(logging.Filter):
    """For a console: before the first step only warnings, errors and what is ``TOLD``."""

    def __init__(self) -> None:
        super().__init__()
        self.is_over = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the console shows this record."""
        if record.getMessage().startswith(LOG_WARNINGS):
            return False
        return self.is_over or record.levelno > logging.INFO or getattr(record, 'is_told', False)


def shorten_start(logger: logging.Logger) -> None:
    """Keep environment, config and hooks off the console, unless the command got -v."""
    if is_verbose():
        return
    for handler in _consoles(logger):
        if not any(isinstance(part, ShortStart) for part in handler.filters):
            handler.addFilter(ShortStart())


def _consoles(logger: logging.Logger) -> list[logging.Handler]:
    return [handler for handler in logger.handlers if isinstance(handler, logging.StreamHandler)
            and not isinstance(handler, logging.FileHandler)]


@HOOKS.register_module()
class StartHook(Hook):
    """Says what is run on what, once, and lets the console show all that follows."""

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner) -> None:
        """Say it once, before the first training step."""
        self._begin(runner, 'train')

    def before_val_epoch(self, runner) -> None:
        """Say it once, where a run begins with validation."""
        self._begin(runner, 'val')

    def before_test_epoch(self, runner) -> None:
        """Say it once, before a test."""
        self._begin(runner, 'test')

    def _begin(self, runner, mode: str) -> None:
        if getattr(self, 'has_begun', False):
            return
        self.has_begun = True
        runner.logger.info('\n'.join(summary(runner, mode)), extra=TOLD)
        for handler in _consoles(runner.logger):
            for part in handler.filters:
                if isinstance(part, ShortStart):
                    part.is_over = True


def summary(runner, mode: str) -> list[str]:
    """Lines about model, data, device, length and files of a run that begins to ``mode``."""
    loops = dict(train=runner._train_loop, val=runner._val_loop, test=runner._test_loop)
    shown = ('train', 'val') if mode == 'train' else (mode,)
    rows = [('config', runner.cfg.filename or '(given in Python)'),
            ('model', _of_model(runner._bare_model(), mode))]
    rows += [(name, _of_data(loops[name])) for name in shown if loops[name] is not None]
    rows += [('device', _of_device(runner))]
    if mode == 'train':
        rows += [('length', _of_length(runner.train_loop))]
    rows += [('work_dir', runner.work_dir),
             ('log', f'{runner.logger.log_file} (environment, config, hooks; -v shows them here)')]
    title = dict(train='training', val='validating', test='testing')[mode]
    return [title, *(f'  {name:9}{text}' for name, text in rows)]


def _of_model(model: nn.Module, mode: str) -> str:
    parameters = list(model.parameters())
    if not parameters:
        return f'{type(model).__name__}, without parameters of its own'
    text = f'{type(model).__name__}, {_count(sum(p.numel() for p in parameters))} parameters'
    fixed = sum(p.numel() for p in parameters if not p.requires_grad)
    return f'{text}, {_count(fixed)} of them frozen' if fixed and mode == 'train' else text


def _count(number: int) -> str:
    for size, unit in ((10**9, 'G'), (10**6, 'M'), (10**3, 'k')):
        if number >= size:
            return f'{number / size:.2f} {unit}'
    return str(number)


def _of_data(loop: Any) -> str:
    dataset = loop.dataloader.dataset if hasattr(loop, 'dataloader') else None
    if dataset is None or not hasattr(dataset, '__len__'):
        return type(loop).__name__
    metainfo = getattr(dataset, 'metainfo', None) or {}
    counts = dict(getattr(dataset, 'counts', None) or dict(samples=len(dataset)))
    num_classes = metainfo.get('num_classes') or len(metainfo.get('classes') or ())
    if num_classes:
        counts['classes'] = num_classes
    name = type(getattr(dataset, 'inner', dataset)).__name__
    size = getattr(loop.dataloader, 'batch_size', None)
    return f'{name}, ' + ', '.join(f'{count} {what}' for what, count in counts.items()) + \
        (f'; batches of {size}' if size else '')


def _of_device(runner) -> str:
    first = next(runner.model.parameters(), None)
    device = 'cpu' if first is None else first.device.type
    ranks = get_world_size()
    return f'{device}{f", {ranks} processes" if ranks > 1 else ""}; seed {runner.seed}'


def _of_length(loop: Any) -> str:
    is_by_epoch = type(loop).__name__.startswith('EpochBased')
    length = f'{loop.max_epochs} epochs, {loop.max_iters} iterations' if is_by_epoch else \
        f'{loop.max_iters} iterations'
    return f'{length}; from iteration {loop.iter}' if loop.iter else length
