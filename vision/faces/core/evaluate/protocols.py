"""File lists of the face protocols that have forms of their own: CFP and IJB-B/C.

Only lists are read here; the pictures come from their publishers under their own terms. Lists of
IJB have up to 15.7 million pairs, so they are read in blocks into arrays.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.plain_values import MOST, stays_inside
from vision.faces.core.data.pairs import PairList, make_pairs
from vision.faces.core.evaluate.verification import unit_rows

MOST_ID = 2**31 - 1  # ids are kept as int32
READ_BYTES = 1 << 22  # of a long list at a time
POOL_ROWS = 1 << 14  # embeddings pooled at a time


def read_cfp(protocol: Path, kind: str = 'FP') -> PairList:
    """Celebrities in frontal and profile pose (Sengupta et al., WACV 2016).

    Args:
        protocol: the folder ``Protocol`` of the set, with Pair_list_F.txt, Pair_list_P.txt and
            Split/FP/01..10/{same,diff}.txt.
        kind: 'FP' frontal against profile, 'FF' frontal against frontal.

    Returns:
        pairs with paths relative to the set's folder (Data/Images/...), ten folds.
    """
    if kind not in ('FP', 'FF'):
        raise _bad(str(protocol), f'kind {kind!r}: CFP has FP and FF')
    images = {side: _numbered_paths(Path(protocol) / f'Pair_list_{side}.txt')
              for side in set(kind)}
    rows, folds = [], []
    for fold in range(10):
        for name, same in (('same', True), ('diff', False)):
            path = Path(protocol) / 'Split' / kind / f'{fold + 1:02d}' / f'{name}.txt'
            for number, line in _lines(path):
                ends = line.split(',')
                try:
                    rows.append((images[kind[0]][ends[0].strip()],
                                 images[kind[1]][ends[1].strip()], same))
                except (KeyError, IndexError) as error:
                    raise _bad(f'{path}, line {number}',
                               f'{line!r} names no two images of the lists') from error
                folds.append(fold)
    return make_pairs(rows, np.array(folds))


@dataclass(frozen=True)
class Templates:
    """IJB: pictures in templates (sets of pictures of one person) and the pairs to verify.

    Attributes:
        paths: N pictures; templates, media: (N,) int32 ids (frames of a video share a medium).
        landmarks: (N, 5, 2) px; detection_scores: (N,).
        names: (T,) int32 sorted ids of the templates.
        first, second: (P,) int32 positions in ``names``; same: (P,) bool.
    """

    paths: tuple[str, ...]
    templates: np.ndarray
    media: np.ndarray
    landmarks: np.ndarray
    detection_scores: np.ndarray
    names: np.ndarray
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray

    def places(self, ids: np.ndarray, where: str) -> np.ndarray:
        """Positions in ``names`` of template ids, (N,) each; ``where`` names their list in the
        error.

        Raises:
            VisionError: VIS-DATA-1073, a template without a picture.
        """
        return _places(self.names, ids, where)


def read_ijb(meta: Path, name: str) -> Templates:
    """1:1 lists of IJB-B or IJB-C in the form that InsightFace distributes.

    Args:
        meta: folder with NAME_face_tid_mid.txt, NAME_template_pair_label.txt and
            NAME_name_5pts_score.txt.
        name: 'ijbb' or 'ijbc'.
    """
    meta = Path(meta)
    paths, ids = _named_numbers(meta / f'{name}_face_tid_mid.txt', 2)
    others, points = _named_numbers(meta / f'{name}_name_5pts_score.txt', 11)
    if paths != others:
        raise _bad(str(meta), 'the lists of templates and of landmarks do not name the same '
                   'pictures in one order')
    if (ids != np.floor(ids)).any() or ids.min() < 0 or ids.max() > MOST_ID:
        raise _bad(str(meta), f'ids of templates or media that are not whole, 0 to {MOST_ID}')
    ids = ids.astype(np.int32)
    names = np.unique(ids[:, 0])
    where = meta / f'{name}_template_pair_label.txt'
    pairs = read_triples(where)
    if pairs[:, 2].max() > 1:
        raise _bad(str(where), f'a pair is labelled {pairs[:, 2].max()}, not 0 or 1')
    for top in range(0, len(pairs), READ_BYTES):
        part = pairs[top:top + READ_BYTES, :2]
        part[:] = _places(names, part.ravel(), str(where)).reshape(part.shape)
    return Templates(paths, ids[:, 0], ids[:, 1], points[:, :10].reshape(-1, 5, 2), points[:, 10],
                     names, pairs[:, 0], pairs[:, 1], pairs[:, 2] == 1)


def read_triples(path: Path) -> np.ndarray:
    """(P, 3) int32 of a list with three whole numbers on each line, read in blocks.

    The memory is 12 bytes a line and some 30 times ``READ_BYTES``, whatever the lines hold.
    """
    try:
        with path.open('rb') as file:
            num_lines = sum(block.count(b'\n') for block in iter(lambda: file.read(READ_BYTES),
                                                                 b'')) + 1
            found, place, line = np.empty((num_lines, 3), dtype=np.int32), 0, 1
            file.seek(0)
            while block := file.read(READ_BYTES):
                block += file.readline()
                rows = _triples(block, path, line)
                found[place:place + len(rows)] = rows
                place += len(rows)
                line += block.count(b'\n')
    except OSError as error:
        raise _bad(str(path), f'cannot be read: {error}') from error
    if not place:
        raise _bad(str(path), 'the list is empty')
    return found[:place]


def _triples(block: bytes, path: Path, first_line: int) -> np.ndarray:
    """(n, 3) of whole lines; the first bad line is named."""
    block = block if block.endswith(b'\n') else block + b'\n'
    text = np.frombuffer(block, np.uint8)
    is_digit = (text >= ord('0')) & (text <= ord('9'))
    ends = np.flatnonzero(text == ord('\n'))
    begins = is_digit & ~np.concatenate([[False], is_digit[:-1]])
    per_line = np.diff(np.cumsum(begins, dtype=np.int32)[ends], prepend=0)
    is_bad = (per_line != 3) & (per_line != 0)
    strange = np.flatnonzero(~is_digit & ~np.isin(text, np.frombuffer(b' \t\r\n', np.uint8)))
    is_bad[np.searchsorted(ends, strange)] = True
    # Of blanks alone NumPy would make a number.
    numbers = np.fromstring(block, sep=' ') if begins.any() and not is_bad.any() else np.zeros(0)
    if is_bad.any() or (numbers > MOST_ID).any():
        place = int(is_bad.argmax()) if is_bad.any() else int(np.searchsorted(
            np.cumsum(per_line), np.flatnonzero(numbers > MOST_ID)[0], side='right'))
        line = block.split(b'\n', place + 1)[place].decode('utf-8', 'replace')
        raise _bad(f'{path}, line {first_line + place}', f'{line[:80]!r} is not three whole '
                   f'numbers up to {MOST_ID}')
    return numbers.reshape(-1, 3)


def read_ijb_subjects(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """1:N list (gallery G1, G2 or probes) -> its distinct template ids (T,) and their subjects
    (T,), int64.

    Raises:
        VisionError: VIS-DATA-1073, no such table, or a template of two subjects.
    """
    try:
        with Path(path).open(newline='', encoding='utf-8') as file:
            rows = [(int(row['TEMPLATE_ID']), int(row['SUBJECT_ID']))
                    for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise _bad(str(path), 'not a table with TEMPLATE_ID and SUBJECT_ID in every row'
                   ) from error
    if any(abs(number) > MOST for row in rows for number in row):
        raise _bad(str(path), f'an id is larger than {MOST}')
    subjects: dict[int, int] = {}
    for template, subject in rows:
        if subjects.setdefault(template, subject) != subject:
            raise _bad(str(path), f'template {template} belongs to two subjects')
    if not subjects:
        raise _bad(str(path), 'the table is empty')
    return (np.array(list(subjects), dtype=np.int64),
            np.array(list(subjects.values()), dtype=np.int64))


def pool_templates(embeddings: np.ndarray, templates: np.ndarray, media: np.ndarray, *,
                   weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(template ids, unit rows): mean over each medium, then sum over the media of a template.

    Pictures of one video are alike and would outvote still pictures. Only the direction of an
    embedding counts. The memory beside embeddings (N, d) and result is that of ``POOL_ROWS``
    rows, or of the largest template, whatever N is; embeddings may be memory-mapped.

    Args:
        weights: (N,) factor of each picture, such as the score of its detection.
    """
    order = np.lexsort((media, templates))
    template, medium = templates[order], media[order]
    is_new = np.concatenate([[True], template[1:] != template[:-1]])
    groups = np.flatnonzero(is_new | np.concatenate([[True], medium[1:] != medium[:-1]]))
    starts = np.flatnonzero(is_new)
    pooled = np.empty((len(starts), embeddings.shape[1]))
    first = 0
    while first < len(starts):
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + POOL_ROWS)))
        begin, end = starts[first], starts[last] if last < len(starts) else len(order)
        rows = unit_rows(embeddings[order[begin:end]]).astype(np.float64)
        if weights is not None:
            rows *= weights[order[begin:end], None]
        inside = groups[np.searchsorted(groups, begin):np.searchsorted(groups, end)] - begin
        means = np.add.reduceat(rows, inside) / np.diff(inside, append=end - begin)[:, None]
        pooled[first:last] = np.add.reduceat(means, np.searchsorted(inside,
                                                                    starts[first:last] - begin))
        first = last
    return template[starts], unit_rows(pooled)


