"""From what stands on the command line to a source of frames."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from vision.stream.io.live_reader import CameraCapture, LiveReader, NetworkCapture, require_camera
from vision.stream.io.sources import ADDRESS, VIDEO_SUFFIXES, FrameFolder, VideoFile

Source = VideoFile | FrameFolder | LiveReader


def open_source(text: str, *, fps: float | None = None, keep_going: bool = False,
                max_reconnect: int = 10) -> Source:
    """A camera number, an rtsp:// or http(s):// address, a folder, or a video file.

    An http address that ends like a video file is read as a file: every frame once.
    """
    if text.isdecimal():
        require_camera(int(text))
        return LiveReader(lambda: CameraCapture(int(text)), f'camera {text}',
                          max_reconnect=max_reconnect)
    if ADDRESS.match(text):
        if Path(urlsplit(text).path).suffix.lower() in VIDEO_SUFFIXES and text[:4] == 'http':
            return VideoFile(text)
        return LiveReader(lambda: NetworkCapture(text), text, max_reconnect=max_reconnect)
    if Path(text).is_dir():
        return FrameFolder(text, fps=fps or 25.0, keep_going=keep_going)
    return VideoFile(text)


def output_stem(text: str) -> str:
    """Name of the output files: that of the file or folder; cameras and addresses get one."""
    if text.isdecimal():
        return f'camera{text}'
    path = urlsplit(text).path if ADDRESS.match(text) else text
    place = Path(path.rstrip('/'))
    return (place.name if not ADDRESS.match(text) and Path(text).is_dir() else place.stem) \
        or 'stream'
