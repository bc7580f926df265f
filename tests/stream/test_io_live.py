"""A slow consumer drops frames; a server that closes, stalls and resumes is read again."""

import threading
import time

import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.stream.core.session import StreamSession
from vision.stream.io.live_reader import CaptureError, LiveReader, NetworkCapture
from vision.stream.io.loopback import LoopbackServer, lossy_http


class PacedCapture:
    """A source of 60 frames a second, of num_frames frames, then lost."""

    def __init__(self, frame, num_frames, size=(64, 96)):
        self._frame, self._left, self._size, self._t = frame, num_frames, size, 0

    def read(self):
        if self._t == self._left:
            raise CaptureError('cable pulled')
        time.sleep(1 / 60)
        self._t += 1
        return self._frame(self._t, *self._size)

    def close(self):
        pass


class BrokenCapture(PacedCapture):
    """As above, and then its driver fails with an error of its own."""

    def read(self):
        try:
            return super().read()
        except CaptureError:
            raise RuntimeError('driver fault 17') from None


def opener(*captures):
    """Gives the captures one after the other, then refuses."""
    waiting = list(captures)

    def open_capture():
        if not waiting:
            raise CaptureError('refused')
        return waiting.pop(0)
    return open_capture


@pytest.mark.fault('R26')
def test_a_slow_consumer_drops_and_its_latency_stays_bounded(frame, engine):
    reader = LiveReader(opener(PacedCapture(frame, 60)), 'x', max_reconnect=0)
    session, num_consumed = StreamSession(engine), 0
    for item in reader:
        session.push(item.image_bgr, item.timestamp_s, item.arrival_s)
        num_consumed += 1
        time.sleep(0.1)
    session.flush()
    assert num_consumed + reader.num_dropped == reader.num_read == 60
    assert reader.num_dropped > 30
    # Gap 4 at 10 fps, two frames in the queue: 0.6 s and the machine's own hiccups.
    assert session.stats().max_ms < 1500
    assert reader.problem.code == 'VIS-NET-511' and 'cable pulled' in reader.problem.why


def test_frames_after_a_reconnection_have_the_first_size(frame):
    reader = LiveReader(opener(PacedCapture(frame, 5), PacedCapture(frame, 5, (128, 200))), 'x',
                        max_reconnect=1, back_off_s=0.01)
    shapes = [item.image_bgr.shape for item in reader]
    assert len(shapes) > 6 and set(shapes) == {(64, 96, 3)}
    assert reader.num_reconnects == 2 and reader.problem is not None


@pytest.mark.fault('R24')
def test_waits_double_up_to_the_longest_and_then_end(monkeypatch):
    reader, waits = LiveReader(opener(), 'x', max_reconnect=6), []
    monkeypatch.setattr(reader._stop, 'wait', waits.append)
    assert list(reader) == []
    assert waits == [0.5, 1, 2, 4, 8, 10]
    assert 'could not be opened' in reader.problem.what


@pytest.mark.fault('R24')
def test_a_fault_that_is_no_loss_ends_the_stream_and_is_named(frame):
    captures = [BrokenCapture(frame, 5), PacedCapture(frame, 5)]
    reader = LiveReader(opener(*captures), 'x', max_reconnect=3, back_off_s=0.01)
    assert 1 <= len(list(reader)) <= 5 and reader.num_read == 5
    assert reader.problem.code == 'VIS-RUN-518' and reader.num_reconnects == 0
    assert reader.problem.why == 'RuntimeError: driver fault 17'
    assert isinstance(reader.problem.__cause__, RuntimeError)


def test_a_fault_while_opening_is_named_too():
    def open_capture():
        raise VisionError('VIS-VIDEO-510', 'no such thing')
    reader = LiveReader(open_capture, 'x')
    assert list(reader) == [] and reader.problem.code == 'VIS-VIDEO-510'


@pytest.mark.fault('R26')
def test_a_long_queue_is_refused():
    with pytest.raises(ValueError, match='longer queue is delay'):
        LiveReader(opener(), 'x', queue_size=30)


def test_stop_ends_the_iteration(frame):
    reader = LiveReader(opener(PacedCapture(frame, 10_000)), 'x')
    for count, _ in enumerate(reader):
        if count == 3:
            reader.stop()
    assert reader.problem is None and reader.num_read < 100


@pytest.mark.usefixtures('no_file_is_left', 'no_thread_is_left')
@pytest.mark.fault('R24')
def test_a_server_that_closes_stalls_and_cuts_is_read_again_without_leaks(mpegts):
    with LoopbackServer(lossy_http(mpegts(60), stall_s=0.8)) as server:
        reader = LiveReader(lambda: NetworkCapture(server.address, timeout_s=0.4),
                            server.address, back_off_s=0.01, max_back_off_s=0.02)
        stop = threading.Timer(60, reader.stop)
        stop.start()
        shapes = []
        for item in reader:
            shapes.append(item.image_bgr.shape)
            if server.num_served > 7:
                reader.stop()
        stop.cancel()
        stop.join()
    assert reader.num_reconnects >= 6 and set(shapes) == {(64, 96, 3)}
    assert len(shapes) + reader.num_dropped <= reader.num_read


@pytest.mark.fault('R24')
def test_timestamps_keep_the_gap_of_a_loss(frame):
    reader = LiveReader(opener(PacedCapture(frame, 5), PacedCapture(frame, 5)), 'x',
                        max_reconnect=1, back_off_s=0.5)
    items = list(reader)
    stamps = [item.timestamp_s for item in items]
    assert np.diff(stamps).max() >= 0.5 and np.diff(stamps).min() > 0
    after = int(np.diff(stamps).argmax()) + 1
    assert {item.status for item in items[:after]} == {'live'}
    assert {item.status for item in items[after:]} == {items[after].status}
    assert items[after].status.startswith('reconnected after 0.')
    assert items[after].status.endswith('(cable pulled)')


def test_whoever_waits_for_a_lost_stream_is_told(frame):
    reader, told = LiveReader(opener(PacedCapture(frame, 3), PacedCapture(frame, 3)), 'x',
                              max_reconnect=1, back_off_s=0.4), []
    reader.on_wait = told.append
    assert len(list(reader)) >= 4
    assert told and told[0] == 'reconnecting in 0.4 s (cable pulled)'


def test_the_status_is_live_again_after_two_seconds(frame):
    reader = LiveReader(opener(), 'x')
    assert reader._status_at(10.0) == 'live'
    reader._loss = 'gone'
    assert [reader._status_at(t) for t in (11.5, 13.4, 13.6)] == \
        ['reconnected after 1.5 s (gone)'] * 2 + ['live']
