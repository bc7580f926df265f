"""The lists of weights and of models that this project knows.

``index.yml`` is data that comes with the package, never from the network: an entry names a config
file of this repository and holds no code. ``entries`` are files of weights: where each comes from
and how it is recognised (``Entry``); ``models`` are what ``vision.load`` takes: a task, a config,
and the entries that belong to it (``ModelEntry``).
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from vision.common.core.addresses import names_public_host
from vision.common.core.data_configs import load_yaml
from vision.common.core.errors import VisionError, names_like
from vision.common.core.plain_values import stays_inside

INDEX = Path(__file__).with_name('index.yml')
PACKAGE_WEIGHTS = Path(__file__).with_name('weights')
PACKAGE = 'package:'  # address of a file that is installed with the package
_NAME = re.compile(r'[a-z0-9][a-z0-9._-]*')
_SHA256 = re.compile(r'[0-9a-f]{64}')
TASKS = ('video', 'classify', 'faces')
_PREFIX = re.compile(r'[0-9a-f]{8}')  # what torch.hub puts into file names


@dataclass(frozen=True)
class Entry:
    """One file of weights.

    Args:
        name: lower case, ``model_data``, e.g. ``yolox-nano_coco``.
        addresses: https addresses of the same file, tried in order; or ``('package:FILE',)`` for a
            file under ``vision/zoo/weights``. An entry that is fetched by hand may name http.
        sha256: 64 hex digits of the whole file; nothing is used before this agrees. Or the first
            8, where no more was published: a file can be made to fit 8 digits, so such an entry
            is never downloaded by us, the user brings the file (``is_by_hand``).
        size_bytes: length of the file; a transfer that is longer is cut off at once. 0 where it
            is not known, for a file that is fetched by hand.
        licence: SPDX name of the licence of the weights.
        source: paper and repository they come from.
        config: config of this repository that uses them, relative to the repository root.
        metrics: name -> value, as published or as measured by us: ``metrics_from`` says which.
        metrics_from: table or command that the metrics come from.
        verified: the hash was compared with the file at the official address. False: it was
            recorded from a copy, so it proves that you have that copy and no more.
        note: what a user should know before or after the download.

    Raises:
        VisionError: VIS-CONFIG-601, a field that is missing, of another type or not to be trusted.
    """

    name: str
    addresses: tuple[str, ...]
    sha256: str
    size_bytes: int
    licence: str
    source: str
    config: str
    metrics: dict[str, float] = field(default_factory=dict)
    metrics_from: str = ''
    verified: bool = False
    note: str = ''

    def __post_init__(self) -> None:
        texts = dict(name=self.name, sha256=self.sha256, licence=self.licence, source=self.source,
                     config=self.config, metrics_from=self.metrics_from, note=self.note)
        odd = [key for key, value in texts.items() if not isinstance(value, str)]
        if odd or not isinstance(self.metrics, dict) or type(self.verified) is not bool \
                or not all(isinstance(address, str) for address in self.addresses):
            raise _wrong(self.name, 'a field of another type than Entry says '
                         f'({", ".join(odd) or "addresses, metrics"})')
        problems = [text for is_bad, text in (
            (not _NAME.fullmatch(self.name), 'name is not lower-case letters, digits, . _ -'),
            (not self.addresses, 'no address'),
            (not all(_is_allowed(a, self.is_by_hand) for a in self.addresses),
             f'an address is neither https nor {PACKAGE}FILE'),
            (len({PurePosixPath(_path(a)).name for a in self.addresses}) > 1,
             'the addresses name different files'),
            (not (self.is_by_hand or _SHA256.fullmatch(str(self.sha256))),
             'sha256 is not 64 hex digits, or the first 8'),
            (self.is_by_hand and (self.verified or self.is_packaged),
             'verified or packaged with only 8 digits of sha256'),
            (type(self.size_bytes) is not int or self.size_bytes < 0
             or (self.size_bytes == 0 and not self.is_by_hand), 'size_bytes is not >= 1'),
            (bool(self.metrics) and not self.metrics_from, 'metrics without metrics_from'),
            (not (self.licence and self.source and self.config),
             'licence, source and config must be given'),
            (not stays_inside(self.config), 'config leads out of the repository'),
        ) if is_bad]
        if problems:
            raise _wrong(self.name, '; '.join(problems))

    @property
    def file_name(self) -> str:
        """Name under which the file was published."""
        return PurePosixPath(_path(self.addresses[0])).name

    @property
    def is_packaged(self) -> bool:
        """Whether the file comes with the package, under ``vision/zoo/weights``."""
        return bool(self.addresses) and self.addresses[0].startswith(PACKAGE)

    @property
    def is_by_hand(self) -> bool:
        """Whether the user has to bring the file: no more than 8 digits of its hash are known."""
        return bool(_PREFIX.fullmatch(str(self.sha256)))

    def fits(self, sha256: str) -> bool:
        """Whether a file with this digest is the entry's, as far as the index can tell."""
        return sha256.startswith(self.sha256)


