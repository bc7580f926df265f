"""Is an image file whole? Decoders fill a cut JPEG with grey and say nothing."""

from __future__ import annotations


def what_is_cut(data: bytes) -> str:
    """Why these bytes are no whole image file; empty when nothing speaks against them.

    Known: JPEG (an end marker after the last scan; trailing bytes are allowed), PNG, WebP. Other
    formats are left to the decoder.
    """
    if not data:
        return 'the file is empty'
    if data[:2] == b'\xff\xd8':
        # Inside a scan 0xff is always followed by 0 or a restart marker, so an end marker behind
        # the last start of scan ends the picture; a thumbnail's own end comes before that.
        whole = data.rfind(b'\xff\xd9') > data.rfind(b'\xff\xda')
        return '' if whole else f'JPEG without end marker after {len(data)} bytes'
    if data[:8] == b'\x89PNG\r\n\x1a\n':
        return '' if b'IEND' in data[-64:] else f'PNG without end after {len(data)} bytes'
    if data[:4] == b'RIFF' and data[8:12] == b'WEBP':
        size = int.from_bytes(data[4:8], 'little') + 8
        return '' if len(data) >= size else f'WebP of {len(data)} instead of {size} bytes'
    return ''
