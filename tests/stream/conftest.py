"""A real detector without a network: connected blobs of one colour on generated frames."""

import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from vision.lattice.core.structures import FrameBoxes
from vision.lattice.runtime.methods import build_engine

BLOB = (40, 220, 240)  # BGR
GAP = 4


def make_frame(t: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A yellow square of 12 px that moves 2 px right a frame and starts again at the edge."""
    image = np.full((height, width, 3), 30, np.uint8)
    left = 4 + 2 * t % (width - 24)
    image[20:32, left:left + 12] = BLOB
    return image


class BlobDetector:
    """Detects by colour."""

    classes = ('blob',)

    def detect(self, image_bgr):
        mask = np.abs(image_bgr.astype(int) - BLOB).max(axis=2) < 90
        blobs, _ = ndimage.label(mask)
        boxes = [[x.start, y.start, x.stop, y.stop] for y, x in ndimage.find_objects(blobs)
                 if (y.stop - y.start) * (x.stop - x.start) > 16]
        return FrameBoxes(np.array(boxes).reshape(-1, 4), np.full(len(boxes), 0.9),
                          np.zeros(len(boxes)))


@pytest.fixture
def no_thread_is_left():
    """New ones: one that an earlier test left may end meanwhile."""
    before = set(threading.enumerate())
    yield
    assert not [thread.name for thread in set(threading.enumerate()) - before]


@pytest.fixture
def no_file_is_left():
    """Open files and sockets; what earlier tests left to the collector is closed before."""
    folder = Path('/proc/self/fd')
    if not folder.is_dir():
        pytest.skip('counts open files in /proc')
    gc.collect()
    before = len(os.listdir(folder))
    yield
    gc.collect()
    assert len(os.listdir(folder)) <= before


@pytest.fixture
def frame():
    return make_frame


@pytest.fixture
def detector():
    return BlobDetector()


@pytest.fixture
def engine(detector):
    return build_engine(detector, method='linear', keyframes=GAP, cut_detector=None)


@pytest.fixture
def write_video():
    """Write generated frames with the room's own sink; gives the path."""
    from vision.stream.io.sinks import VideoSink

    def write(path, num_frames=20, height=64, width=96):
        sink = VideoSink(path, fps=25)
        for t in range(num_frames):
            sink.write(make_frame(t, height, width), t / 25)
        return sink.close()
    return write


@pytest.fixture
def mpegts():
    """Generated frames as an MPEG transport stream of so many frames."""
    import io

    import av

    def encode(num_frames: int) -> bytes:
        buffer = io.BytesIO()
        with av.open(buffer, 'w', format='mpegts') as container:
            stream = container.add_stream('mpeg2video', rate=25)
            stream.width, stream.height, stream.pix_fmt = 96, 64, 'yuv420p'
            for t in range(num_frames):
                image = av.VideoFrame.from_ndarray(make_frame(t), format='bgr24')
                container.mux(stream.encode(image.reformat(format='yuv420p')))
            container.mux(stream.encode(None))
        return buffer.getvalue()
    return encode
