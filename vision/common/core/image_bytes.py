"""Is an image file whole, and of a size that one can decode? Its header is asked first.

Decoders fill a cut JPEG with grey and say nothing, and make room for as many pixels as a header of
a few bytes promises.
"""

from __future__ import annotations

import re
import struct

MAX_PIXELS = 1 << 27  # 400 MB in three channels; the largest camera has 1.5 * 10^8
_PNG, _JPEG = b'\x89PNG\r\n\x1a\n', b'\xff\xd8'
# Markers of JPEG that say a size (start of frame), and those without a length behind them.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_BARE = {0x01, *range(0xD0, 0xD9)}
_PNM = re.compile(rb'P([1-7])(?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})[\s#]')
_PAM = re.compile(rb'P7\s.*?WIDTH\s+(\d{1,9})\s.*?HEIGHT\s+(\d{1,9})\s', re.S)


def what_is_wrong(data: bytes) -> str:
    """Why these bytes are not to be decoded; empty when nothing speaks against them.

    Read are JPEG, PNG, WebP, BMP, TIFF and PNM: formats that data sets have, and whose size is in
    the header. Other decoders are not reached.
    """
    if not data:
        return 'the file is empty'
    try:
        size = image_size(data)
    except struct.error:
        size = None
    if size is None:
        return f'{len(data)} bytes that cannot be decoded: no JPEG, PNG, WebP, BMP, TIFF or ' \
            'PNM, or no whole header'
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        return f'{size[0]} x {size[1]} pixels, of at most {MAX_PIXELS}'
    return _what_is_cut(data)


def image_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) as the header says; None for a format that is not known.

    Raises:
        struct.error: the header is cut.
    """
    if data[:8] == _PNG:
        return struct.unpack_from('>II', data, 16)
    if data[:2] == _JPEG:
        return _jpeg_size(data)
    if data[:4] == b'RIFF' and data[8:12] == b'WEBP':
        return _webp_size(data)
    if data[:4] in (b'II*\0', b'MM\0*'):
        return _tiff_size(data)
    if data[:2] == b'BM':
        if struct.unpack_from('<I', data, 14)[0] == 12:
            return struct.unpack_from('<HH', data, 18)
        width, height = struct.unpack_from('<ii', data, 18)
        return width, abs(height)  # negative: rows from the top
    found = _PAM.match(data[:4096]) if data[:2] == b'P7' else _PNM.match(data[:4096])
    return (int(found[found.lastindex - 1]), int(found[found.lastindex])) if found else None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """The largest of all frames: a decoder may believe another one than the first."""
    place, found = 2, None
    while place + 4 <= len(data):
        if data[place] != 0xFF:  # between segments only bytes to be skipped
            place = data.find(b'\xff', place)
            if place < 0:
                break
            continue
        marker = data[place + 1]
        if marker == 0xFF or marker in _BARE or marker == 0:
            place += 1 if marker == 0xFF else 2
            continue
        if marker == 0xDA and found:  # pixels follow
            break
        if marker in _FRAMES:
            height, width = struct.unpack_from('>HH', data, place + 5)
            found = max(found or (0, 0), (width, height), key=lambda size: size[0] * size[1])
        place += 2 + struct.unpack_from('>H', data, place + 2)[0]
    return found


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b'VP8X':
        sides = (int.from_bytes(data[start:start + 3], 'little') + 1 for start in (24, 27))
        return tuple(sides) if len(data) >= 30 else None
    if kind == b'VP8L':
        bits, = struct.unpack_from('<I', data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b'VP8 ':
        width, height = struct.unpack_from('<HH', data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    """Of the first directory, which is the picture that is decoded."""
    order = '<' if data[:2] == b'II' else '>'
    start, = struct.unpack_from(order + 'I', data, 4)
    count, = struct.unpack_from(order + 'H', data, start)
    sides = {}
    for entry in range(count):
        place = start + 2 + 12 * entry
        tag, kind = struct.unpack_from(order + 'HH', data, place)
        if tag in (256, 257):
            sides[tag], = struct.unpack_from(order + ('H' if kind == 3 else 'I'), data, place + 8)
    return (sides[256], sides[257]) if len(sides) == 2 else None


def _what_is_cut(data: bytes) -> str:
    if data[:2] == _JPEG:
        # Inside a scan 0xff is always followed by 0 or a restart marker, so an end marker behind
        # the last start of scan ends the picture; a thumbnail's own end comes before that.
        whole = data.rfind(b'\xff\xd9') > data.rfind(b'\xff\xda')
        return '' if whole else f'JPEG without end marker after {len(data)} bytes'
    if data[:8] == _PNG:
        return '' if b'IEND' in data[-64:] else f'PNG without end after {len(data)} bytes'
    if data[:4] == b'RIFF':
        size = int.from_bytes(data[4:8], 'little') + 8
        return '' if len(data) >= size else f'WebP of {len(data)} instead of {size} bytes'
    return ''
