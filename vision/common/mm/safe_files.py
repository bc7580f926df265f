"""What MMEngine reads and builds on the word of a file, made safe: names, YAML, pickles."""

from __future__ import annotations

import builtins
import importlib.util
import io
import keyword
import pickle
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mmengine.registry
import yaml
from mmengine.config import Config
from mmengine.fileio import BaseFileHandler, register_handler
from mmengine.registry import Registry

from vision import registry
from vision.common.core.data_configs import SUFFIXES, load_yaml, read_data_config
from vision.common.core.errors import VisionError
from vision.common.core.plain_pickle import (
    BrokenPickle,
    NotPlain,
    numpy_names,
    plain_names,
    read_plain,
)

SCOPES = ('vision', 'mmdet', 'mmcv', 'mmengine')


def is_data_config(path: Path) -> bool:
    """Whether the file is a config without code: JSON or YAML by its ending."""
    return path.suffix in SUFFIXES


def read_safely(path: Path) -> Config:
    """A config of YAML or JSON. What it builds are classes of the registries and nothing else:
    a registry would otherwise import, and call, any function of that name (``os.system``).

    Raises:
        VisionError: VIS-CONFIG-314, VIS-CONFIG-355, 355.
    """
    *bases, own = read_data_config(path)
    config = Config(bases[0] if bases else own, filename=str(path))
    for part in [*bases[1:], own] if bases else []:
        config.merge_from_dict(part)
    for place, name, scope in _names(config.to_dict(), '', None):
        if not _is_registered(name, scope):
            raise VisionError(
                'VIS-CONFIG-355', f'the config {path} asks for code: {place} is {name!r:.60}',
                where=str(path), why='in a YAML or JSON config a type is the name of a registered '
                'class, with or without its scope (mmdet.Resize), and no way to a function',
                do='look for a slip in the name; or write a .py config, which you must trust as '
                'any program (docs/trust.md)')
    return config


def _names(node: Any, path: str, scope: Any) -> Iterator[tuple[str, Any, Any]]:
    """(path, name, scope) of all that registries will look up."""
    if isinstance(node, Mapping):
        scope = node.get('_scope_', node.get('default_scope', scope) if not path else scope)
        for key, value in node.items():
            place = f'{path}.{key}' if path else str(key)
            if key in ('_scope_', 'default_scope'):
                yield place, None if value in SCOPES or value is None else value, None
            elif key in ('type', 'runner_type', 'constructor') and not isinstance(value, Mapping):
                yield place, value, scope
            yield from _names(value, place, scope)
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from _names(value, f'{path}.{number}', scope)


def _is_registered(name: Any, scope: Any) -> bool:
    if name is None:
        return True
    if not isinstance(name, str):
        return False
    own, dot, last = name.rpartition('.')
    scope = own if dot else scope or 'vision'
    if scope not in SCOPES or not last.isidentifier():
        return False
    roots = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
    ours = [value for value in vars(registry).values() if isinstance(value, Registry)]
    return any(_holds(place, scope, last) for place in ours) \
        or (scope == 'mmengine' or not dot) and any(last in root.module_dict for root in roots) \
        or not dot and _is_no_code(name)


def _is_no_code(name: str) -> bool:
    """Names such as 'nms' and 'UniformKeyframes' choose in tables of the classes that take them.
    A registry that is asked for one imports the module of that name, and mmcv evaluates it."""
    return not keyword.iskeyword(name) and not hasattr(builtins, name) and (
        name in sys.modules or importlib.util.find_spec(name) is None)


def _holds(place: Registry, scope: str, name: str) -> bool:
    with place.switch_scope_and_registry(scope) as there:
        node: Registry | None = there
        while node is not None:
            if isinstance(node, registry.RoomRegistry):
                node.import_room_of(name)
            else:
                node.import_from_location()
            if name in node.module_dict:
                return True
            node = node.parent
    return False


def read_plain_files_everywhere() -> None:
    """Let ``mmengine.load`` (annotation files, among others) read pickles and YAML as data."""
    register_handler(['pkl', 'pickle'])(_PlainPickles)
    register_handler(['yaml', 'yml'])(_PlainYaml)


class _PlainPickles(BaseFileHandler):
    str_like = False

    def load_from_fileobj(self, file, **_: Any) -> Any:
        data = file.read()
        try:
            return read_plain(data, plain_names() | numpy_names(len(data)))
        except (NotPlain, BrokenPickle) as error:
            where = str(getattr(file, 'name', 'a pickle'))
            raise VisionError('VIS-DATA-352', f'the pickle {where} is not read: {error}',
                              where=where, why='only plain values and arrays are, since a pickle '
                              'can run anything', do='get it as JSON, or from its publisher'
                              ) from error

    def load_from_path(self, filepath: str, **kwargs: Any) -> Any:
        return super().load_from_path(filepath, mode='rb', **kwargs)

    def dump_to_str(self, obj: Any, **kwargs: Any) -> bytes:
        return pickle.dumps(obj, **dict(protocol=2) | kwargs)

    def dump_to_fileobj(self, obj: Any, file, **kwargs: Any) -> None:
        pickle.dump(obj, file, **dict(protocol=2) | kwargs)

    def dump_to_path(self, obj: Any, filepath: str, **kwargs: Any) -> None:
        super().dump_to_path(obj, filepath, mode='wb', **kwargs)


class _PlainYaml(BaseFileHandler):
    str_like = False  # bytes that are no text are met here

    def load_from_fileobj(self, file, **_: Any) -> Any:
        try:
            return load_yaml(file.read())
        except ValueError as error:
            where = str(getattr(file, 'name', 'a YAML file'))
            raise VisionError('VIS-DATA-356', f'the file {where} is not read: {error}',
                              where=where,
                              why='only plain values are, since YAML can run anything',
                              do='leave out what begins with !!python') from error

    def dump_to_fileobj(self, obj: Any, file, **kwargs: Any) -> None:
        is_text = isinstance(file, io.TextIOBase)
        yaml.dump(obj, file, **dict(encoding=None if is_text else 'utf-8') | kwargs)

    def dump_to_str(self, obj: Any, **kwargs: Any) -> str:
        return yaml.dump(obj, **kwargs)
