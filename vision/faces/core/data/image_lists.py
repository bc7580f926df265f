"""Which picture shows whom: folders of identities, and list files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision.classify.core.folders import list_image_folder
from vision.common.core.errors import VisionError
from vision.common.core.picture_files import PICTURE_SUFFIXES, is_picture
from vision.common.core.plain_values import stays_inside, whole_number


@dataclass(frozen=True)
class LabelledPaths:
    """Pictures relative to ``root``, their (N,) int64 labels, and a name for each label."""

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    names: tuple[str, ...]


def without_labels(root: Path, paths: Sequence[str]) -> LabelledPaths:
    """Pictures of nobody in particular: all have label 0."""
    return LabelledPaths(Path(root), tuple(paths), np.zeros(len(paths), dtype=np.int64), ('',))


def read_pictures(root: Path) -> LabelledPaths:
    """Every picture below a folder, by name, without labels.

    Raises:
        VisionError: VIS-DATA-1075, there is none.
    """
    root = Path(root)
    paths = sorted(str(path.relative_to(root)) for path in filter(is_picture, root.rglob('*')))
    if not paths:
        raise VisionError('VIS-DATA-1075', f'no picture in {root}', why=f'looked for '
                          f'{", ".join(PICTURE_SUFFIXES)}, also in folders of it',
                          do='name another one')
    return without_labels(root, paths)


def read_identity_folders(root: Path) -> LabelledPaths:
    """``root/NAME/*.jpg``; labels follow the sorted names. Errors: see ``list_image_folder``."""
    found = list_image_folder(root)
    return LabelledPaths(Path(root), found.paths, found.labels, found.classes)


def read_label_list(path: Path, root: Path) -> LabelledPaths:
    """Lines ``path label``, labels from 0 without gaps; tabs where paths hold spaces.

    Raises:
        VisionError: VIS-DATA-1124, it cannot be read; VIS-DATA-1125, a line cannot; VIS-DATA-1072,
            the first label that no line has.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VisionError('VIS-DATA-1124', f'cannot read the list {path}: {error}',
                          do='give a text file with lines: path label') from error
    paths, labels = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = line.split('\t') if '\t' in line else line.split()
        label = whole_number(fields[1]) if len(fields) == 2 else None
        if label is None or not stays_inside(fields[0]):
            raise VisionError('VIS-DATA-1125', f'{line[:80]!r} is not: path label',
                              where=f'{path}, line {number}', why='a label is a whole number '
                              'from 0, a path stays inside of the image folder',
                              do='correct the line; use a tab when paths hold spaces')
        paths.append(fields[0])
        labels.append(label)
    found = np.array(labels, dtype=np.int64)
    used = np.unique(found)
    gap = next((label for label, seen in enumerate(used) if label != seen), None)
    if not len(used) or gap is not None:
        raise VisionError('VIS-DATA-1072', f'label {gap or 0} has no picture', where=str(path),
                          why='an identity without a picture would stay an untrained class',
                          do='number the identities from 0 without gaps')
    return LabelledPaths(Path(root), tuple(paths), found, tuple(str(label) for label in used))
