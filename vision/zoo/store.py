"""From a name of the zoo to a verified file on this machine.

Order: the file that came with the package, the cache, the mirror folder, the addresses. Whatever
the route, the SHA-256 of the index is compared before the path is handed out, each time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from vision.common.core.config_inputs import nearest_names
from vision.common.core.errors import VisionError, names_like
from vision.common.core.files import atomic_write, sha256_of
from vision.zoo import index, transfer
from vision.zoo.index import Entry

PREFIX = 'zoo:'
LOCK_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Settings:
    """Where files lie and what may be asked of the network.

    Args:
        cache: folder of verified files (``VISION_ZOO_CACHE``).
        mirror: folder with copies under the published file names (``VISION_ZOO_MIRROR``); read
            only, asked before the network.
        is_offline: never open a connection (``VISION_OFFLINE=1``).
        http_hosts: hosts that may be spoken to without TLS; a test's loopback server.
        pause_s: wait before a transfer is tried again; doubled each time.
    """

    cache: Path
    mirror: Path | None = None
    is_offline: bool = False
    http_hosts: tuple[str, ...] = ()
    pause_s: float = 1.0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """What the variables above say; default: ``~/.cache/frugal-vision/zoo``, no mirror,
        online.

        Raises:
            VisionError: VIS-CONFIG-605 or VIS-CONFIG-620, ``VISION_OFFLINE`` or
                ``VISION_ZOO_MIRROR`` makes no sense.
        """
        cache = environ.get('VISION_ZOO_CACHE') or '~/.cache/frugal-vision/zoo'
        mirror = environ.get('VISION_ZOO_MIRROR')
        offline = environ.get('VISION_OFFLINE', '0').lower()
        if offline not in ('', '0', '1', 'false', 'true'):
            raise VisionError('VIS-CONFIG-605', f'VISION_OFFLINE={offline!r} is not 0 or 1.',
                              do='export VISION_OFFLINE=1, or unset it')
        if mirror and not Path(mirror).expanduser().is_dir():
            raise VisionError('VIS-CONFIG-620', f'VISION_ZOO_MIRROR={mirror!r} is not a folder.',
                              do='set it to the folder that holds the files, or unset it')
        return cls(Path(cache).expanduser(), Path(mirror).expanduser() if mirror else None,
                   offline in ('1', 'true'))


def fetch(name: str | Entry, *, settings: Settings | None = None,
          progress: transfer.Progress | None = None) -> Path:
    """Path of the verified file of a zoo entry; downloads it when it is not here.

    Raises:
        VisionError: VIS-INPUT-602 unknown name, VIS-ENV-603 full disk, VIS-NET-604 not https,
            VIS-NET-606 unreachable, VIS-NET-607 not here and offline, VIS-CKPT-608 wrong hash,
            VIS-NET-618 to be fetched by hand, VIS-CKPT-609 missing in the package, VIS-RUN-610
            another process holds the lock, VIS-ENV-612 a folder that cannot be written.
    """
    entry = name if isinstance(name, Entry) else index.find(name)
    if entry.is_packaged:
        return _packaged(entry)
    settings = settings or Settings.from_environment()
    target = _cached(entry, settings)
    try:
        with _writing(target, entry.size_bytes), FileLock(f'{target}.lock', LOCK_TIMEOUT_S):
            if target.exists() and entry.fits(sha256_of(target)):
                return target
            target.unlink(missing_ok=True)  # damaged since it was verified: fetch it again
            if not _from_mirror(entry, target, settings.mirror):
                _from_network(entry, target, settings, progress)
            return target
    except Timeout as error:
        raise VisionError('VIS-RUN-610', f'another process has been fetching {entry.name} for '
                          f'{LOCK_TIMEOUT_S:.0f} s.', where=f'{target}.lock',
                          do='wait for it, or end it and run this again') from error


def whereabouts(entry: Entry, settings: Settings | None = None) -> str:
    """Where ``fetch`` will find it: ``package``, ``cache``, ``mirror``, ``download`` or ``by
    hand``. The hash is compared by ``fetch`` and not here."""
    if entry.is_packaged:
        return 'package'
    settings = settings or Settings.from_environment()
    if _cached(entry, settings).is_file():
        return 'cache'
    if settings.mirror and (settings.mirror / entry.file_name).is_file():
        return 'mirror'
    return 'by hand' if entry.is_by_hand else 'download'


def resolve(reference: str | os.PathLike, *, settings: Settings | None = None) -> Path:
    """``zoo:NAME`` -> path of the verified file; anything else is a path that must exist.

    Raises:
        VisionError: VIS-INPUT-611, there is no such file; of ``zoo:NAME`` what ``fetch`` raises.
    """
    text = os.fspath(reference)
    if text.startswith(PREFIX):
        return fetch(text[len(PREFIX):], settings=settings)
    path = Path(text).expanduser()
    if not path.is_file():
        near = names_like(text, list(index.load_index()))
        raise VisionError('VIS-INPUT-611', f'no file {text!r}.', where=str(path.absolute()),
                          why=nearest_names(path) or
                          (f'nearest in the zoo: {", ".join(near)}' if near else ''),
                          do=f'give an existing file, or {PREFIX}NAME (vision zoo list)')
    return path


def copy_to(source: Path, destination: Path) -> Path:
    """Copy under its published name into a folder, or to a file name; whole or not at all."""
    target = destination / _published_name(source) if names_folder(destination) else destination
    with _writing(target, source.stat().st_size):
        _copy(source, target)
    return target


def names_folder(path: Path) -> bool:
    """Whether a path means a folder: it is one, or its name has no ending."""
    return path.is_dir() or not path.suffix


@contextlib.contextmanager
def _writing(target: Path, size_bytes: int) -> Iterator[None]:
    """Make the folder of ``target``; what the disk says against it becomes one clear error."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise transfer.disk_full(target, size_bytes) from error
        raise VisionError('VIS-ENV-612', f'{target.name} cannot be written: {error}.',
                          where=str(target.parent), do='name a folder that you may write: '
                          'VISION_ZOO_CACHE for the cache, --dest for a copy') from error


