"""Cameras and network streams: a reader thread that keeps the newest frames and reconnects."""

from __future__ import annotations

import contextlib
import glob
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import av
import cv2
import numpy as np

from vision.common.core.errors import VisionError
from vision.stream.io.containers import holds_video, open_address, why_closed
from vision.stream.io.sources import LIVE, SourceFrame, fit

BACK_OFF_S, MAX_BACK_OFF_S = 0.5, 10.0
TELL_LOSS_S = 2.0  # frames that came so soon after a loss say so


class CaptureError(Exception):
    """The stream could not be opened, ended, or stalled."""


class Capture(Protocol):
    """What a reader thread reads from: a camera or an open connection."""

    def read(self) -> np.ndarray:
        """The next frame (H, W, 3) uint8 BGR; raises CaptureError."""

    def close(self) -> None:
        """Give the device or the connection back."""


class NetworkCapture:
    """An rtsp:// or http:// address through PyAV; opening and each read have a time limit."""

    def __init__(self, address: str, timeout_s: float = 5.0) -> None:
        options = {'rtsp_transport': 'tcp'} if address.lower().startswith('rtsp') else {}
        try:
            self._container = open_address(address, timeout_s, fflags='nobuffer', **options)
        except (av.error.FFmpegError, OSError) as error:
            raise CaptureError(why_closed(error)) from error
        if not holds_video(self._container):
            self._container.close()
            raise CaptureError('what the server sends holds no video')
        self._frames = self._container.decode(video=0)

    def read(self) -> np.ndarray:
        """The next frame (H, W, 3) uint8 BGR; a broken packet is passed over.

        Raises:
            CaptureError: the stream ended, or nothing came in time.
        """
        while True:
            try:
                return next(self._frames).to_ndarray(format='bgr24')
            except StopIteration:
                raise CaptureError('the server ended the stream') from None
            except av.error.InvalidDataError:
                self._frames = self._container.decode(video=0)  # one broken packet: go on
            except (av.error.FFmpegError, OSError) as error:
                raise CaptureError(str(error)) from error

    def close(self) -> None:
        """Close the connection."""
        self._container.close()


class CameraCapture:
    """A camera by its number through OpenCV; ``open_device`` makes what OpenCV reads from."""

    def __init__(self, index: int,
                 open_device: Callable[[int], cv2.VideoCapture] = cv2.VideoCapture) -> None:
        # OpenCV's own lines about each way it tries would bury the one error of ours.
        # OpenCV 5 has the function elsewhere.
        (getattr(cv2, 'setLogLevel', None) or cv2.utils.logging.setLogLevel)(0)
        self._camera = open_device(index)
        if not self._camera.isOpened():
            self._camera.release()
            raise CaptureError(f'camera {index} does not open')

    def read(self) -> np.ndarray:
        """The next frame (H, W, 3) uint8 BGR.

        Raises:
            CaptureError: the camera gives none.
        """
        is_read, image = self._camera.read()
        if not is_read:
            raise CaptureError('the camera gives no frame')
        return image

    def close(self) -> None:
        """Give the device back."""
        self._camera.release()


def require_camera(index: int,
                   open_device: Callable[[int], cv2.VideoCapture] = cv2.VideoCapture) -> None:
    """Refuse a camera that is not there or shows nothing, listing what was tried and is there.

    Raises:
        VisionError: VIS-VIDEO-510.
    """
    camera = None
    try:
        camera = CameraCapture(index, open_device)
        camera.read()
    except CaptureError as error:
        found = sorted(glob.glob('/dev/video*'))
        path = f'/dev/video{index}'
        if camera is not None:
            why = 'it opens, and is no picture source: many cameras have a second number beside ' \
                'theirs for other data; or another program uses it'
        elif path in found and not os.access(path, os.R_OK):
            why = 'no permission to read it (group video)'
        else:
            why = 'another program uses it, or it is no camera' if path in found \
                else 'there is no such device'
        raise VisionError(
            'VIS-VIDEO-510', f'camera {index} cannot be used', why=f'{why} ({error})',
            where=f'tried OpenCV index {index} and {path}; devices found: '
                  f'{", ".join(map(_with_name, found)) or "none"}',
            do='name another camera, a video file, a folder of frames or an rtsp:// address'
        ) from error
    finally:
        if camera is not None:
            camera.close()


def _with_name(device: str) -> str:
    name = Path('/sys/class/video4linux', Path(device).name, 'name')
    return f'{device} ({name.read_text().strip()})' if name.is_file() else device


