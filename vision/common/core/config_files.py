"""Config files by name, and what their text says before anything is run.

``find_config`` finds those of this package from any folder, ``model_type`` tells what a config
describes without MMEngine. ``unread_variables`` are those that nothing reads:

A config file is Python: besides the keys that a run reads it may hold helper variables. One that
is used in its own file (``train_pipeline``), or by a file that inherits (``_base_.num_classes``),
has done its work when the file was read. Any other is a slip, or a hope: a variable of a base
file that is set again in an inheriting file changes nothing, because the base file was read with
its own value.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vision.common.core.data_configs import SUFFIXES, read_data_config

# A link to the configs of the repository; the wheel holds copies.
CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
_OF_BASE = re.compile(r'_base_\.(\w+)')


@dataclass(frozen=True)
class Unread:
    """``base``: the file that has used its own value of this variable already, or ''."""

    key: str
    where: str
    base: str


# Task of a config, by the type of its model; any other type is a detector of MMDetection.
TASKS = {'LatticeDetector': 'video', 'ImageClassifier': 'classify', 'FaceRecognizer': 'faces'}


def find_config(text: str) -> Path | None:
    """A config file by its path, by its path from the root of the repository, or by its name
    without folder and suffix; None: there is none."""
    if Path(text).is_file():
        return Path(text)
    parts = Path(text).parts
    if parts[:1] == ('configs',) and CONFIGS.joinpath(*parts[1:]).is_file():
        return CONFIGS.joinpath(*parts[1:])
    return config_names().get(text)


def find_cluster(text: str | os.PathLike) -> Path:
    """A YAML file of ``configs/clusters`` by its name, such as ``h100``; else the path as given.

    Paths are found as by ``find_config``.
    """
    named = CONFIGS / 'clusters' / f'{os.fspath(text)}.yaml'
    return find_config(os.fspath(text)) or (named if named.is_file() else Path(text))


def config_names() -> dict[str, Path]:
    """Name without folder and suffix -> file, of the configs of this package that are whole."""
    return {path.stem: path for path in sorted(CONFIGS.rglob('*.py'))
            if not {'_base_', 'demo'} & set(path.parts)}


def model_of_config(path: Path) -> dict:
    """What the text of a config says of its ``model``, its bases below it; {}: nothing.

    Nothing is run, so MMEngine need not be there. A value that is no plain value, such as a name
    or a calculation, is ``...``.
    """
    merged: dict = {}
    for told in _models_in_data(path) if path.suffix in SUFFIXES else _models_in_python(path):
        merged = _merged(merged, told) if isinstance(told, dict) else merged
    return merged


def _models_in_data(path: Path) -> list:
    """Of a .json or .yaml config and its bases, nearest last."""
    return [content.get('model') for content in read_data_config(path)]


def _models_in_python(path: Path) -> list:
    return [_plain(node.value)
            for _, tree in reversed(list(_chain(path, set(), with_installed=True)))
            for node in tree.body
            if 'model' in _targets(node)]


def model_type(path: Path) -> str:
    """``type`` of the model of a config; '': it has none, or one that the text does not tell."""
    found = model_of_config(path).get('type')
    return found if isinstance(found, str) else ''


def _merged(base: dict, change: dict) -> dict:
    """As MMEngine merges the dicts of a config and its bases."""
    if change.get('_delete_') is True:
        return {key: value for key, value in change.items() if key != '_delete_'}
    return base | {key: _merged(base.get(key) if isinstance(base.get(key), dict) else {}, value)
                   if isinstance(value, dict) else value for key, value in change.items()}


def _plain(node: ast.expr):
    """The value of an expression of constants, lists, and dicts in either form; else ``...``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) \
            and node.func.id == 'dict' and not node.args:
        return {keyword.arg or '**': _plain(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {key.value if isinstance(key, ast.Constant) else '**': _plain(value)
                for key, value in zip(node.keys, node.values, strict=True)}
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError):  # of a long chain of operators
        return ...


def unread_variables(path: Path, read: frozenset[str]) -> list[Unread]:
    """Top-level names of a config file and its bases that are neither in ``read`` nor used.

    Names that begin with '_' are notes and stay. Bases from installed packages (``mmdet::...``)
    are not ours to judge (some of mmdet's hold such variables). A file that is no plain Python
    (substitutions such as ``{{ fileDirname }}`` outside quotes) is not looked into.
    """
    files = list(_chain(Path(path), set()))
    of_base = {name for _, tree in files for node in ast.walk(tree) for name in _from_base(node)}
    stored = {place: _assigned(tree) for place, tree in files}
    unread = []
    for place, tree in files:
        used = {node.id for node in ast.walk(tree)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        for key, line in stored[place].items():
            if key in read or key.startswith('_') or key in used or key in of_base:
                continue
            base = next((str(other) for other in stored
                         if other != place and key in stored[other]), '')
            unread.append(Unread(key, f'{place}:{line}', base))
    return unread


def _chain(path: Path, seen: set[Path], *, with_installed: bool = False
           ) -> Iterator[tuple[Path, ast.Module]]:
    """The file and its bases, with their trees; a base that is named twice comes once."""
    if path.suffix != '.py' or path.resolve() in seen:
        return
    if 'site-packages' in path.resolve().parts and not with_installed:
        return
    seen.add(path.resolve())
    try:
        tree = ast.parse(path.read_text(encoding='utf-8'))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return  # not there, no Python, or none of people
    yield path, tree
    for base in _bases(tree):
        if '::' not in base and '\0' not in base:
            yield from _chain(path.parent / base, seen, with_installed=with_installed)


def _bases(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if '_base_' in _targets(node):
            value = _plain(node.value)
            values = value if isinstance(value, list | tuple) else [value]
            return [base for base in values if isinstance(base, str)]
    return []


def _targets(node: ast.stmt) -> list[str]:
    """Names that an assignment gives one value."""
    targets = node.targets if isinstance(node, ast.Assign) else ()
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _from_base(node: ast.AST) -> list[str]:
    """Names of base files that a node reads: ``_base_.x``, or in a text, as MMEngine takes it."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) \
            and node.value.id == '_base_':
        return [node.attr]
    text = node.value if isinstance(node, ast.Constant) else ''
    return _OF_BASE.findall(text) if isinstance(text, str) else []


def _assigned(tree: ast.Module) -> dict[str, int]:
    """Name -> line of its last assignment at the top of the file."""
    names = {}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else \
            [node.target] if isinstance(node, ast.AnnAssign) else []
        for target in targets:
            names |= {part.id: node.lineno for part in ast.walk(target)
                      if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
    return names
