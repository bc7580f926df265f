"""From what a user names to a source of frames."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.picture_files import is_video
from vision.stream.io.live_reader import CameraCapture, LiveReader, NetworkCapture, require_camera
from vision.stream.io.sources import (
    ADDRESS,
    FrameFolder,
    FrameSequence,
    VideoFile,
)

Source = VideoFile | FrameFolder | FrameSequence | LiveReader
Named = str | os.PathLike | int | Iterable[np.ndarray | str | Path]


def open_source(source: Named | Source, *, fps: float | None = None, keep_going: bool = False,
                max_reconnect: int = 10) -> Source:
    """A camera number, an rtsp:// or http(s):// address, a folder, a video file, or pictures.

    An http address that ends like a video file is read as a file: every frame once.

    Args:
        source: as text, path, number, or an iterable of arrays (H, W, 3) uint8 BGR or of paths;
            one that is open is given back.
        fps: frames per second of a folder or of pictures, which do not tell (default: 25).

    Raises:
        VisionError: VIS-INPUT-1718 it is nothing of these, and what opening it raises.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, (str, os.PathLike)) or type(source) is int:
        return _open_named(os.fspath(source) if not isinstance(source, int) else str(source),
                           fps=fps, keep_going=keep_going, max_reconnect=max_reconnect)
    if not isinstance(source, Iterable):
        raise VisionError('VIS-INPUT-1718', f'a {type(source).__name__} is no source of frames',
                          why='it is a path, a folder, a camera number, an address, or an '
                          'iterable of pictures', do='give one of these')
    return FrameSequence(source, fps=fps or 25.0)


def _open_named(text: str, *, fps: float | None, keep_going: bool, max_reconnect: int) -> Source:
    if text.isdecimal():
        require_camera(int(text))
        return LiveReader(lambda: CameraCapture(int(text)), f'camera {text}',
                          max_reconnect=max_reconnect)
    if ADDRESS.match(text):
        if is_video(urlsplit(text).path) and text[:4] == 'http':
            return VideoFile(text)
        return LiveReader(lambda: NetworkCapture(text), text, max_reconnect=max_reconnect)
    if Path(text).is_dir():
        return FrameFolder(text, fps=fps or 25.0, keep_going=keep_going)
    return VideoFile(text)


def output_stem(source: Named) -> str:
    """Name of the output files: that of the file or folder; cameras, addresses and pictures in
    memory get one."""
    if not isinstance(source, (str, os.PathLike, int)):
        return FrameSequence.path
    text = str(source)
    if text.isdecimal():
        return f'camera{text}'
    path = urlsplit(text).path if ADDRESS.match(text) else text
    place = Path(path.rstrip('/'))
    return (place.name if not ADDRESS.match(text) and Path(text).is_dir() else place.stem) \
        or 'stream'
