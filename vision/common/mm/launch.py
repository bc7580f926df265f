"""From the command line of train.py and test.py to a runner."""

from __future__ import annotations

import argparse
import difflib
import gc
import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import Registry
from mmengine.runner import Runner

from vision import registry
from vision.common.core.config_files import (
    Unread,
    config_names,
    find_config,
    unread_variables,
)
from vision.common.core.config_inputs import nearest_names, require_inputs, weights_named
from vision.common.core.config_keys import (
    TOP_LEVEL,
    check_arguments,
    check_options,
    check_top_level,
)
from vision.common.core.config_values import check_amounts, check_class_names, check_types
from vision.common.core.errors import VisionError, names_like
from vision.common.core.files import refuse_unwritable
from vision.common.core.references import find_file
from vision.common.mm.quiet import quieten
from vision.common.mm.safe_files import (
    is_data_config,
    read_plain_files_everywhere,
    read_safely,
)
from vision.common.nn.devices import find_device
from vision.common.nn.freed_memory import keep_freed_memory
from vision.common.nn.watchdog import TIMEOUT_S
from vision.registry import RUNNERS

_UNKNOWN_ARGUMENT = re.compile(
    r"(?P<owner>\w+)\.__init__\(\) got an unexpected keyword argument '(?P<name>\w+)'")
# What an operator says that has no form for the narrow type, of torch and of mmcv.
_NO_NARROW_FORM = re.compile(r"found (BFloat16|Half)|not implemented for '(BFloat16|Half)'")
_UNKNOWN_TYPE = re.compile(r'(?P<name>\S+) is not in the (?P<registry>.+?) registry')
# What each launcher tells the processes that it starts.
_LAUNCHED = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that MMDetection's users know, of the same meaning."""
    parser.add_argument('--work-dir', help='folder of logs and checkpoints (default: '
                        'work_dirs/NAME_OF_THE_CONFIG)')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none',
                        help='how the processes were started (tools/dist_train.sh: pytorch)')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help=argparse.SUPPRESS)
    add_config_arguments(parser)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``, which every command takes that reads a config."""
    parser.add_argument('--cfg-options', nargs='+', action=_ConfigOptions, metavar='KEY=VALUE',
                        help='override config values, e.g. model.num_stages=1 '
                        'train_cfg.max_iters=100; a key that nobody reads is an error')


class _ConfigOptions(DictAction):
    """What MMEngine's action answers with an exception of its own is a usage error here."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        for value in values:
            if '=' not in value:
                raise argparse.ArgumentError(self, f'{value!r} is no KEY=VALUE')
        try:
            super().__call__(parser, namespace, values, option_string)
        except AssertionError as error:
            raise argparse.ArgumentError(self, str(error)) from error