class LiveReader:
    """Iterates over the newest frames; older unread ones are dropped and counted.

    After a loss it opens the stream again, waiting 0.5 s, then twice as long each time up to
    10 s; frames after a reconnection are rescaled to the first size. ``max_reconnect`` failures
    in a row end it, with ``problem`` set; so does at once whatever a capture raises besides
    CaptureError: opening again does not mend a fault of the program. Each frame has the status
    of its moment: ``live``, or for two seconds after a loss how long nothing came, and why.

    Args:
        open_capture: makes a new connection; raises CaptureError.
        name: for messages.
        queue_size: frames that may wait, 1 or 2.
        back_off_s, max_back_off_s: first and longest wait before opening again.
    """

    is_live, num_frames, fps = True, 0, 25.0

    def __init__(self, open_capture: Callable[[], Capture], name: str, *, queue_size: int = 2,
                 max_reconnect: int = 10, back_off_s: float = BACK_OFF_S,
                 max_back_off_s: float = MAX_BACK_OFF_S) -> None:
        if queue_size not in (1, 2):
            raise ValueError(f'queue_size is 1 or 2, got {queue_size}: a longer queue is delay')
        self._open, self.path = open_capture, name
        self._max_reconnect = max_reconnect
        self._back_off_s, self._max_back_off_s = back_off_s, max_back_off_s
        self._queue: deque[SourceFrame] = deque()
        self._queue_size = queue_size
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._is_done = False
        self._size: tuple[int, int] | None = None
        self.num_dropped = self.num_reconnects = self.num_read = 0
        self.status = 'connecting'
        self.problem: VisionError | None = None
        # Called by whoever iterates, with the status, while it waits for a lost stream.
        self.on_wait: Callable[[str], None] = lambda status: None
        self._loss = ''
        self._last_arrival_s = self._told_until_s = 0.0

    def stop(self) -> None:
        """End the iteration soon; safe from a signal handler."""
        self._stop.set()

    def __iter__(self) -> Iterator[SourceFrame]:
        self._stop.clear()
        self._is_done, self.problem = False, None
        thread = threading.Thread(target=self._read_all, name=f'reader of {self.path}',
                                  daemon=True)
        thread.start()
        try:
            while (frame := self._next()) is not None:
                yield frame
        finally:
            self._stop.set()
            thread.join(timeout=15)

    def _next(self) -> SourceFrame | None:
        with self._changed:
            while not self._queue:
                if self._is_done or self._stop.is_set():
                    return None
                if not self._changed.wait(0.1) and self.num_reconnects:
                    self.on_wait(self.status)
            return self._queue.popleft()

    def _read_all(self) -> None:
        failures, start = 0, time.monotonic()
        has_read = False
        try:
            while not self._stop.is_set():
                before = self.num_read
                reason = self._read_one_connection(start)
                if self._stop.is_set():
                    return
                has_read |= self.num_read > before
                failures = 1 if self.num_read > before else failures + 1
                if failures > self._max_reconnect:
                    self.problem = self._lost(reason, failures - 1, has_read)
                    return
                wait = min(self._back_off_s * 2 ** (failures - 1), self._max_back_off_s)
                self.status = f'reconnecting in {wait:.1f} s ({reason})'
                self._loss = reason
                self.num_reconnects += 1
                self._stop.wait(wait)
        except Exception as error:  # whoever iterates would take the end for the stream's own
            self.problem = self._broken(error)
        finally:
            with self._changed:
                self._is_done = True
                self._changed.notify_all()

    def _read_one_connection(self, start: float) -> str:
        """Frames until the connection is lost; why it was."""
        capture = None
        try:
            capture = self._open()
            self.status = LIVE
            while not self._stop.is_set():
                image = fit(capture.read(), self._size)
                self._size = image.shape[:2]
                now = time.monotonic()
                self._put(SourceFrame(image, now - start, now, self._status_at(now)))
        except CaptureError as error:
            return str(error)
        finally:
            if capture is not None:
                with contextlib.suppress(Exception):  # it is lost anyway
                    capture.close()
        return ''

    def _status_at(self, now_s: float) -> str:
        """Of a frame that comes now; ``status`` is the same until the next loss."""
        if self._loss and self._last_arrival_s:
            self.status = f'reconnected after {now_s - self._last_arrival_s:.1f} s ({self._loss})'
            self._told_until_s = now_s + TELL_LOSS_S
        elif now_s > self._told_until_s:
            self.status = LIVE
        self._loss, self._last_arrival_s = '', now_s
        return self.status

    def _put(self, frame: SourceFrame) -> None:
        with self._changed:
            self.num_read += 1
            if len(self._queue) == self._queue_size:
                self._queue.popleft()
                self.num_dropped += 1
            self._queue.append(frame)
            self._changed.notify_all()

    def _broken(self, error: Exception) -> VisionError:
        if isinstance(error, VisionError):
            return error
        problem = VisionError('VIS-RUN-518', f'reading the stream {self.path} failed',
                              where=self.path, why=f'{type(error).__name__}: {error}',
                              do='what came before is in the output; -v shows the traceback')
        problem.__cause__ = error
        return problem

    def _lost(self, reason: str, attempts: int, has_read: bool) -> VisionError:
        what = 'was lost' if has_read else 'could not be opened'
        return VisionError('VIS-NET-511', f'the stream {self.path} {what}', where=self.path,
                           why=f'{reason}; reconnections in a row that failed: {attempts}',
                           do='check the address and the server; --max-reconnect allows more')
