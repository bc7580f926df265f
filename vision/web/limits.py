"""How much a visitor may ask for, judged before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av

from vision.common.core.errors import VisionError
from vision.common.nn.images import decode_image, size_of_image
from vision.stream.io.containers import holds_video, open_file
from vision.stream.io.sources import VideoFile

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for.

    Args:
        max_mb: of one upload, in 2**20 bytes.
        max_seconds: of a clip, and of one look through the camera.
        max_frames: of a clip.
        max_pixels: of a frame, or of a picture; 2**24 is a little less than 4,096 x 4,096.
        job_seconds: after so many seconds of work a job ends with what it has.
        num_jobs: that run at once.
        num_waiting: that may wait; the next one is told to come back.
        store_mb: of all uploads and results of all visitors together.
        idle_seconds: after which a visitor who did not say goodbye counts as gone.

    Raises:
        VisionError: a limit that is not above 0.
    """

    max_mb: float = 200
    max_seconds: float = 120
    max_frames: int = 9000
    max_pixels: int = 1 << 24
    job_seconds: float = 600
    num_jobs: int = 1
    num_waiting: int = 8
    store_mb: float = 2000
    idle_seconds: float = 3600

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise VisionError('VIS-CONFIG-1777', f'{name}={value!r}', where=name,
                                  why='a limit is above 0', do='give a larger number')

    @property
    def max_bytes(self) -> int:
        """``max_mb`` in bytes."""
        return round(self.max_mb * MEGABYTE)


@dataclass(frozen=True)
class Clip:
    """What the packets of a video say. Args: fps, of its header; duration_s, of its frames."""

    num_frames: int
    duration_s: float
    fps: float
    width: int
    height: int


def check_clip(path: str | Path, limits: Limits) -> Clip:
    """A video that may be worked on.

    Packets are counted, not decoded, and only until there are too many: what a header says of its
    length may be wrong, and 200 MB hold days of a black picture.

    Raises:
        VisionError: VIS-INPUT-1771 no video, VIS-INPUT-1772 too large a picture, VIS-INPUT-1773
            too long.
    """
    try:
        with open_file(path) as container:
            if not holds_video(container):
                raise no_video(path, 'it holds no video stream that can be decoded')
            stream = container.streams.video[0]
            check_pixels(stream.codec_context.width, stream.codec_context.height, limits,
                         Path(path).name)
            fps = float(stream.average_rate or stream.guessed_rate or 25)
            num_frames, end_s = _count(container, stream, fps, limits, Path(path).name)
            if not num_frames:
                raise no_video(path, 'it holds no frame')
            return Clip(num_frames, end_s, fps, stream.codec_context.width,
                        stream.codec_context.height)
    except (av.error.FFmpegError, OSError) as error:
        raise no_video(path, getattr(error, 'strerror', '') or type(error).__name__) from error


def _count(container, stream, fps: float, limits: Limits, name: str) -> tuple[int, float]:
    num_frames, first_s, last_s = 0, None, 0.0
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            num_frames += 1
            if packet.pts is not None:
                time_s = float(packet.pts * packet.time_base)
                first_s = time_s if first_s is None else min(first_s, time_s)
                last_s = max(last_s, time_s)
            length_s = max(last_s - (first_s or 0.0) + 1 / fps, 0.0)
            if num_frames > limits.max_frames or length_s > limits.max_seconds:
                raise VisionError(
                    'VIS-INPUT-1773', f'{name} is longer than {limits.max_seconds:g} s or has more'
                    f' than {limits.max_frames} frames', where=f'frame {num_frames}, '
                    f'{length_s:.0f} s', why='longer clips would keep other visitors waiting',
                    do='cut it, or start the page with a larger --max-seconds')
    except av.error.FFmpegError:  # damaged: the frames before are worked on
        pass
    return num_frames, max(last_s - (first_s or 0.0) + 1 / fps, num_frames and 1 / fps)


def first_frame(path: str | Path):
    """The first picture of a clip that ``check_clip`` let pass, (H, W, 3) uint8 BGR.

    Raises:
        VisionError: VIS-INPUT-1771 no frame can be decoded.
    """
    for frame in VideoFile(path):
        return frame.image_bgr
    raise no_video(path, 'none of its frames can be decoded')


def check_pixels(width: int, height: int, limits: Limits, name: str) -> None:
    """Raises VisionError, VIS-INPUT-1772: the picture is too large."""
    if width * height > limits.max_pixels:
        raise VisionError('VIS-INPUT-1772', f'{name} is {width} x {height} px',
                          why=f'the page takes at most {limits.max_pixels:,} pixels',
                          do='make it smaller')


def read_picture(path: str | Path, limits: Limits):
    """An uploaded picture as (H, W, 3) uint8 BGR; its header is asked before it is decoded.

    Raises:
        VisionError: VIS-DATA-210 no picture or damaged, VIS-INPUT-1772 too large.
    """
    name = Path(path).name
    data = Path(path).read_bytes()
    check_pixels(*size_of_image(data, name, do='choose a JPEG, PNG, WebP or BMP file'), limits,
                 name)
    return decode_image(data, name, do='choose a JPEG, PNG, WebP or BMP file')


def bad_field(field: str, value: object, rule: str, do: str = 'correct the field') -> VisionError:
    """The error, not raised, of a field of the page that holds what it does not take.

    Returns:
        VisionError: with the rule.
    """
    return VisionError('VIS-INPUT-1775', f'{field}: {value!r:.80}', where=field,
                       why=f'it must be {rule}', do=do)


def no_video(path: str | Path, why: str) -> VisionError:
    """The error, not raised, of a file that cannot be worked on.

    Returns:
        VisionError: with the reason.
    """
    return VisionError('VIS-INPUT-1771', f'{Path(path).name} cannot be read as a video', why=why,
                       do='choose an mp4, mov, mkv, webm or avi file that plays elsewhere')
