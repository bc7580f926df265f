"""One resumable transfer over https.

Why not a library: pooch checks SHA-256 but starts again from nothing after a cut (1.9), torch.hub
checks eight digits and does not resume, huggingface_hub resumes but serves only the hub and
checks sizes, not hashes. All that is missing is the Range header, so this is the standard
library's urllib with that header, the size cap of the index, and https kept across redirects.
Files of the hub have plain https addresses and come the same way.
"""

from __future__ import annotations

import errno
import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection
from pathlib import Path
from urllib.parse import urlsplit

from vision.common.core.addresses import names_public_host, require_public_address
from vision.common.core.errors import VisionError
from vision.version import __version__

CHUNK_BYTES = 1 << 18
TIMEOUT_S = 30.0
NUM_TRIES = 4
# Answers below 500 that may differ at the next try: time-out, our Range, too many requests.
PASSING_STATUSES = {408, 416, 429}
Progress = Callable[[int, int], None]  # (bytes that are here, bytes of the whole file)


class TransferError(Exception):
    """This address did not give the file; another one may."""


def download(address: str, part: Path, size_bytes: int, *, progress: Progress | None = None,
             http_hosts: Collection[str] = (), pause_s: float = 1.0) -> None:
    """Bring ``part`` to its full length, going on where an earlier try left it.

    Args:
        part: unfinished file; what it already holds is asked for no more.
        size_bytes: length of the whole file; a server that sends more is cut off.
        http_hosts: hosts that may be spoken to without TLS (tests use 127.0.0.1); none by default.
        pause_s: wait before the second try; doubled for each further one.

    Raises:
        TransferError: the address did not give these bytes.
        VisionError: VIS-ENV-603 the disk is full, VIS-NET-604 an address that is not https,
            VIS-NET-353 a redirect to a machine of this network.
    """
    require_https(address, http_hosts)
    opener = urllib.request.build_opener(_HttpsRedirects(http_hosts))
    require_space(part, size_bytes)
    for attempt in range(NUM_TRIES):
        try:
            _continue(opener, address, part, size_bytes, progress)
            return
        except urllib.error.HTTPError as error:
            reason = f'HTTP {error.code} {error.reason}'
            if error.code == 416:  # what we hold reaches beyond the server's file
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in PASSING_STATUSES:
                raise TransferError(reason) from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT):
                part.unlink(missing_ok=True)
                raise disk_full(part, size_bytes) from error
            reason = str(getattr(error, 'reason', error)) or type(error).__name__
        if attempt + 1 < NUM_TRIES:
            time.sleep(pause_s * 2**attempt)
    raise TransferError(f'{reason} ({NUM_TRIES} tries)')


def _continue(opener, address: str, part: Path, size_bytes: int,
              progress: Progress | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have > size_bytes:
        part.unlink()
        have = 0
    if have == size_bytes:
        return
    # Without identity a proxy may compress, and the byte positions would be those of another file.
    headers = {'User-Agent': f'frugal-vision/{__version__}', 'Accept-Encoding': 'identity'}
    if have:
        headers['Range'] = f'bytes={have}-'
    with opener.open(urllib.request.Request(address, headers=headers),
                     timeout=TIMEOUT_S) as response:
        is_rest = response.status == 206 and response.headers.get(
            'Content-Range', '').startswith(f'bytes {have}-')
        have = have if is_rest else 0  # the server knows no Range: it sends everything again
        with part.open('ab' if is_rest else 'wb') as file:
            while chunk := response.read(CHUNK_BYTES):
                have += len(chunk)
                if have > size_bytes:
                    break
                file.write(chunk)
                if progress:
                    progress(have, size_bytes)
    if have > size_bytes:
        part.unlink()
        raise TransferError(f'sends more than the {size_bytes} bytes of the index')
    if have < size_bytes:
        raise http.client.IncompleteRead(b'', size_bytes - have)


def require_https(address: str, http_hosts: Collection[str]) -> None:
    """Refuse an address before anything is sent; ``http_hosts`` may be spoken to without TLS.

    Raises:
        VisionError: VIS-NET-604, not https, or no public host.
    """
    try:
        parts = urlsplit(address)
        if parts.scheme == 'http' and parts.hostname in http_hosts:
            return
    except ValueError:
        parts = urlsplit('')
    if parts.scheme != 'https' or not names_public_host(address):
        raise VisionError('VIS-NET-604', f'refused to read {address!r:.200}: it is not https, or '
                          'names no public host.', why='on the way of an unencrypted transfer '
                          'anybody may change it, and a file of the zoo is no reason to ask '
                          'machines of this network', do='use an https address')


def require_space(part: Path, size_bytes: int) -> None:
    """Refuse a transfer whose missing rest finds no room; ``part`` is what has come so far.

    Raises:
        VisionError: VIS-ENV-603.
    """
    have = part.stat().st_size if part.exists() else 0
    if shutil.disk_usage(part.parent).free < size_bytes - have:
        raise disk_full(part, size_bytes)


def disk_full(path: Path, size_bytes: int) -> VisionError:
    """The error, not raised, of a folder without room for so many bytes.

    Returns:
        VisionError: VIS-ENV-603.
    """
    free = shutil.disk_usage(path.parent).free
    return VisionError('VIS-ENV-603', f'no room for {size_bytes} bytes ({free} bytes are free).',
                       where=str(path.parent), why='the disk or the quota is full',
                       do='free some space, or set VISION_ZOO_CACHE to a folder on another disk')


class _HttpsRedirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, http_hosts: Collection[str]) -> None:
        self.http_hosts = http_hosts

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        require_https(newurl, self.http_hosts)
        # Where a proxy asks for us, names may mean nothing here, and it has rules of its own.
        if newurl.startswith('https:') and 'https' not in urllib.request.getproxies():
            require_public_address(newurl, ('https',))
        return super().redirect_request(req, fp, code, msg, headers, newurl)
