"""Pair lists of face verification and their ten folds.

Three forms are read, told apart by the first line:

- LFW's own: ``10<TAB>300`` (folds, pairs of a kind per fold), then lines ``name i j`` (one person)
  and ``name i other j`` (two people). ``10`` may also be absent (``300``: one fold, LFW's
  development lists).
- that of CALFW and CPLFW: two lines a pair, ``path 0`` (two people) or ``path n`` with n above 0.
- a list: ``path path 1`` or ``path path 0`` on each line; paths are relative to the image folder
  and may be separated by tabs or commas when they hold spaces.

The last two have no folds: the pairs of one person and those of two people are each cut into ten
neighbouring parts, in the order of the file. For a balanced list written fold by fold (LFW, and
the ``.bin`` files made from it) this gives the folds of the protocol.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.plain_values import stays_inside, whole_number

NUM_FOLDS = 10
LFW_NAME = '{name}/{name}_{number:04d}.jpg'  # how LFW and its aligned copies name a picture


@dataclass(frozen=True)
class PairList:
    """Pairs of images to be told same or different.

    Attributes:
        paths: distinct images in order of first use.
        first, second: (N,) int32 positions in ``paths``.
        same: (N,) bool.
        folds: (N,) int16 from 0.
    """

    paths: tuple[str, ...]
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    folds: np.ndarray

    def __len__(self) -> int:
        return len(self.same)

    @property
    def num_folds(self) -> int:
        """Folds that the pairs are in; 1 of LFW's development lists."""
        return int(self.folds.max()) + 1


def read_pairs(path: Path, *, num_folds: int = NUM_FOLDS) -> PairList:
    """Read a pairs file of any of the forms, line by line.

    Args:
        num_folds: where the form does not say its folds, as LFW's own does.

    Raises:
        VisionError: VIS-DATA-1108, it cannot be read; VIS-DATA-1061 with the line that cannot;
            VIS-DATA-1062, the counts of the header do not add up; VIS-DATA-1110, too few pairs of
            a kind.
    """
    path = Path(path)
    rows = _rows(path)
    first = next(rows, None)
    if first is None:
        raise _bad_counts(path, 'the pairs file is empty')
    header = [whole_number(field) for field in first[1]]
    if len(header) <= 2 and None not in header:
        return _read_lfw(path, header, list(rows))
    in_two_lines = len(header) == 2 and header[1] is not None
    form = _two_line_pairs if in_two_lines else _listed_pairs
    found = make_pairs(form(path, chain([first], rows)), np.zeros(0))
    return replace(found, folds=stratified_folds(found.same, num_folds, where=str(path)))


def make_pairs(pairs: Iterable[tuple[str, str, bool]], folds: np.ndarray) -> PairList:
    """A ``PairList`` from (path, path, same) rows, which may come one at a time: nine bytes a
    pair stay."""
    index: dict[str, int] = {}
    first, second, same = array('i'), array('i'), array('b')
    for one, other, is_same in pairs:
        first.append(index.setdefault(one, len(index)))
        second.append(index.setdefault(other, len(index)))
        same.append(is_same)
    return PairList(tuple(index), *(np.frombuffer(part, dtype=kind) for part, kind in (
        (first, np.int32), (second, np.int32), (same, bool))), np.asarray(folds, dtype=np.int16))


def stratified_folds(same: np.ndarray, num_folds: int = NUM_FOLDS, *,
                     where: str = '') -> np.ndarray:
    """(N,) int16 folds from 0: each kind cut into ``num_folds`` neighbouring parts whose sizes
    differ by <= 1.

    Args:
        same: (N,) bool, pairs of one person.
        where: names the list in the error.

    Raises:
        VisionError: VIS-DATA-1110 when a kind has fewer pairs than there are folds.
    """
    same = np.asarray(same, dtype=bool)
    folds = np.empty(len(same), dtype=np.int16)
    for kind, name in ((True, 'of one person'), (False, 'of two people')):
        rows = np.flatnonzero(same == kind)
        if len(rows) < num_folds:
            raise VisionError('VIS-DATA-1110', f'{len(rows)} pairs {name} cannot fill {num_folds} '
                              'folds', where=where, why='each fold needs pairs of both kinds',
                              do='use a longer list or fewer folds')
        folds[rows] = np.arange(len(rows)) * num_folds // len(rows)
    return folds


