"""From the command line of train.py and test.py to a runner."""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import Runner

from vision import registry
from vision.common.core.config_keys import check_options, check_top_level
from vision.common.core.errors import VisionError
from vision.registry import RUNNERS

_UNKNOWN_ARGUMENT = re.compile(
    r"(?P<owner>\w+)\.__init__\(\) got an unexpected keyword argument '(?P<name>\w+)'")


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that MMDetection's users know, of the same meaning."""
    parser.add_argument('--work-dir', help='folder of logs and checkpoints (default: '
                        'work_dirs/NAME_OF_THE_CONFIG)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='override config values, e.g. model.num_stages=1 '
                        'train_cfg.max_iters=100; a key that nobody reads is an error')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none',
                        help='how the processes were started (tools/dist_train.sh: pytorch)')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help=argparse.SUPPRESS)
    parser.add_argument('-v', '--verbose', action='store_true',
                        help='show the traceback of an error too')


def read_config(args: argparse.Namespace) -> Config:
    """The config with the command line's options, checked for keys that nobody reads."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    path = Path(args.config)
    if not path.is_file():
        raise VisionError('VIS-CONFIG-313', f'there is no config {path}',
                          where=str(path.absolute()), do='configs/README.md lists them')
    try:
        config = Config.fromfile(path)
    except (SyntaxError, KeyError, NameError, FileNotFoundError, TypeError) as error:
        raise VisionError('VIS-CONFIG-314', f'the config {path} cannot be read', where=str(path),
                          why=f'{type(error).__name__}: {error}',
                          do='mend the file; python tools/print_config.py prints what it says'
                          ) from error
    check_top_level(config, str(path))
    if args.cfg_options:
        # MMEngine's Config is no Mapping: the walk would end at once and refuse nothing.
        check_options(config.to_dict(), args.cfg_options, find_class)
        config.merge_from_dict(args.cfg_options)
    config.launcher = args.launcher
    config.work_dir = args.work_dir or config.get('work_dir') or f'work_dirs/{path.stem}'
    if not torch.cuda.is_available():
        config.setdefault('env_cfg', ConfigDict()).dist_cfg = ConfigDict(backend='gloo')
    return config


def find_class(name: str) -> type | None:
    """The class behind a ``type`` string, in whichever registry knows it."""
    registries = [value for value in vars(registry).values()
                  if isinstance(value, Registry)]
    with DefaultScope.overwrite_default_scope('vision'):
        for place in registries:
            if (found := place.get(name)) is not None and isinstance(found, type):
                return found
    return None


def build_runner(config: Config) -> Runner:
    """The runner that ``runner_type`` names (default: ExactRunner)."""
    name = config.get('runner_type', 'ExactRunner')
    runner: Any = RUNNERS.get(name)
    if runner is None:
        raise VisionError('VIS-CONFIG-315', f'no runner is called {name!r}', where='runner_type',
                          do='use ExactRunner')
    return runner.from_cfg(config)


@contextmanager
def explained(config: Config) -> Iterator[None]:
    """Turn the TypeError of a class that does not know an argument into one clear error.

    Raises:
        VisionError: VIS-CONFIG-317, with the argument names that the class has.
    """
    try:
        yield
    except TypeError as error:
        found = _UNKNOWN_ARGUMENT.search(str(error))
        if not found:
            raise
        owner, name = found['owner'], found['name']
        near = ''
        if (cls := find_class(owner)) is not None:
            known = [p for p in inspect.signature(cls.__init__).parameters if p != 'self']
            close = difflib.get_close_matches(name, known, n=3)
            near = f'did you mean {" or ".join(close)}?' if close else \
                f'it takes: {", ".join(known)}'
        raise VisionError('VIS-CONFIG-317', f'{owner} has no argument {name!r}',
                          where=str(config.filename or 'config'), why=str(error),
                          do=near or f'remove {name!r}') from error
