"""Unpack a zip or tar of others: counted and measured first, whole or not at all.

An archive may name files outside of its folder, links and devices, the same file twice, and hold
a thousand times the bytes that it has.
"""

from __future__ import annotations

import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from vision.common.core.errors import VisionError
from vision.common.core.plain_values import stays_inside

# MOT17 has 33,000 files and 6 GB, ImageNet's training set 1.3 million and 150 GB. Pictures do not
# shrink, and text of annotations by ten or twenty.
MAX_FILES, MAX_BYTES, MAX_RATIO = 3_000_000, 500 << 30, 200
SPARE_BYTES = 64 << 20  # a small archive may hold this much at any ratio
MAX_NAME, MAX_PARTS = 255, 20  # letters of a part, parts of a name
_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, folder: Path, *, max_files: int = MAX_FILES,
           max_bytes: int = MAX_BYTES) -> int:
    """Write the files of an archive under ``folder``; their number.

    They are written beside the folder first and moved when all are there. Permissions, owners and
    times of the archive are not taken over.

    Raises:
        VisionError: VIS-DATA-227, a member that is not allowed, or more than there may be;
            VIS-DATA-231, no archive, or a damaged one; VIS-DATA-235, a file that is there already.
    """
    archive, folder = Path(archive), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.unpacking-') as scratch:
        try:
            number = _write(archive, Path(scratch), max_files, max_bytes)
        except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error,
                NotImplementedError, RuntimeError, ValueError) as error:
            if isinstance(error, VisionError):
                raise
            raise VisionError('VIS-DATA-231', f'{archive} cannot be unpacked: {error}',
                              where=str(archive), why='a zip or tar file is wanted; was the '
                              'download cut short?', do='get it again') from error
        for part in sorted(Path(scratch).iterdir()):
            if (folder / part.name).exists():
                raise VisionError('VIS-DATA-235', f'{folder / part.name} exists already',
                                  where=str(archive), do='unpack into an empty folder')
            part.rename(folder / part.name)
    return number


def _write(archive: Path, scratch: Path, max_files: int, max_bytes: int) -> int:
    most = min(max_bytes, MAX_RATIO * archive.stat().st_size + SPARE_BYTES)
    seen: set[str] = set()
    room = most
    for member in _members(archive, max_files):
        if member.name in seen:
            raise _refused(archive, f'it names {member.name!r:.80} twice')
        seen.add(member.name)
        if len(seen) > max_files:
            raise _refused(archive, f'it has more than {max_files} files')
        if member.size > room:
            raise _refused(archive, f'it holds more than {most} bytes')
        target = scratch / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        # 'x': two names that a file system takes for one do not overwrite each other.
        with member.open() as source, target.open('xb') as file:
            while data := source.read(min(_CHUNK, room + 1)):
                room -= len(data)
                if room < 0:
                    raise _refused(archive, f'it holds more than {most} bytes')
                file.write(data)
    if not seen:
        raise ValueError('there is no file in it')
    return len(seen)


def _members(archive: Path, max_files: int) -> Iterator[_Member]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as content:
            if len(content.infolist()) > max_files:
                raise _refused(archive, f'it has more than {max_files} entries')
            for info in content.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise _refused(archive, f'{info.filename!r:.80} is a link or a device')
                name = _name(archive, info.orig_filename)
                if not info.is_dir():
                    yield _Member(name, info.file_size, lambda info=info: content.open(info))
        return
    with tarfile.open(archive) as content:
        number = 0
        for entry in content:
            number += 1
            if number > max_files:
                raise _refused(archive, f'it has more than {max_files} entries')
            if not (entry.isreg() or entry.isdir()) or entry.issparse():
                raise _refused(archive, f'{entry.name!r:.80} is a link, a device or has holes')
            name = _name(archive, entry.name)
            if entry.isreg():
                yield _Member(name, entry.size, lambda entry=entry: content.extractfile(entry))


def _name(archive: Path, name: str) -> str:
    """The name in one form, e.g. a/b of ./a//b/."""
    parts = PurePosixPath(name).parts
    if name in ('.', './'):  # the folder itself, as tar writes it
        return '.'
    if not stays_inside(name) or '..' in parts or len(parts) > MAX_PARTS \
            or any(len(part.encode('utf-8', 'replace')) > MAX_NAME for part in parts):
        raise _refused(archive, f'it names {name!r:.80}, outside of its folder or of no use')
    return PurePosixPath(*parts).as_posix()


def _refused(archive: Path, what: str) -> VisionError:
    return VisionError('VIS-DATA-227', f'{archive} is not unpacked: {what}', where=str(archive),
                       why='an archive is unpacked into its folder alone, and no further than '
                       'files of this kind reach', do='get it from its publisher; nothing was '
                       'written')
