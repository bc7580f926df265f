"""Logs of a run on a disk that may fill up: a line that is lost is no reason to lose the run."""

from __future__ import annotations

import logging
import sys
from types import MethodType

from mmengine.hooks import LoggerHook as _LoggerHook

from vision.common.core.files import is_disk_full
from vision.registry import HOOKS


@HOOKS.register_module()
class LoggerHook(_LoggerHook):
    """MMEngine's hook and options; a full disk costs lines of the log, not the run."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """As MMEngine's; where the disk is full, this line is lost."""
        try:
            super().after_train_iter(runner, batch_idx, data_batch, outputs)
        except OSError as error:
            if not is_disk_full(error):
                raise


def survive_full_disk(logger: logging.Logger) -> None:
    """Let the file handlers of a logger drop lines that do not fit, and say so once."""
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = MethodType(_drop, handler)


def _drop(handler: logging.FileHandler, record: logging.LogRecord) -> None:
    if not is_disk_full(sys.exc_info()[1]):
        logging.FileHandler.handleError(handler, record)
    elif not getattr(handler, 'has_told', False):
        handler.has_told = True
        print(f'the disk is full: {handler.baseFilename} misses lines from here on',
              file=sys.stderr)
