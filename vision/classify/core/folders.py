"""Lists of images: one folder per class, or a file of names and labels."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.picture_files import PICTURE_SUFFIXES, is_picture
from vision.common.core.plain_values import stays_inside, whole_number


@dataclass(frozen=True)
class ImageList:
    """Images with their classes.

    Attributes:
        classes: class names; their positions are the labels.
        paths: (N,) paths, relative to the folder that was listed, with '/'.
        labels: (N,) int64.
    """

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)


def list_image_folder(root: str | Path, *, classes: Sequence[str] | None = None) -> ImageList:
    """Images under ``root/CLASS/``, sorted, so that the order is the same on every machine; other
    files are passed over.

    Args:
        classes: folder names in the order of their labels; default: all folders, sorted.

    Raises:
        VisionError: VIS-DATA-1201 no such folder, VIS-DATA-1202 no class folder in it,
            VIS-DATA-1203 classes without an image, VIS-DATA-1204 folders of classes missing.
    """
    root = Path(root)
    names = class_folders(root)
    if classes is not None:
        missing = [name for name in classes if name not in names]
        if missing:
            near = [difflib.get_close_matches(name.strip().lower(), names, 1) or ['nothing near']
                    for name in missing[:10]]
            raise VisionError('VIS-DATA-1204', f'{len(missing)} of {len(classes)} classes have no '
                              'folder: ' + ', '.join(f'{name!r} -> {found[0]}' for name, found
                                                     in zip(missing, near, strict=False)),
                              where=str(root), why=f'the folders are {", ".join(names[:20])}'
                              + (f' and {len(names) - 20} more' if len(names) > 20 else ''),
                              do='give classes as the folders are called, or complete the data')
        names = list(classes)
    paths, labels, empty = [], [], []
    for label, name in enumerate(names):
        found = sorted(path.relative_to(root).as_posix() for path in (root / name).rglob('*')
                       if is_picture(path) and path.is_file())
        if not found:
            empty.append(name)
        paths += found
        labels += [label] * len(found)
    if empty:
        raise VisionError('VIS-DATA-1203', f'{len(empty)} of {len(names)} class folders hold no '
                          f'image, first {empty[0]!r}', where=str(root / empty[0]),
                          why=f'image files end in {", ".join(PICTURE_SUFFIXES)}',
                          do='remove the folder, or put its images there')
    return ImageList(tuple(names), tuple(paths), np.asarray(labels, dtype=np.int64))


def class_folders(root: Path) -> list[str]:
    """Sorted names of the folders in ``root``, without hidden ones.

    Raises:
        VisionError: VIS-DATA-1201, there is no such folder; VIS-DATA-1202, none inside it.
    """
    if not root.is_dir():
        raise VisionError('VIS-DATA-1201', f'there is no folder {root}', where=str(root),
                          do='check the path, in a config data_root and data_prefix; '
                          'datasets/README.md shows the trees. A link will do')
    names = sorted(path.name for path in root.iterdir()
                   if path.is_dir() and not path.name.startswith('.'))
    if not names:
        raise VisionError('VIS-DATA-1202', f'{root} holds no class folder', where=str(root),
                          why='each class is a folder of images', do='give the folder above the '
                          'classes, e.g. train/ of train/CLASS/IMAGE.jpg')
    return names


def read_image_list(path: str | Path, *, num_classes: int) -> tuple[list[str], np.ndarray]:
    """A text file with ``NAME LABEL`` on each line, label from 0: (names, (N,) int64 labels).

    Raises:
        VisionError: VIS-DATA-1205, the file is not there; VIS-DATA-1206, it is empty;
            VIS-DATA-1207, a line.
    """
    path = Path(path)
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VisionError('VIS-DATA-1205', f'the image list {path} cannot be read',
                          where=str(path), why=str(error),
                          do='make it with datasets/imagenet/prepare.py') from error
    names, labels = [], []
    for number, line in enumerate(lines, start=1):
        name, _, text = line.strip().rpartition(' ')
        label = whole_number(text, most=num_classes - 1)
        if label is None or not stays_inside(name):
            raise VisionError('VIS-DATA-1207', f'line {number} is not NAME LABEL: {line[:80]!r}',
                              where=f'{path}:{number}',
                              why=f'a label is a number from 0 to {num_classes - 1}',
                              do='make it with datasets/imagenet/prepare.py')
        names.append(name)
        labels.append(label)
    if not names:
        raise VisionError('VIS-DATA-1206', f'the image list {path} is empty', where=str(path),
                          do='make it with datasets/imagenet/prepare.py')
    return names, np.asarray(labels, dtype=np.int64)
