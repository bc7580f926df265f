"""Config files that are data: YAML and JSON, read to plain values; nothing in them is code.

MMEngine reads YAML with a loader that calls what ``!!python/...`` names, and both forms may ask
for ``custom_imports``. Here there are only values; what names classes is looked at by the caller.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from vision.common.core.errors import VisionError

SUFFIXES = ('.yml', '.yaml', '.json')
MAX_BYTES = 1 << 17  # the longest config of ours, written out, has 12 kB
# Aliases of YAML stand for whole parts. Written out, a file must stay what one can look through.
MAX_VALUES, MAX_DEPTH = 50_000, 40
MAX_BASES = 20


class _Loader(yaml.SafeLoader):
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """``<<`` copies the keys of others, which may have copied those of others."""
        super().flatten_mapping(node)
        if len(node.value) > MAX_VALUES:
            raise ValueError(f'a mapping of more than {MAX_VALUES} keys')


def load_yaml(text: str | bytes) -> Any:
    """What YAML says, by a loader that knows plain values alone and comes to an end.

    Raises:
        ValueError: it is no YAML, or asks for more; in one line.
    """
    try:
        # The YAML loader in Python, not the one in C: that one recurses without a limit.
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, OverflowError,
            RecursionError) as error:
        what = ' '.join(str(error).split()) or type(error).__name__
        raise ValueError(what[:300]) from error


def read_data_config(path: Path) -> list[dict[str, Any]]:
    """The file and what it inherits from (``_base_``, data files too), nearest last.

    Raises:
        VisionError: VIS-CONFIG-314 it cannot be read, VIS-CONFIG-351 it asks for code.
    """
    return _with_bases(Path(path), [])


def _with_bases(path: Path, chain: list[Path]) -> list[dict[str, Any]]:
    if path.resolve() in chain or len(chain) > MAX_BASES:
        raise _unreadable(path, 'it inherits from itself, or from too many')
    content = _read(path)
    if 'custom_imports' in content:
        raise _asks_for_code(path, 'it names modules to import (custom_imports)')
    bases = content.pop('_base_', None) or []
    found = []
    for base in [bases] if isinstance(bases, str) else bases:
        if not isinstance(base, str) or not base.endswith(SUFFIXES) or '\0' in base:
            raise _asks_for_code(path, f'it inherits from {base!r:.80}')
        found += _with_bases(path.parent / base, [*chain, path.resolve()])
    return [*found, content]


def _read(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
        if len(data) > MAX_BYTES:
            raise ValueError(f'{len(data)} bytes, more than {MAX_BYTES}')
        text = data.decode('utf-8')
        content = json.loads(text) if path.suffix == '.json' else load_yaml(text)
        _require_plain(content)
    except (OSError, ValueError, RecursionError) as error:
        fault = error.__cause__
        if isinstance(fault, yaml.constructor.ConstructorError) and 'tag' in str(fault.problem):
            raise _asks_for_code(path, f'{fault.problem}, {fault.problem_mark}'.strip()
                                 ) from error
        raise _unreadable(path, f'{type(fault or error).__name__}: {error}') from error
    if not isinstance(content, dict):
        raise _unreadable(path, f'it holds a {type(content).__name__} where keys belong')
    return content


def _require_plain(value: Any) -> None:
    num_values = 0

    def walk(one: Any, depth: int) -> None:
        nonlocal num_values
        num_values += 1
        if num_values > MAX_VALUES or depth > MAX_DEPTH:
            raise ValueError(f'written out it has more than {MAX_VALUES} values, or more than '
                             f'{MAX_DEPTH} levels')
        if isinstance(one, dict):
            for key, part in one.items():
                if not isinstance(key, str | int):
                    raise ValueError(f'a key {key!r:.40}')
                walk(part, depth + 1)
        elif isinstance(one, list):
            for part in one:
                walk(part, depth + 1)
        elif not isinstance(one, str | int | float | None):
            raise ValueError(f'a {type(one).__name__} {one!r:.40}')
        elif isinstance(one, int) and one.bit_length() > 64:
            raise ValueError(f'a whole number of {one.bit_length()} bits')

    walk(value, 0)


def _asks_for_code(path: Path, what: str) -> VisionError:
    return VisionError('VIS-CONFIG-351', f'the config {path} asks for code: {what}',
                       where=str(path), why='YAML and JSON configs are data: they can be read '
                       'from anybody, because nothing in them runs',
                       do='leave it out; a config that needs code is a .py file, which you must '
                       'trust as any program (docs/trust.md)')


def _unreadable(path: Path, why: str) -> VisionError:
    return VisionError('VIS-CONFIG-314', f'the config {path} cannot be read', where=str(path),
                       why=why.strip().split('\n')[0][:300], do='mend the file')
