"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vision.common.core.errors import VisionError

TEMPORARY = '.writing-'  # prefix of unfinished files; they are of no use after a crash
SEAL = b'sha256:' + b'0' * 64  # place of a digest inside the file that it is of
# A flipped bit can hide the key or the beginning of the value, not both.
_SEAL = re.compile(rb'"seal": ?"(.{71})"|"[^"]{4}": ?"(sha256:.{64})"', re.DOTALL)


@contextmanager
def atomic_write(path: Path, mode: str = 'wb', *,
                 before_rename: Callable[[Path], None] | None = None) -> Iterator[IO]:
    """Open a temporary file in the same folder; at the end it takes the place of ``path``.

    Whatever happens (error, kill, power loss), ``path`` holds either what it held before or the
    whole new content: the data reaches the disk before the name does.

    Args:
        before_rename: sees the temporary file, whole and on the disk; an error there leaves
            ``path`` as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f'{TEMPORARY}{path.name}-', dir=path.parent)
    try:
        with os.fdopen(handle, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if before_rename is not None:
            before_rename(Path(name))
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


def name_below(path: str | Path, root: str | Path) -> str:
    """The name of a file below ``root``; of one elsewhere its whole path, without the first
    slash: two files never get one name."""
    path, root = os.path.abspath(path), os.path.abspath(root)
    if os.path.commonpath([path, root]) == root:
        return os.path.relpath(path, root)
    return path.lstrip(os.sep)


def sealed(content: bytes) -> bytes:
    """Content whose entry ``"seal": SEAL`` holds the digest of all other bytes."""
    assert content.count(SEAL) == 1
    return content.replace(SEAL, b'sha256:' + hashlib.sha256(content).hexdigest().encode())


def broken_seal(content: bytes | memoryview, num_bytes: int | None = None) -> str:
    """What speaks against sealed content, or '' (also when it has no seal).

    Args:
        num_bytes: the seal is looked for in so many first bytes.
    """
    found = _SEAL.search(bytes(content[:num_bytes]))
    if found is None:
        return ''
    start, end = found.span(1 if found[1] is not None else 2)
    digest = hashlib.sha256(content[:start])
    digest.update(SEAL)
    digest.update(content[end:])
    is_whole = bytes(content[start:end]) == b'sha256:' + digest.hexdigest().encode()
    return '' if is_whole else 'its sha256 is not the one written inside it'


def sha256_of(path: Path) -> str:
    """64 hex digits over the whole file, which is never in memory at once."""
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