@dataclass(frozen=True)
class ModelEntry:
    """What ``vision.load`` takes by name.

    Args:
        name: lower case, as ``Entry.name``.
        task: one of ``TASKS``; it decides the object that ``load`` gives.
        summary: one line for the table of models.
        config: config of this repository that describes the model, relative to its root; '' where
            the file of weights says all (an .onnx file).
        weights: name of an ``Entry``; '' where nothing is to be loaded.
        parts: entries that the model needs beside, e.g. detector of faces -> name of an ``Entry``.
    """

    name: str
    task: str
    summary: str
    config: str = ''
    weights: str = ''
    parts: dict[str, str] = field(default_factory=dict)

    def faults(self, entries: Container[str]) -> list[str]:
        """What is wrong with it, beside these entries of weights; nothing: []."""
        texts = (self.name, self.task, self.summary, self.config, self.weights)
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.parts, dict):
            return ['a field of another type than ModelEntry says']
        wanted = [name for name in (self.weights, *self.parts.values()) if name != '']
        return [text for is_bad, text in (
            (not _NAME.fullmatch(self.name), 'name is not lower-case letters, digits, . _ -'),
            (self.task not in TASKS, f'task is none of {", ".join(TASKS)}'),
            (not self.summary or '\n' in self.summary, 'summary is not one line'),
            (not (self.config or self.weights), 'neither config nor weights'),
            (bool(self.config) and not stays_inside(self.config), 'config leads out of the '
             'repository'),
            (not all(name in entries for name in wanted),
             f'no entry {", ".join(str(name) for name in wanted if name not in entries)}'),
        ) if is_bad]


def load_index(path: Path = INDEX) -> dict[str, Entry]:
    """Entries by name, in the order of the file.

    Raises:
        VisionError: an entry lacks a field, has one that nobody reads, or a name comes twice.
    """
    known = {f.name for f in fields(Entry)}
    entries: dict[str, Entry] = {}
    rows = _lists_of(path)['entries']
    for row in rows if isinstance(rows, list) else [None]:
        if not isinstance(row, dict) or not isinstance(row.get('name'), str) \
                or not all(isinstance(key, str) for key in row) \
                or not isinstance(row.get('addresses', []), list):
            raise _wrong(row, 'entries are a list of fields, addresses a list', path)
        name = row['name']
        fault = f'does not know {sorted(set(row) - known)}' if set(row) - known else ''
        fault = 'comes twice' if name in entries else fault
        if not fault:
            try:
                entries[name] = Entry(**(row | dict(addresses=tuple(row.get('addresses', ())))))
                continue
            except TypeError as error:  # a required field is missing
                fault = str(error)
        raise _wrong(name, fault, path)
    return entries


def load_models(path: Path = INDEX) -> dict[str, ModelEntry]:
    """Models by name, in the order of the file.

    Raises:
        VisionError: VIS-CONFIG-1710, a model that lacks a field, has one that nobody reads, comes
            twice, or names weights that are no entry; and what ``load_index`` raises.
    """
    entries, models = load_index(path), {}
    rows = _lists_of(path).get('models') or []
    for row in rows if isinstance(rows, list) else [rows]:
        try:
            model = ModelEntry(**row)
            faults = model.faults(entries) + ['comes twice'] * (model.name in models)
        except TypeError as error:
            faults = [str(error)]
        if faults:
            raise VisionError('VIS-CONFIG-1710', f'zoo model {row!r:.60}: {"; ".join(faults)}',
                              where=str(path), why='models are a list of the fields of ModelEntry',
                              do='correct the model; vision/zoo/index.py says what each field is')
        models[model.name] = model
    return models


def find_model(name: str, path: Path = INDEX) -> ModelEntry | None:
    """The model of that name, or None: what else ``vision.load`` takes is not known here."""
    return load_models(path).get(name)


def _wrong(entry: object, fault: str, path: Path | str = 'vision/zoo/index.yml') -> VisionError:
    return VisionError('VIS-CONFIG-601', f'zoo entry {entry!r:.60}: {fault}.', where=str(path),
                       do='correct the entry; vision/zoo/index.py says what each field means')


def find(name: str, path: Path = INDEX) -> Entry:
    """The entry of that name.

    Raises:
        VisionError: VIS-INPUT-602, with the nearest names.
    """
    entries = load_index(path)
    if name in entries:
        return entries[name]
    near = names_like(name, entries, cutoff=0.4)
    raise VisionError('VIS-INPUT-602', f'no model {name!r} in the zoo.',
                      where=str(path),
                      why=f'nearest: {", ".join(near)}' if near
                      else f'it has: {", ".join(entries)}',
                      do='vision zoo list')


def _lists_of(path: Path) -> dict:
    """The file, which has at least ``entries``."""
    try:
        content = load_yaml(path.read_bytes())
        content['entries'], content.get('models')
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise VisionError('VIS-CONFIG-619', 'the zoo index cannot be read.', where=str(path),
                          why=f'{type(error).__name__}: {str(error)[:200]}',
                          do='install the package again') from error
    return content


def _is_allowed(address: str, is_by_hand: bool) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    is_web = parts.scheme in ('https', *['http'] * is_by_hand) and names_public_host(address)
    is_file = address.startswith(PACKAGE) and '/' not in address and '..' not in address
    return (is_web or is_file) and bool(PurePosixPath(_path(address)).name)


def _path(address: str) -> str:
    try:
        return urlsplit(address).path
    except ValueError:
        return ''
