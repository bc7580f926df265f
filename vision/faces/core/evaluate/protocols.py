"""File lists of the face protocols: CFP, AgeDB and IJB-B/C (LFW's is in ``pairs``).

Only lists are read here; the images come from their publishers under their own terms.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.plain_values import MOST, stays_inside, whole_number
from vision.faces.core.data.pairs import PairList, make_pairs
from vision.faces.core.evaluate.verification import unit_rows


def read_cfp(protocol: Path, kind: str = 'FP') -> PairList:
    """Celebrities in frontal and profile pose (Sengupta et al., WACV 2016).

    Args:
        protocol: the folder ``Protocol`` of the set, with Pair_list_F.txt, Pair_list_P.txt and
            Split/FP/01..10/{same,diff}.txt.
        kind: 'FP' frontal against profile, 'FF' frontal against frontal.
    Returns:
        pairs with paths as the lists name them, ten folds.
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
class AgeRecord:
    """One picture of AgeDB, from its name ``number_Name_age_gender.jpg``."""

    path: str
    name: str
    age: int
    gender: str


def read_agedb(folder: Path) -> list[AgeRecord]:
    """Pictures of AgeDB (Moschoglou et al., CVPRW 2017), by name.

    The verification pairs of AgeDB-30 (30 years apart) are published as a ``.bin`` or a list: read
    them with ``read_bin`` or ``read_pairs``.
    """
    records = []
    for path in sorted(Path(folder).glob('*.jpg')):
        fields = path.stem.split('_')
        age = whole_number(fields[-2], most=999) if len(fields) >= 4 else None
        if age is None or fields[-1] not in ('m', 'f'):
            raise _bad(str(path), 'its name is not number_Name_age_gender')
        records.append(AgeRecord(path.name, '_'.join(fields[1:-2]), age, fields[-1]))
    if not records:
        raise _bad(str(folder), 'no jpg there')
    return records


@dataclass(frozen=True)
class Templates:
    """IJB: pictures in templates (sets of pictures of one person) and the pairs to verify.

    Attributes:
        paths: N pictures; templates, media: (N,) int64 ids (frames of a video share a medium).
        landmarks: (N, 5, 2) px; detection_scores: (N,).
        first, second: (P,) int64 template ids; same: (P,) bool.
    """

    paths: tuple[str, ...]
    templates: np.ndarray
    media: np.ndarray
    landmarks: np.ndarray
    detection_scores: np.ndarray
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray


def read_ijb(meta: Path, name: str) -> Templates:
    """1:1 lists of IJB-B or IJB-C in the form that InsightFace distributes.

    Args:
        meta: folder with NAME_face_tid_mid.txt, NAME_template_pair_label.txt and
            NAME_name_5pts_score.txt.
        name: 'ijbb' or 'ijbc'.
    """
    meta = Path(meta)
    faces = _table(meta / f'{name}_face_tid_mid.txt', 3)
    points = _table(meta / f'{name}_name_5pts_score.txt', 12)
    pairs = _table(meta / f'{name}_template_pair_label.txt', 3)
    if [row[0] for row in faces] != [row[0] for row in points]:
        raise _bad(str(meta), 'the lists of templates and of landmarks do not name the same '
                   'pictures in one order')
    templates, media = (_column(faces, place, np.int64, meta) for place in (1, 2))
    first, second, same = (_column(pairs, place, np.int64, meta) for place in range(3))
    unknown = np.setdiff1d(np.concatenate([first, second]), templates)
    if len(unknown):
        raise _bad(str(meta), f'{len(unknown)} templates of the pairs have no picture, first: '
                   f'{unknown[0]}')
    numbers = np.stack([_column(points, place, float, meta) for place in range(1, 12)], axis=1)
    if not np.isfinite(numbers).all():
        raise _bad(str(meta), 'landmarks or scores that are not finite')
    return Templates(tuple(row[0] for row in faces), templates, media,
                     numbers[:, :10].reshape(-1, 5, 2), numbers[:, 10], first, second, same == 1)


def read_ijb_subjects(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """1:N list (gallery G1, G2 or probes) -> its distinct template ids and their subjects."""
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


def pool_templates(embeddings: np.ndarray, templates: np.ndarray,
                   media: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(template ids, unit rows): mean over each medium, then sum over the media of a template.

    Pictures of one video are alike and would outvote still pictures. The length of an embedding is
    its weight: give unit rows for equal weights, raw ones to let the norm speak for quality, and
    multiply by ``detection_scores`` to weigh by the detector.
    """
    groups, group_of = np.unique(np.stack([templates, media], axis=1), axis=0,
                                 return_inverse=True)
    group_of = group_of.ravel()
    sums = np.zeros((len(groups), embeddings.shape[1]))
    np.add.at(sums, group_of, embeddings)
    means = sums / np.bincount(group_of)[:, None]
    names, place = np.unique(groups[:, 0], return_inverse=True)
    pooled = np.zeros((len(names), embeddings.shape[1]))
    np.add.at(pooled, place.ravel(), means)
    return names, unit_rows(pooled)


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(str(path), f'cannot be read: {error}') from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)
             if line.strip()]
    if not lines:
        raise _bad(str(path), 'the list is empty')
    return lines


def _numbered_paths(path: Path) -> dict[str, str]:
    paths = {}
    for number, line in _lines(path):
        fields = line.split()
        # CFP's own lists name pictures from the folder of the lists: ../Data/Images/...
        if len(fields) != 2 or not stays_inside(fields[1], levels_up=1):
            raise _bad(f'{path}, line {number}', f'{line[:80]!r} is not: number path')
        paths[fields[0]] = fields[1]
    return paths


def _table(path: Path, width: int) -> list[list[str]]:
    rows = []
    for number, line in _lines(path):
        fields = line.split()
        if len(fields) != width:
            raise _bad(f'{path}, line {number}', f'{len(fields)} fields where {width} belong')
        if not stays_inside(fields[0]):
            raise _bad(f'{path}, line {number}', f'{fields[0][:80]!r} leads out of its folder')
        rows.append(fields)
    return rows


def _column(rows: list[list[str]], place: int, kind: type, where: Path) -> np.ndarray:
    try:
        return np.array([row[place] for row in rows]).astype(kind)
    except (ValueError, OverflowError) as error:
        raise _bad(str(where), f'column {place + 1}: {error}') from error


def _bad(where: str, what: str) -> VisionError:
    return VisionError('VIS-DATA-1073', f'protocol list: {what}', where=where,
                       why='results on a part of a protocol are not results of the protocol',
                       do='get the lists again from their publisher')