def _places(names: np.ndarray, ids: np.ndarray, where: str) -> np.ndarray:
    places = np.minimum(np.searchsorted(names, ids), len(names) - 1)
    unknown = np.unique(ids[names[places] != ids])
    if len(unknown):
        raise _bad(where, f'{len(unknown)} templates have no picture, first: {unknown[0]}')
    return places


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, one at a time."""
    number = 0
    try:
        with path.open(encoding='utf-8') as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(str(path), f'cannot be read: {error}') from error
    if not number:
        raise _bad(str(path), 'the list is empty')


def _numbered_paths(path: Path) -> dict[str, str]:
    paths = {}
    for number, line in _lines(path):
        fields = line.split()
        # CFP's own lists name pictures from the folder of the lists: ../Data/Images/...
        if len(fields) != 2 or not stays_inside(fields[1], levels_up=1):
            raise _bad(f'{path}, line {number}', f'{line[:80]!r} is not: number path')
        paths[fields[0]] = fields[1].removeprefix('../')
    return paths


def _named_numbers(path: Path, width: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and (N, width) float64 of lines: path number ..."""
    names, numbers = [], array('d')
    for number, line in _lines(path):
        name, *fields = line.split()
        if len(fields) != width:
            raise _bad(f'{path}, line {number}', f'{len(fields) + 1} fields where {width + 1} '
                       'belong')
        if not stays_inside(name):
            raise _bad(f'{path}, line {number}', f'{name[:80]!r} leads out of its folder')
        try:
            numbers.extend(map(float, fields))
        except ValueError as error:
            raise _bad(f'{path}, line {number}', str(error)) from error
        names.append(name)
    found = np.frombuffer(numbers).reshape(-1, width)
    if not len(found) or not np.isfinite(found).all():
        raise _bad(str(path), 'no picture, or numbers that are not finite')
    return tuple(names), found


def _bad(where: str, what: str) -> VisionError:
    return VisionError('VIS-DATA-1073', f'protocol list: {what}', where=where,
                       why='results on a part of a protocol are not results of the protocol',
                       do='get the lists again from their publisher')
