"""Where frames come from: a video file, a folder of frames, pictures in memory."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.picture_files import PICTURE_SUFFIXES, is_picture
from vision.common.nn.images import read_image
from vision.stream.io.containers import holds_video, open_address, open_file, why_closed

ADDRESS = re.compile(r'^(rtsp|rtsps|http|https)://', re.I)
NETWORK_TIMEOUT_S = 10.0
LIVE = 'live'
NUM_NAMED = 10  # missing frames that are named
# Containers without a frame count tell a duration only, that of their longest stream; a video
# stream may end so much earlier before the file counts as cut short.
END_TOLERANCE_S, END_TOLERANCE_SHARE = 1.0, 0.05


@dataclass(frozen=True, eq=False)
class SourceFrame:
    """One frame and when it was.

    Args:
        image_bgr: (H, W, 3) uint8.
        timestamp_s: since the first frame of a file or folder, or since a live source began.
        arrival_s: when it came, on time.monotonic().
        status: of a live source at that moment: LIVE, or what was lost a moment before; '' for
            files.
    """

    image_bgr: np.ndarray
    timestamp_s: float
    arrival_s: float
    status: str = ''


def fit(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """The image in size (H, W), the size of the stream's first frame; None: as it is."""
    if size is None or image.shape[:2] == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


class VideoFile:
    """Frames of a video file, none dropped. ``problem`` is set when the file was damaged.

    Iterating again reads it again from the beginning.
    """

    is_live = False
    num_dropped = num_reconnects = 0

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.problem: VisionError | None = None
        with self._open() as container:
            stream = container.streams.video[0]
            self.fps = float(stream.average_rate or stream.guessed_rate or 25)
            self.num_frames = stream.frames or self._from_duration(container)
            self._is_count_exact = bool(stream.frames)

    def _open(self) -> av.container.InputContainer:
        is_address = bool(ADDRESS.match(self.path))
        if not is_address and not Path(self.path).is_file():
            raise VisionError('VIS-VIDEO-502', f'there is no video {self.path}',
                              where=str(Path(self.path).absolute()),
                              do='check the path; a folder, a camera number or an rtsp:// or '
                                 'http:// address are possible too')
        try:
            container = open_address(self.path, NETWORK_TIMEOUT_S) if is_address \
                else open_file(self.path)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise self._unreadable(why_closed(error)) from error
        if not holds_video(container):
            container.close()
            raise self._unreadable('it holds no video stream that can be decoded')
        return container

    def _unreadable(self, why: str) -> VisionError:
        return VisionError('VIS-VIDEO-503', f'the video {self.path} cannot be read',
                           where=self.path, why=why,
                           do='play it in another program; if it is cut short, copy it again')

    def _from_duration(self, container) -> int:
        return round((container.duration or 0) / av.time_base * self.fps)

    def __iter__(self) -> Iterator[SourceFrame]:
        size, self.problem = None, None
        tally, last = _Tally(), -1.0
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = 'AUTO'
            for frame in tally.decoded(container, stream):
                try:
                    image = fit(upright(frame), size)
                except (av.error.FFmpegError, OSError, ValueError, cv2.error):
                    tally.num_bad += 1  # of a kind that cannot be turned into colours
                    continue
                size = image.shape[:2]
                stamp = frame.time if frame.time is not None and frame.time > last \
                    else last + 1 / self.fps
                last = max(stamp, 0.0)
                yield SourceFrame(image, last, time.monotonic())
        self.problem = self._judge(tally, last + 1 / self.fps)

    def _judge(self, tally: _Tally, end_s: float) -> VisionError | None:
        """Damage shows as unreadable data, or as data that ends before the header says.

        Frames alone do not tell: a trimmed clip keeps packets that are not to be shown.
        """
        if self._is_count_exact:
            is_short = tally.num_packets < self.num_frames
        else:
            duration = self.num_frames / self.fps
            is_short = end_s < duration - max(END_TOLERANCE_S, END_TOLERANCE_SHARE * duration)
        if not tally.num_bad and not is_short:
            return None
        total = max(self.num_frames, tally.num_frames)
        return VisionError('VIS-VIDEO-504', f'{tally.num_frames} of {total} frames decoded',
                           where=self.path,
                           why=f'the file is cut short or damaged ({tally.num_bad} packets or '
                               'frames with errors)',
                           do='copy the file again, or accept it with --keep-going; the frames '
                              'that decoded are in the output')


class _Tally:
    """Decodes a stream as far as it goes and counts what was good and bad."""

    def __init__(self) -> None:
        self.num_packets = self.num_frames = self.num_bad = 0

    def decoded(self, container, stream) -> Iterator[av.VideoFrame]:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
                self.num_packets += packet.size > 0
                self.num_bad += packet.is_corrupt
                frames = packet.decode()
            except StopIteration:
                return
            except av.error.InvalidDataError:
                self.num_bad += 1
                continue
            except (av.error.FFmpegError, OSError):
                self.num_bad += 1
                return
            for frame in frames:
                self.num_frames += 1
                self.num_bad += frame.is_corrupt
                yield frame


def upright(frame: av.VideoFrame) -> np.ndarray:
    """The picture (H, W, 3) uint8 BGR as players show it: phones store a rotation beside the
    frames."""
    image = frame.to_ndarray(format='bgr24')
    quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise, as np.rot90 turns
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image


