"""Weights of one's own put into the package, and their rows into the index."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import yaml

from vision.common.core.errors import VisionError
from vision.common.core.files import atomic_write, sha256_of
from vision.zoo.index import INDEX, PACKAGE, PACKAGE_WEIGHTS, Entry, ModelEntry

MAX_BYTES = 20_000_000  # our choice: every clone carries these files for ever
# SPDX names that weights have in practice; any other is said as LicenseRef-NAME (SPDX 2.3, 10.1).
LICENCES = ('Apache-2.0', 'MIT', 'BSD-2-Clause', 'BSD-3-Clause', 'ISC', 'CC0-1.0', 'CC-BY-4.0',
            'CC-BY-SA-4.0', 'CC-BY-NC-4.0', 'CC-BY-NC-SA-4.0', 'OpenRAIL-M', 'GPL-2.0-only',
            'GPL-3.0-only', 'LGPL-3.0-only', 'MPL-2.0', 'OFL-1.1', 'Unlicense')
LICENCE_REF = re.compile(r'LicenseRef-[A-Za-z0-9.-]+')
SUFFIXES = ('.safetensors', '.pth', '.onnx')


def add_weights(file: Path, *, name: str, config: str, source: str, licence: str = 'Apache-2.0',
                metrics: dict[str, float] | None = None, metrics_from: str = '',
                classes: Sequence[str] | None = None, note: str = '', task: str = '',
                summary: str = '', index: Path = INDEX, weights: Path = PACKAGE_WEIGHTS) -> Entry:
    """Copy the weights and write their row; of a task, a row of ``models`` too.

    SHA-256 and size are computed, never typed. A row of the same name is replaced. The package
    ships no pickles: of a checkpoint the tensors are taken, and the names of the classes that it
    was trained on go into the metadata of the .safetensors file. An .onnx file stays as it is.

    Args:
        file: .safetensors, .pth of a training, or .onnx with its class names inside.
        classes: for a file that does not name them.
        task, summary: what ``vision.load(name)`` shall give, and one line about it.

    Raises:
        VisionError: VIS-INPUT-614 no such file, too large, or classes that are not its own;
            VIS-CONFIG-1742 a licence that is no SPDX name; VIS-CONFIG-601, VIS-CONFIG-1710 a row
            that is not possible.
    """
    check_file(file)
    named = onnx_names(file) if file.suffix == '.onnx' else None
    if licence not in LICENCES and not LICENCE_REF.fullmatch(licence):
        raise VisionError('VIS-CONFIG-1742', f'licence {licence!r}', where='licence',
                          why=f'SPDX names: {", ".join(LICENCES)}', do='give one of these, or '
                          'LicenseRef-NAME and say in the note what it allows')
    suffix = '.onnx' if file.suffix == '.onnx' else '.safetensors'
    target = weights / f'{name}{suffix}'
    weights.mkdir(exist_ok=True)
    put(file, target, classes, named)
    entry = Entry(
        name=name, addresses=(f'{PACKAGE}{target.name}',), sha256=sha256_of(target),
        size_bytes=target.stat().st_size, licence=licence, source=source, config=config,
        metrics=metrics or {}, metrics_from=metrics_from, verified=True, note=note)
    model = ModelEntry(name, task, summary, '' if suffix == '.onnx' else config, name) \
        if task else None
    if model and (faults := model.faults([name])):
        raise VisionError('VIS-INPUT-614', f'{name} is no model: {"; ".join(faults)}',
                          where='task, summary', do='give both, e.g. --task classify --summary '
                          '"what it knows"')
    write_rows(index, entry, model)
    return entry


def check_file(path: Path) -> None:
    """Refuse what is no file of weights, or too large for the package.

    Raises:
        VisionError: it is one of these.
    """
    if not path.is_file() or path.suffix not in SUFFIXES:
        raise VisionError('VIS-INPUT-623', f'{path} is no {", ".join(SUFFIXES)} file that exists.',
                          do='save the weights with vision.common.nn.checkpoint.save_weights')
    if path.suffix != '.pth' and path.stat().st_size > MAX_BYTES:
        raise VisionError('VIS-INPUT-624', f'{path} has {path.stat().st_size} bytes.',
                          why=f'the package takes at most {MAX_BYTES}',
                          do='publish it at an https address and write the entry by hand')


def put(file: Path, target: Path, classes: Sequence[str] | None,
        named: tuple[str, ...] | None = None) -> None:
    """The weights of ``file`` as ``target``; unchanged where they are as they shall be.

    Args:
        named: class names of an .onnx file.
    """
    if named is not None:
        if classes and tuple(classes) != named:
            raise _other_classes(file, named)
    else:
        from vision.common.nn.checkpoint import class_names, load_checkpoint, save_weights
        content = load_checkpoint(file)
        named = class_names(content)
        if classes and named and tuple(classes) != named:
            raise _other_classes(file, named)
        if file.suffix == '.pth' or classes and not named:
            save_weights(content['state_dict'], target, classes=classes or named)
            return
    if file.resolve() != target.resolve():
        shutil.copyfile(file, target)


def onnx_names(file: Path) -> tuple[str, ...]:
    """Class names in the metadata of an .onnx file; () where it has none.

    Raises:
        VisionError: onnxruntime cannot run the file.
    """
    import onnxruntime
    try:
        session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    except Exception as error:  # onnxruntime has an exception class for each fault
        raise VisionError('VIS-INPUT-625', f'{file} cannot be run', where=str(file),
                          why=str(error).split('\n')[0], do='export it again') from error
    try:
        stored = ast.literal_eval(session.get_modelmeta().custom_metadata_map.get('names', ''))
        return tuple(str(stored[i]) for i in range(len(stored)))
    except (ValueError, SyntaxError, TypeError, LookupError):
        return ()


def _other_classes(file: Path, named: Sequence[str]) -> VisionError:
    shown = ', '.join(named[:10]) + ', ...' * (len(named) > 10)
    return VisionError('VIS-INPUT-626', f'--classes differ from the names in {file}',
                       why=f'it has {len(named)} names: {shown}', do='leave --classes out')


def write_rows(index: Path, entry: Entry, model: ModelEntry | None) -> None:
    """Replace or append the rows; comment lines above the two lists stay."""
    text = index.read_text()
    lists = yaml.safe_load(text)
    for key, new in (('models', model), ('entries', entry)):
        if new is None:
            continue
        row = {name: list(value) if isinstance(value, tuple) else value
               for name, value in asdict(new).items() if value or name == 'verified'}
        rows = lists.get(key) or []
        names = [each['name'] for each in rows]
        place = names.index(new.name) if new.name in names else len(rows)
        lists[key] = [*rows[:place], row, *rows[place + 1:]]
    parts = []
    for key in ('models', 'entries'):
        found = re.search(rf'((?:^#.*\n)*)^{key}:', text, re.M)
        if key in lists:
            parts.append((found[1] if found else '') + yaml.safe_dump(
                {key: lists[key]}, sort_keys=False, width=99, allow_unicode=True))
    with atomic_write(index, 'w') as file:
        file.write('\n'.join(parts))
