"""Which addresses may be opened on the word of somebody else: public hosts alone.

An address that a file, a redirect or a visitor names can point at this machine or at the network
behind it. A user's own command line may name what it wants; it is not asked here.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from vision.common.core.errors import VisionError

_LABEL = re.compile(r'(?!-)[a-z0-9-]{1,63}(?<!-)')
# Names that a resolver answers from this machine or this network.
_LOCAL_ENDINGS = ('localhost', 'local', 'internal', 'intranet', 'lan', 'home', 'corp', 'arpa',
                  'test', 'invalid', 'example', 'onion')
_TRANSLATED = ipaddress.ip_network('64:ff9b::/96')  # numbers of IPv4 in their last 32 bits
Resolve = Callable[[str], list[str]]


def names_public_host(address: str) -> bool:
    """Does an address name a host that may be public, as far as its letters tell?

    Not: numbers in any spelling (``127.1``, ``0x7f000001``), names without a dot, names of local
    networks, user names, odd ports, letters that are taken for others.
    """
    if not isinstance(address, str) or not address.isascii() or len(address) > 2048 \
            or re.search(r'[\s\\<>"`{}|^]|[\x00-\x1f\x7f]', address):
        return False
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or '', parts.port
    except ValueError:
        return False
    if parts.username is not None or parts.password is not None or '@' in parts.netloc \
            or '%' in parts.netloc or port not in (None, 80, 443, 554, 322, 8080, 8443, 8554):
        return False
    labels = host.removesuffix('.').split('.')
    is_name = len(labels) > 1 and all(_LABEL.fullmatch(label) for label in labels) \
        and not labels[-1][0].isdigit() and len(host) <= 253
    return is_name and labels[-1] not in _LOCAL_ENDINGS


def require_public_address(address: str, schemes: Collection[str],
                           resolve: Resolve | None = None) -> list[str]:
    """Refuse an address of a stranger that is no public one; the numbers that it stands for.

    Whoever opens it must open one of these numbers, and ask again after each redirect: a name may
    mean another machine a moment later.

    Args:
        schemes: allowed ones, e.g. ('https', 'rtsps').
        resolve: name -> numbers; the system's resolver when None.

    Raises:
        VisionError: VIS-NET-353.
    """
    scheme = address.partition(':')[0].lower() if isinstance(address, str) else ''
    if scheme not in schemes or not address[len(scheme):].startswith('://'):
        raise _refused(address, f'its scheme is none of {", ".join(schemes)}')
    if not names_public_host(address):
        raise _refused(address, 'it names no public host')
    host = urlsplit(address).hostname or ''
    try:
        found = (resolve or _resolve)(host)
        numbers = [ipaddress.ip_address(number.partition('%')[0]) for number in found]
    except (OSError, ValueError, UnicodeError) as error:
        raise _refused(address, f'its host cannot be found: {error}') from error
    if not numbers or not all(map(_is_public, numbers)):
        raise _refused(address, 'its host is a machine of a private network')
    return found


def _is_public(number: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    inner = getattr(number, 'ipv4_mapped', None) or getattr(number, 'sixtofour', None)
    teredo = getattr(number, 'teredo', None)
    if isinstance(number, ipaddress.IPv6Address) and number in _TRANSLATED:
        inner = ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)
    return number.is_global and not number.is_multicast and teredo is None \
        and (inner is None or inner.is_global)


def _resolve(host: str) -> list[str]:
    return sorted({row[4][0] for row in socket.getaddrinfo(host, None)})


def _refused(address: str, why: str) -> VisionError:
    return VisionError('VIS-NET-353', f'the address {address!r:.120} is not opened: {why}',
                       why='an address of somebody else may point at this machine, or at the '
                       'network behind it', do='upload the file itself')
