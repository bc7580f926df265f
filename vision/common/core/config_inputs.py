"""Files and folders that a run will read, looked for before any work is done.

A run that misses its data should say so at once, not after it has collected the environment and
built its model. What a data set reads is known from its keys, of MMEngine's names and ours;
addresses of other storages (``s3://``) are passed.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vision.common.core.errors import VisionError

# Keys of a data set whose values begin at ``data_root``, where there is one.
_BELOW_ROOT = ('ann_file', 'data_prefix')
# Data sets of ours that read one more file -> its key; it stands alone.
_ALONE = dict(FacePairs='pairs', FaceRecord='path', FaceBin='path')
_PARTS = ('dataset', 'datasets', 'videos', 'images')  # of data sets made of others


@dataclass(frozen=True)
class Input:
    """``key``: where in the config; ``is_folder``: is it to be a folder?"""

    key: str
    path: Path
    is_folder: bool


def require_inputs(config: Mapping[str, Any], loaders: Sequence[str]) -> None:
    """Look for what the data sets of ``loaders`` and their evaluators read.

    A config may say which command makes a folder, in the top-level dict ``prepare``: path of the
    folder -> command.

    Raises:
        VisionError: VIS-DATA-1800, with that command, or with names that are like the missing one.
    """
    for name in loaders:
        loader = config.get(name) or {}
        evaluator = config.get(name.replace('dataloader', 'evaluator'))
        wanted = [*_of_dataset(loader.get('dataset'), f'{name}.dataset'),
                  *_of_evaluator(evaluator, name.replace('dataloader', 'evaluator'))]
        missing = [one for one in wanted if not _is_there(one)]
        if missing:
            raise _not_there(missing, config.get('prepare') or {})


def weights_named(node: Any, key: str = 'model', *, with_detector: bool
                  ) -> Iterator[tuple[str, str]]:
    """(key, file or zoo:NAME) of the weights that a model begins with: of ``Pretrained`` parts,
    and, where it predicts, of a frozen detector. Addresses that libraries fetch are passed."""
    if isinstance(node, Mapping):
        name = 'path' if node.get('type') == 'OnnxDetector' else 'checkpoint'
        is_read = key.endswith('.detector') or node.get('type') == 'Pretrained'
        if is_read and isinstance(node.get(name), str) and '://' not in node[name]:
            yield f'{key}.{name}', node[name]
        for name, part in node.items():
            if name != 'detector' or with_detector:
                yield from weights_named(part, f'{key}.{name}', with_detector=with_detector)
    elif isinstance(node, list | tuple):
        for number, part in enumerate(node):
            yield from weights_named(part, f'{key}.{number}', with_detector=with_detector)


def _of_dataset(node: Any, key: str) -> Iterator[Input]:
    if isinstance(node, Sequence) and not isinstance(node, str):
        for number, part in enumerate(node):
            yield from _of_dataset(part, f'{key}.{number}')
        return
    if not isinstance(node, Mapping):
        return
    for name in _PARTS:
        yield from _of_dataset(node.get(name), f'{key}.{name}')
    root = node.get('data_root') or ''
    if root:
        yield from _input(f'{key}.data_root', root, is_folder=True)
    for name in _BELOW_ROOT:
        value = node.get(name)
        for part, text in value.items() if isinstance(value, Mapping) else [('', value)]:
            if isinstance(text, str) and text:
                where = f'{key}.{name}.{part}' if part else f'{key}.{name}'
                yield from _input(where, os.path.join(root, text), is_folder=name != 'ann_file')
    name = _ALONE.get(str(node.get('type')).rpartition('.')[2])
    if name and isinstance(node.get(name), str):
        yield from _input(f'{key}.{name}', node[name], is_folder=False)


def _of_evaluator(node: Any, key: str) -> Iterator[Input]:
    for number, part in enumerate(node if isinstance(node, list | tuple) else [node]):
        if isinstance(part, Mapping) and isinstance(part.get('ann_file'), str):
            where = f'{key}.{number}' if isinstance(node, list | tuple) else key
            yield from _input(f'{where}.ann_file', part['ann_file'], is_folder=False)


def _input(key: str, path: str, *, is_folder: bool) -> Iterator[Input]:
    if '://' not in path:
        yield Input(key, Path(path).expanduser(), is_folder)


def _is_there(one: Input) -> bool:
    return one.path.is_dir() if one.is_folder else one.path.exists()


def _not_there(missing: Sequence[Input], commands: Mapping[str, str]) -> VisionError:
    first = missing[0]
    kind = 'folder' if first.is_folder else 'file'
    what = f'there is no {kind} {first.path}'
    if others := [one for one in missing[1:] if not one.path.is_relative_to(first.path)]:
        what += f', nor {len(others)} more that the run reads'
    there = next((path for path in first.path.parents if path.is_dir()), Path())
    near = nearest_names(first.path) or \
        f'{there.absolute()} is there and holds {_names(there)}'
    return VisionError('VIS-DATA-1800', what, where=first.key, why=near,
                       do=_advice(first, commands))


def _advice(one: Input, commands: Mapping[str, str]) -> str:
    for folder, command in commands.items():
        if Path(folder) in (one.path, *one.path.parents) and not Path(folder).exists():
            return command
    parts = one.key.split('.')
    option = '.'.join(parts[:parts.index(parts[-1])]) + '.data_root' if 'dataset' in parts else \
        one.key
    return 'give the right path, in the config or by --cfg-options ' \
        f'{shlex.quote(f"{option}=PATH")}; datasets/README.md shows how the data sets lie'


def nearest_names(path: Path) -> str:
    """What lies where ``path`` should, and is called like it: text for an error, or ''."""
    if not path.parent.is_dir():
        return ''
    near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=3)
    return f'near it: {", ".join(str(path.parent / name) for name in near)}' if near else ''


def _names(folder: Path) -> str:
    names = sorted(name for name in os.listdir(folder) if not name.startswith('.'))
    return ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '') \
        if names else 'nothing'
