"""The one place where video is opened for reading: containers and protocols by a list.

A playlist is a file that names other files and addresses, and FFmpeg knows it by its content: an
``.avi`` that begins with ``ffconcat`` shows its neighbours, an ``.m3u8`` whatever a server inside
of the house answers. Only containers that hold their own pictures are on the list.
"""

from __future__ import annotations

from pathlib import Path

import av

from vision.common.core.image_bytes import MAX_PIXELS

# FFmpeg's names of demuxers. Not among them: concat, hls, dash, sdp, image2, lavfi, devices.
CONTAINERS = ('mov', 'mp4', 'm4a', '3gp', '3g2', 'mj2', 'matroska', 'webm', 'avi', 'mpegts',
              'mpeg', 'mpegvideo', 'flv', 'ogg', 'asf', 'm4v', 'h264', 'hevc', 'ivf', 'obu', 'mxf',
              'gif', 'mjpeg', 'mpjpeg')
_OF_HTTP = ('http', 'https', 'httpproxy', 'tcp', 'tls')
_OF_RTSP = ('rtsp', 'rtsps', 'rtp', 'srtp', 'udp', 'tcp', 'tls')
_CODEC_OPTIONS = {'max_pixels': str(MAX_PIXELS)}
# Titles may be in any encoding, or damaged, and nothing here reads them. PyAV 19 takes them all.
_ANY_TITLE = {} if int(av.__version__.split('.')[0]) >= 19 else {'metadata_errors': 'replace'}
Container = av.container.InputContainer


def open_file(path: str | Path) -> Container:
    """A video file. Raises av.error.FFmpegError, OSError: ``why_closed`` says what that means."""
    # 'file:' and the whole path: a name such as concat:a|b is a name, and nothing else.
    return _opened(f'file:{Path(path).absolute()}', CONTAINERS, ('file',), {}, None)


def open_address(address: str, timeout_s: float, **options: str) -> Container:
    """A stream of an rtsp:// or http(s):// address; where it is sent on to other protocols, or
    to a playlist, it does not open."""
    if address.lower().startswith('rtsp'):
        return _opened(address, ('rtsp',), _OF_RTSP, options, timeout_s)
    return _opened(address, CONTAINERS, _OF_HTTP, options, timeout_s)


def holds_video(container: Container) -> bool:
    """Is there a video stream, and a decoder for it?"""
    return bool(container.streams.video) and container.streams.video[0].codec_context is not None


def why_closed(error: Exception) -> str:
    """In words, why a file or an address could not be opened."""
    if isinstance(error, av.error.ArgumentError):
        return 'it is a playlist, or another container or protocol than those that are read'
    # Without the number, which is FFmpeg's own, and the address, which the message has already.
    return getattr(error, 'strerror', None) or str(error)


def _opened(address: str, containers: tuple[str, ...], protocols: tuple[str, ...],
            options: dict[str, str], timeout_s: float | None) -> Container:
    container = av.open(address, timeout=timeout_s, **_ANY_TITLE, options=options | dict(
        format_whitelist=','.join(containers), protocol_whitelist=','.join(protocols)))
    if holds_video(container):
        container.streams.video[0].codec_context.options = _CODEC_OPTIONS
    return container