def read_config(args: argparse.Namespace) -> Config:
    """The config with the command line's options, checked for keys that nobody reads.

    Args:
        args: with config, cfg_options, launcher, local_rank and work_dir, as ``train`` parses
            them.

    Raises:
        VisionError: VIS-CONFIG-313, no such file; VIS-CONFIG-338 or VIS-CONFIG-339, it cannot be
            read; and what the checks of keys, options and arguments refuse.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    path = find_config(os.fspath(args.config))
    if path is None:
        path = Path(args.config)
        near = names_like(path.stem, config_names())
        raise VisionError('VIS-CONFIG-313', f'there is no config {path}',
                          where=str(path.absolute()),
                          why=nearest_names(path) or
                          (f'nearest of ours: {", ".join(near)}' if near else ''),
                          do='configs/README.md lists ours; they may be named without folder and '
                          'suffix')
    if path.suffix not in ('.py', '.json', '.yaml', '.yml'):
        raise VisionError('VIS-CONFIG-338', f'{path} is no config', where=str(path),
                          why='a config ends in .py, .json, .yaml or .yml',
                          do='configs/README.md lists ours; a checkpoint comes after it')
    read_plain_files_everywhere()
    try:
        config = read_safely(path) if is_data_config(path) else Config.fromfile(path)
    except (SyntaxError, KeyError, NameError, FileNotFoundError, TypeError,
            ImportError) as error:
        raise VisionError('VIS-CONFIG-339', f'the config {path} cannot be read', where=str(path),
                          why=f'{type(error).__name__}: {error}',
                          do='mend the file; vision config prints what it says'
                          ) from error
    if 'mmdet' in str(config.to_dict()):
        quieten()
    # MMEngine's Config is no Mapping: a walk over it would end at once and refuse nothing.
    check_top_level(_unread(config, path))
    if args.cfg_options:
        check_options(config.to_dict(), args.cfg_options, find_classes)
        config.merge_from_dict(args.cfg_options)
    scope = config.get('default_scope') or 'mmengine'
    _check_values(dict(config.to_dict(), _scope_=scope), str(path))
    config.launcher = args.launcher
    config.work_dir = args.work_dir or config.get('work_dir') or f'work_dirs/{path.stem}'
    if not torch.cuda.is_available():
        config.setdefault('env_cfg', ConfigDict()).dist_cfg = ConfigDict(backend='gloo')
    return config


def read_config_alone(path: str | Path, cfg_options: dict | None = None) -> Config:
    """``read_config`` for commands that start no run: no work_dir, one process."""
    return read_config(argparse.Namespace(config=path, cfg_options=cfg_options, launcher='none',
                                          local_rank=0, work_dir=None))


def _check_values(config: dict, where: str) -> None:
    seen: dict[tuple, list] = {}

    def find_once(name: Any, scope: str | None = None) -> list[Any]:
        key = (name if isinstance(name, str) else id(name), scope)
        if key not in seen:
            seen[key] = find_classes(name, scope)
        return seen[key]

    check_arguments(config, find_once, where)
    check_class_names(config, where)
    check_amounts(config, where)
    check_types(config, find_once, where)


def look_first(config: Config, loaders: Sequence[str]) -> None:
    """Look for data and checkpoint of a run before anything is built.

    Args:
        loaders: those that will be read, e.g. ('train_dataloader', 'val_dataloader').

    Raises:
        VisionError: VIS-DATA-1800, data that are not there; VIS-CKPT-1801, a checkpoint that is
            not there, of the run, of a pretrained part or of a frozen detector; what fetching a
            ``zoo:NAME`` raises.
    """
    require_inputs(config, loaders)
    predicts = any(config.get(name) for name in loaders if not name.startswith('train'))
    sources = [('', config.get('load_from')),
               *weights_named(config.get('model'), with_detector=predicts)]
    for key, source in sources:
        # Addresses are refused by the runner, in its own words.
        path = find_file(source) if source and '://' not in str(source) else None
        if path is not None and not path.exists():
            raise VisionError('VIS-CKPT-1801', f'there is no checkpoint {path}',
                              where=key or str(path.absolute()), why=nearest_names(path),
                              do='give a file or folder that a training has written, or '
                              'zoo:NAME; --resume alone takes the newest of the work_dir'
                              if not key else f'train it, or name another: {key}=PATH')


def _unread(config: Config, path: Path) -> list[Unread]:
    if path.suffix == '.py':
        return unread_variables(path, frozenset(TOP_LEVEL))
    return [Unread(key, str(path), '') for key in config  # JSON and YAML have no variables
            if key not in TOP_LEVEL and not key.startswith('_')]


def find_classes(name: Any, scope: str | None = None) -> list[Any]:
    """What a ``type`` may mean: the class of that name in each registry that has one."""
    if not isinstance(name, str):
        return [name] if callable(name) else []  # new-style configs hold the class itself
    if scope:
        with suppress(ImportError):
            importlib.import_module(f'{scope}.registry')
    found: list[Any] = []
    for place in (value for value in vars(registry).values() if isinstance(value, Registry)):
        # MMEngine warns of a tree without that scope, and takes ours.
        is_there = scope in (place.parent.scope, *place.parent.children)
        with place.switch_scope_and_registry(scope if is_there else 'vision') as there:
            cls = there.get(name)
        if cls is not None and cls not in found:
            found.append(cls)
    return found


def model_and_batch(args: argparse.Namespace, *, batch_size: int | None = None,
                    device: str = 'cpu') -> tuple[Config, torch.nn.Module, Any]:
    """(config, model for training, first batch of its train_dataloader) of ``args.config``, for
    tools that run a step of a training without a runner.

    Raises:
        VisionError: VIS-CONFIG-1450 the config does not train, VIS-ENV-515 no such device.
    """
    from mmengine.registry import init_default_scope

    from vision.common.mm.exact_data import build_dataloader
    device = find_device(device)
    config = read_config_alone(args.config, args.cfg_options)
    missing = [key for key in ('model', 'train_dataloader', 'optim_wrapper')
               if not config.get(key)]
    if missing:
        raise VisionError('VIS-CONFIG-1450', f'the config has no {" and no ".join(missing)}',
                          where=args.config, why='a step of its training is run and measured',
                          do='give a config that tools/train.py trains')
    init_default_scope(config.get('default_scope') or 'vision')
    loader = dict(config.train_dataloader, num_workers=0, persistent_workers=False)
    loader.pop('prefetch_factor', None)  # is of worker processes
    if batch_size:
        loader['batch_size'] = batch_size
    torch.manual_seed(0)
    with explained(config):
        model = registry.MODELS.build(config.model).to(device).train()
        return config, model, next(iter(build_dataloader(loader)))


def rank_timeout_s(config: Config) -> float:
    """The time-out of a collective, ``env_cfg.dist_cfg.timeout``: a rank that waits for longer is
    said to hang (``vision.common.nn.watchdog``)."""
    env = config.get('env_cfg') or {}
    return float((env.get('dist_cfg') or {}).get('timeout', TIMEOUT_S))


def resume_after_restart(config: Config) -> None:
    """When torchrun has started all ranks again, let them go on from what the run has saved."""
    if os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') == '0':
        return
    # A run that has saved nothing yet begins as it was told to, from load_from for example.
    if any(Path(config.work_dir).glob('*.pth')) or config.get('load_from') is None:
        config.resume, config.load_from = True, None


def leave_ranks() -> None:
    """End of a run on several processes: they leave together.

    Torch's gloo may abort a process whose group is still there, or still referred to, while
    Python shuts down; torchrun then reports a failure of a run that has done all its work.
    """
    if torch.distributed.is_initialized():
        gc.collect()  # a runner, its model and hooks refer to each other, and to the group
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def build_runner(config: Config) -> Runner:
    """The runner that ``runner_type`` names (default: ExactRunner).

    On a CPU its process keeps the memory that layers free.

    Raises:
        VisionError: no such runner, or not ours; the work_dir cannot be written; a launcher is
            named that has not started this process.
    """
    if config.get('work_dir'):
        refuse_unwritable(Path(config.work_dir) / 'log')
    told = _LAUNCHED.get(config.get('launcher', 'none'))
    if told and told not in os.environ:
        raise VisionError('VIS-DIST-346', f'--launcher {config.launcher} in a process that no '
                          'launcher has started', where='--launcher',
                          why=f'{config.launcher} gives each process {told}, which is not set',
                          do='bash tools/dist_train.sh CONFIG NUM_PROCESSES, or slurm_train.sh; '
                          'leave --launcher out for one process')
    if not torch.cuda.is_available():
        keep_freed_memory()
    name = config.get('runner_type', 'ExactRunner')
    runner: Any = RUNNERS.get(name)
    if runner is None:
        raise VisionError('VIS-CONFIG-315', f'no runner is called {name!r}', where='runner_type',
                          do='use ExactRunner')
    if not getattr(runner, 'is_exact', False):
        raise VisionError('VIS-CONFIG-333', f'runner_type is {name}, which is not one of ours',
                          where='runner_type', why='it unpickles checkpoints and runs the config '
                          'text in them, resumes inexactly and writes over whole checkpoints',
                          do='remove runner_type, or derive your class from ExactRunner')
    return runner.from_cfg(config)


def _registered_names() -> set[str]:
    """Of all classes: ours, those of the library below, and those of its other children."""
    registry.import_rooms()
    roots = {place.parent for place in vars(registry).values() if isinstance(place, Registry)}
    return {name for root in roots if root is not None
            for place in (root, *root.children.values()) for name in place.module_dict}


def _classes_called(name: str) -> list[type]:
    """Those of ours that no registry has, such as the parts of a model."""
    found = (vars(module).get(name) for place, module in list(sys.modules.items())
             if place.startswith('vision.'))
    return [cls for cls in found if isinstance(cls, type)]


@contextmanager
def explained(config: Config) -> Iterator[None]:
    """Turn what a registry and a class say to a name that they do not know into clear errors.

    Raises:
        VisionError: VIS-CONFIG-317, with the argument names that the class has; VIS-CONFIG-334,
            with names that are like the one that no registry has; VIS-RUN-1805, mixed precision
            on a device where a layer has none.
    """
    try:
        yield
    except KeyError as error:
        found = _UNKNOWN_TYPE.match(str(error.args[0])) if error.args else None
        if not found:
            raise
        name = found['name']
        close = difflib.get_close_matches(name.rpartition('.')[2], _registered_names(), n=3)
        raise VisionError('VIS-CONFIG-334', f'nothing is registered as {name}',
                          where=str(config.filename or 'config'),
                          why=f'looked for in the {found["registry"]} registry',
                          do=f'did you mean {" or ".join(close)}?' if close else 'look at the '
                          'type; a class of your own is imported by custom_imports') from error
    except (RuntimeError, NotImplementedError) as error:
        wrapper = config.get('optim_wrapper') or {}
        found = _NO_NARROW_FORM.search(str(error))
        if not found or 'Amp' not in str(wrapper.get('type')):
            raise
        raise VisionError('VIS-RUN-1805', 'a layer of this model cannot run in mixed precision '
                          'here', where='--amp, optim_wrapper.type=AmpOptimWrapper',
                          why=str(error).split('\n')[0],
                          do='leave --amp out; on a GPU most layers have it') from error
    except TypeError as error:
        found = _UNKNOWN_ARGUMENT.search(str(error))
        if not found:
            raise
        owner, name = found['owner'], found['name']
        near = ''
        if classes := find_classes(owner) or _classes_called(owner):
            known = list(inspect.signature(classes[0]).parameters)
            close = difflib.get_close_matches(name, known, n=3)
            near = f'did you mean {" or ".join(close)}?' if close else \
                f'it takes: {", ".join(known)}'
        raise VisionError('VIS-CONFIG-317', f'{owner} has no argument {name!r}',
                          where=str(config.filename or 'config'), why=str(error),
                          do=near or f'remove {name!r}') from error