def _cached(entry: Entry, settings: Settings) -> Path:
    """The digest in the name: a new version of the entry never meets the old file."""
    return settings.cache / f'{entry.sha256[:12]:0<12}-{entry.file_name}'


def _published_name(source: Path) -> str:
    head, dash, rest = source.name.partition('-')
    is_cached = len(head) == 12 and dash and all(c in '0123456789abcdef' for c in head)
    return rest if is_cached else source.name


def _packaged(entry: Entry) -> Path:
    path = index.PACKAGE_WEIGHTS / entry.file_name
    if not path.is_file():
        raise VisionError('VIS-CKPT-609', f'{entry.name}: {path.name} is not installed.',
                          where=str(path.parent), why='the package was installed incompletely',
                          do='install it again from a full clone: pip install -e .')
    _require_hash(entry, path, f'{path} (left as it is)')
    return path


def _from_mirror(entry: Entry, target: Path, mirror: Path | None) -> bool:
    source = mirror / entry.file_name if mirror else None
    if source is None or not source.is_file():
        return False
    _require_hash(entry, source, f'{source} (left as it is)')
    _copy(source, target)
    return True


def _from_network(entry: Entry, target: Path, settings: Settings,
                  progress: transfer.Progress | None) -> None:
    if entry.is_by_hand:
        raise VisionError(
            'VIS-NET-618', f'{entry.name} has to be fetched by hand.',
            where=', '.join(entry.addresses), why='only 8 digits of its SHA-256 are known: too '
            'few to trust whatever a network sends', do=_by_hand(entry))
    if settings.is_offline:
        raise VisionError(
            'VIS-NET-607', f'{entry.name} is not on this machine and VISION_OFFLINE=1.',
            where=f'{settings.cache}' + (f', {settings.mirror}' if settings.mirror else ''),
            do=f'{_by_hand(entry)}; or unset VISION_OFFLINE')
    part, failures = target.with_name(f'{target.name}.part'), []
    for address in entry.addresses:
        try:
            _verified_part(entry, address, part, settings, progress)
            part.replace(target)
            return
        except transfer.TransferError as error:
            failures.append(f'{address}: {error}')
    raise VisionError('VIS-NET-606', f'{entry.name} could not be downloaded.',
                      where='; '.join(failures), do=_by_hand(entry) + _kept(part))


def _verified_part(entry: Entry, address: str, part: Path, settings: Settings,
                   progress: transfer.Progress | None) -> None:
    was_resumed = part.exists()
    options = dict(progress=progress, http_hosts=settings.http_hosts, pause_s=settings.pause_s)
    transfer.download(address, part, entry.size_bytes, **options)
    if was_resumed and sha256_of(part) != entry.sha256:
        part.unlink()  # the old beginning may be the bad piece: once more from nothing
        transfer.download(address, part, entry.size_bytes, **options)
    try:
        _require_hash(entry, part, f'{address} (the file was removed)')
    except VisionError:
        part.unlink()
        raise


def _require_hash(entry: Entry, path: Path, where: str) -> None:
    found = sha256_of(path)
    if entry.fits(found):
        return
    raise VisionError(
        'VIS-CKPT-608', f'{entry.name}: SHA-256 is {found}, expected {entry.sha256}'
        f'{"..." * entry.is_by_hand}.', where=where,
        why='the file was damaged or exchanged' + ('' if entry.verified else '; or the official '
            'file differs from the copy that the hash was recorded from (entry is not verified)'),
        do='try again; if it stays, take the file from a mirror (VISION_ZOO_MIRROR) and report it')


def _by_hand(entry: Entry) -> str:
    return (f'put {entry.file_name} into a folder and set VISION_ZOO_MIRROR to that folder '
            f'(its SHA-256 must {"begin with" if entry.is_by_hand else "be"} {entry.sha256})')


def _kept(part: Path) -> str:
    return f'; {part.stat().st_size} bytes are kept and used next time' if part.exists() else ''


def _copy(source: Path, target: Path) -> None:
    transfer.require_space(target, source.stat().st_size)
    with source.open('rb') as reader, atomic_write(target) as writer:
        shutil.copyfileobj(reader, writer, transfer.CHUNK_BYTES)