class FrameFolder:
    """Images of a folder in natural order, none dropped.

    Args:
        fps: frames per second that the folder stands for.
        keep_going: accept gaps in the numbering and pictures that cannot be read.

    Attributes:
        problem: the last fault that was met: VIS-DATA-506, gaps in the numbering; VIS-DATA-507, a
            frame that cannot be decoded, where the iteration ends unless ``keep_going``.

    Raises:
        VisionError: VIS-DATA-505, no image in the folder; VIS-DATA-506, unless ``keep_going``.
    """

    is_live = False
    num_dropped = num_reconnects = 0

    def __init__(self, path: str | Path, *, fps: float = 25.0, keep_going: bool = False) -> None:
        self.path, self.fps, self.keep_going = str(path), fps, keep_going
        self.problem: VisionError | None = None
        self.files = sorted(filter(is_picture, Path(path).iterdir()), key=natural_key)
        self.num_frames = len(self.files)
        if not self.files:
            raise VisionError('VIS-DATA-505', f'no image in the folder {path}',
                              why=f'frames end in {", ".join(PICTURE_SUFFIXES)}',
                              do='name the folder that holds the frames themselves')
        num_missing, first = missing_numbers([file.stem for file in self.files])
        if num_missing:
            shown = ', '.join(map(str, first)) + (', ...' if num_missing > len(first) else '')
            self.problem = VisionError(
                'VIS-DATA-506', f'{num_missing} frames are missing: {shown}', where=self.path,
                why='the numbers of the file names have a gap, so time would jump',
                do='put the frames back, or accept the gap with --keep-going')
            if not keep_going:
                raise self.problem

    def __iter__(self) -> Iterator[SourceFrame]:
        size = None
        for index, file in enumerate(self.files):
            try:
                image = read_image(file)
            except VisionError as error:
                self.problem = VisionError(
                    'VIS-DATA-507', f'the frame {file.name} cannot be decoded', where=str(file),
                    why=error.what, do='replace it, or leave it out with --keep-going')
                if not self.keep_going:
                    return
                continue
            image = fit(image, size)
            size = image.shape[:2]
            yield SourceFrame(image, index / self.fps, time.monotonic())


class FrameSequence:
    """Pictures that are in memory, or come from a generator: each once, as a copy.

    Args:
        frames: arrays (H, W, 3) uint8 BGR, or paths of images. It is iterated over in the thread
            that reads. Pictures of other sizes are scaled to the first one's.
        fps: frames per second that they stand for.
    """

    is_live = False
    num_dropped = num_reconnects = 0
    path = 'frames'

    def __init__(self, frames: Iterable[np.ndarray | str | Path], *, fps: float = 25.0) -> None:
        self.fps, self.problem = fps, None
        self.num_frames = len(frames) if hasattr(frames, '__len__') else 0
        self.is_read_once = isinstance(frames, Iterator)
        if hasattr(frames, '__len__') and not self.num_frames:
            raise self._unusable('it is empty')
        if isinstance(frames, np.ndarray) and frames.ndim != 4:
            raise self._unusable(f'an array of shape {frames.shape}: one picture alone goes into '
                                 'image(), or into a list')
        self._frames = frames

    def __iter__(self) -> Iterator[SourceFrame]:
        size, index = None, -1
        for index, item in enumerate(self._frames):
            image = read_image(item) if isinstance(item, (str, Path)) else item
            if not (isinstance(image, np.ndarray) and image.dtype == np.uint8
                    and image.ndim == 3 and image.shape[2] == 3 and image.size):
                raise self._unusable(f'item {index} is {_described(image)}')
            # A copy: it may be drawn into, and generators like to fill one array again and again.
            image = fit(np.array(image, order='C'), size)
            size = image.shape[:2]
            yield SourceFrame(image, index / self.fps, time.monotonic())
        if index < 0:
            raise self._unusable('it ended before its first picture')

    @staticmethod
    def _unusable(why: str) -> VisionError:
        return VisionError('VIS-INPUT-1716', 'these frames cannot be used as a video', why=why,
                           do='give arrays of shape (height, width, 3), uint8, BGR, or paths of '
                           'images: at least one')


def _described(item: object) -> str:
    if isinstance(item, np.ndarray):
        return f'an array of shape {item.shape}, {item.dtype}'
    return f'of type {type(item).__name__}'


def natural_key(path: Path) -> list:
    """Key under which frame2 comes before frame10."""
    return [(0, int(part), '') if part.isdecimal() else (1, 0, part)
            for part in re.split(r'([0-9]+)', path.name) if part]


def missing_numbers(stems: list[str]) -> tuple[int, list[int]]:
    """How many numbers are absent between the first and the last, and the first ten of them;
    (0, []) when names are no numbered series. Frames may be numbered by nanoseconds."""
    matches = [re.search(r'([0-9]+)$', stem) for stem in stems]
    if not all(matches):
        return 0, []
    numbers = sorted({int(match[1]) for match in matches})
    first: list[int] = []
    for before, after in itertools.pairwise(numbers):
        first += range(before + 1, min(after, before + 1 + NUM_NAMED - len(first)))
    return numbers[-1] - numbers[0] + 1 - len(numbers), first