def random_pairs(labels: np.ndarray, num_pairs: int, *, seed: int = 0,
                 num_folds: int = NUM_FOLDS) -> PairList:
    """``num_pairs`` pairs of each kind among pictures with (N,) labels; paths are positions.

    Identities are drawn evenly, then two different pictures of one (same), or one picture each of
    two (other). Pairs may repeat.

    Raises:
        VisionError: VIS-DATA-1109 when no identity has two pictures, or there is only one.
    """
    labels, rng = np.asarray(labels), np.random.default_rng(seed)
    order = np.argsort(labels, kind='stable')
    names, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    several = np.flatnonzero(counts >= 2)
    if not len(several) or len(names) < 2:
        raise VisionError('VIS-DATA-1109', f'{len(names)} identities, {len(several)} of them with '
                          'two pictures', why='pairs of both kinds are needed',
                          do='bring a second picture of somebody, and somebody else')
    who = rng.choice(several, num_pairs)
    one = rng.integers(0, counts[who])
    another = (one + rng.integers(1, counts[who])) % counts[who]
    left = rng.integers(0, len(names), num_pairs)
    right = (left + rng.integers(1, len(names), num_pairs)) % len(names)
    ends = np.concatenate([
        np.stack([starts[who] + one, starts[who] + another], axis=1),
        np.stack([starts[who] + rng.integers(0, counts[who]) for who in (left, right)], axis=1)])
    same = np.arange(2 * num_pairs) < num_pairs
    return PairList(tuple(str(position) for position in range(len(labels))), order[ends[:, 0]],
                    order[ends[:, 1]], same, stratified_folds(same, num_folds))


def _fields(line: str) -> list[str]:
    for separator in ('\t', ','):
        if separator in line:
            return [field.strip() for field in line.split(separator)]
    return line.split()


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number, fields) of the lines that are not blank, one at a time."""
    try:
        with path.open(encoding='utf-8') as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _fields(line.rstrip('\n'))
    except (OSError, UnicodeDecodeError) as error:
        raise VisionError('VIS-DATA-1108', f'cannot read the pairs file {path}: {error}',
                          do='give a text file of pairs, in one of the forms of read_pairs'
                          ) from error


def _listed_pairs(path: Path, rows: Iterable[tuple[int, list[str]]]
                  ) -> Iterator[tuple[str, str, bool]]:
    for number, fields in rows:
        if len(fields) != 3 or fields[2] not in ('0', '1'):
            raise _bad_line(path, number, fields, 'a line of a list is: path path 0-or-1')
        if not all(map(stays_inside, fields[:2])):
            raise _bad_line(path, number, fields, 'a path stays inside of the image folder')
        yield fields[0], fields[1], fields[2] == '1'


def _two_line_pairs(path: Path, rows: Iterable[tuple[int, list[str]]]
                    ) -> Iterator[tuple[str, str, bool]]:
    rows = iter(rows)
    for one in rows:
        ends = [one, next(rows, (one[0] + 1, []))]
        for number, fields in ends:
            label = whole_number(fields[1]) if len(fields) == 2 else None
            if label is None or not stays_inside(fields[0]) or fields[1] != one[1][1]:
                raise _bad_line(path, number, fields, 'two lines make a pair: path label, and '
                                'path label with the same label')
        yield one[1][0], ends[1][1][0], label > 0


def _read_lfw(path: Path, header: list[int], rows: list[tuple[int, list[str]]]) -> PairList:
    num_folds, size = header if len(header) == 2 else (1, header[0])
    if len(rows) != num_folds * 2 * size or not rows:
        raise _bad_counts(path, f'{len(rows)} pairs where the header promises {num_folds} x 2 x '
                          f'{size}')
    pairs = [_lfw_pair(path, number, fields) for number, fields in rows]
    folds = np.arange(len(pairs)) // (2 * size)
    for fold in range(num_folds):
        num_same = sum(pair[2] for pair in pairs[fold * 2 * size:(fold + 1) * 2 * size])
        if num_same != size:
            raise _bad_counts(path, f'fold {fold} has {num_same} pairs of one person, not {size}')
    return make_pairs(pairs, folds)


def _lfw_pair(path: Path, number: int, fields: list[str]) -> tuple[str, str, bool]:
    if len(fields) == 3:
        fields = [fields[0], fields[1], fields[0], fields[2]]
        same = True
    else:
        same = False
    pictures = [whole_number(field) for field in fields[1::2]]
    if len(fields) != 4 or None in pictures or not all(map(stays_inside, fields[::2])):
        raise _bad_line(path, number, fields, 'a line is: name i j, or name i name j')
    return (LFW_NAME.format(name=fields[0], number=pictures[0]),
            LFW_NAME.format(name=fields[2], number=pictures[1]), same)


def _bad_line(path: Path, number: int, fields: list[str], rule: str) -> VisionError:
    return VisionError('VIS-DATA-1061', f'not a pair: {" ".join(fields)[:80]!r}',
                       where=f'{path}, line {number}', why=rule, do='correct or remove the line')


def _bad_counts(path: Path, what: str) -> VisionError:
    return VisionError('VIS-DATA-1062', what, where=str(path),
                       why='a list cut short would change the result without a word',
                       do='get the whole file again')
