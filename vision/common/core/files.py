"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vision.common.core.errors import VisionError

TEMPORARY = '.writing-'  # prefix of unfinished files; they are of no use after a crash


@contextmanager
def atomic_write(path: Path, mode: str = 'wb') -> Iterator[IO]:
    """Open a temporary file in the same folder; at the end it takes the place of ``path``.

    Whatever happens (error, kill, power loss), ``path`` holds either what it held before or the
    whole new content: the data reaches the disk before the name does.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f'{TEMPORARY}{path.name}-', dir=path.parent)
    try:
        with os.fdopen(handle, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's own mode would hide it from the group
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def remove_unfinished(folder: Path) -> list[str]:
    """Delete what writers that were killed left in a folder; the names."""
    names = [path.name for path in Path(folder).glob(f'{TEMPORARY}*')]
    for name in names:
        (Path(folder) / name).unlink(missing_ok=True)
    return names


def is_disk_full(error: BaseException | None) -> bool:
    """Does this error, or one that caused it, say that a file could not grow?"""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__ or error.__context__
    return False


def refuse_same_file(source: str | Path, target: str | Path) -> None:
    """For commands that make a new file of an old one.

    Raises:
        VisionError: VIS-INPUT-108, the result would take the place of what it is made of.
    """
    if Path(target).exists() and Path(source).exists() and os.path.samefile(source, target):
        raise VisionError('VIS-INPUT-108', f'the result would replace {source}',
                          why='it is made of this file, which would be lost',
                          do='give the result another name')


def refuse_unwritable(*paths: str | Path | None) -> None:
    """Before long work, for each file that it will write; missing folders are made.

    Raises:
        VisionError: VIS-ENV-109, the file could not be written in the end.
    """
    for path in filter(None, paths):
        try:
            if Path(path).is_dir():
                raise IsADirectoryError(errno.EISDIR, 'this is a folder')
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=Path(path).parent):
                pass
        except OSError as error:
            raise VisionError('VIS-ENV-109', f'{path} cannot be written', where=str(path),
                              why=error.strerror or str(error),
                              do='name another file, before the work that it is for') from error


def sha256_of(path: Path) -> str:
    with Path(path).open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
