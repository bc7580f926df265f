"""An RTSP stream as a camera sends it, that restarts; and cameras that open without a picture."""

import threading

import cv2
import pytest
from scripts import load_script

from vision.common.core.errors import VisionError
from vision.stream.io.live_reader import LiveReader, NetworkCapture, require_camera
from vision.stream.io.loopback import LoopbackServer


@pytest.fixture
def camera(mpegts):
    return load_script('tests/stream/rtsp_server.py').RtspCamera(mpegts(60), seconds=1.5)


@pytest.mark.fault('R24')
def test_a_camera_over_rtsp_that_restarts_is_read_again(camera):
    statuses, shapes = [], set()
    with LoopbackServer(camera.talk, 'rtsp') as server:
        reader = LiveReader(lambda: NetworkCapture(server.address, timeout_s=5), server.address,
                            back_off_s=0.05, max_back_off_s=0.1)
        stop = threading.Timer(60, reader.stop)
        stop.start()
        for frame in reader:
            statuses.append(frame.status)
            shapes.add(frame.image_bgr.shape)
            if camera.num_played >= 3 and 'reconnected' in frame.status:
                reader.stop()
        stop.cancel()
        stop.join()
    assert camera.methods[:4] == ['OPTIONS', 'DESCRIBE', 'SETUP', 'PLAY']
    assert camera.num_played == 3 and shapes == {(64, 96, 3)}
    assert reader.num_read > 60 and reader.problem is None
    assert statuses[0] == 'live' and statuses[-1].startswith('reconnected after ')


def test_an_address_where_nobody_listens_is_one_error():
    reader = LiveReader(lambda: NetworkCapture('rtsp://127.0.0.1:9/x', timeout_s=1), 'x',
                        max_reconnect=1, back_off_s=0.01)
    assert list(reader) == []
    assert reader.problem.code == 'VIS-NET-511' and 'refused' in reader.problem.why


@pytest.mark.fault('R25')
def test_a_device_that_opens_without_a_picture_is_refused(write_video, tmp_path):
    path = str(write_video(tmp_path / 'x.mp4', num_frames=3))

    def at_its_end(_index):
        device = cv2.VideoCapture(path)
        while device.read()[0]:
            pass
        return device

    require_camera(0, lambda index: cv2.VideoCapture(path))
    with pytest.raises(VisionError, match='VIS-VIDEO-510[^$]*it opens, and is no picture source'):
        require_camera(3, at_its_end)
    with pytest.raises(VisionError, match='VIS-VIDEO-510[^$]*there is no such device'):
        require_camera(97)


@pytest.mark.fault('R25')
@pytest.mark.parametrize(('is_readable', 'why'), [
    (False, 'no permission to read it (group video)'), (True, 'another program uses it')])
def test_a_camera_that_is_there_and_does_not_open_has_its_reason(monkeypatch, is_readable, why):
    """Stands in for what a machine without cameras cannot have: a device and its rights."""
    monkeypatch.setattr('glob.glob', lambda pattern: ['/dev/video96'])
    monkeypatch.setattr('os.access', lambda path, mode: is_readable)
    with pytest.raises(VisionError, match='VIS-VIDEO-510') as error:
        require_camera(96)
    assert why in error.value.why and 'devices found: /dev/video96' in error.value.where
    assert 'a video file' in error.value.do
