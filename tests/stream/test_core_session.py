"""Latency accounting, bounded delay and constant memory."""

import gc
import os
import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.lattice.core.structures import FrameBoxes
from vision.lattice.runtime.methods import build_engine
from vision.stream.core.clock import LatencyHistogram
from vision.stream.core.session import StreamSession


class Clock:
    """One second later at each look."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_every_frame_comes_once_in_order_with_its_boxes(engine, frame):
    session = StreamSession(engine)
    results = [r for t in range(30) for r in session.push(frame(t), t / 25)] + session.flush()
    assert [result.frame_id for result in results] == list(range(30))
    for t, result in enumerate(results):
        np.testing.assert_allclose(result.boxes.boxes_xyxy, [[4 + 2 * t, 20, 16 + 2 * t, 32]],
                                   atol=0.5)
        assert result.latency_ms > 0


def test_latency_runs_from_arrival_to_result(engine, frame):
    session = StreamSession(engine, Clock())  # gap 4: frames 1 to 4 are finished by frame 4
    times = [r.latency_ms for t in range(5) for r in session.push(frame(t), float(t))]
    assert times == [1000, 7000, 5000, 3000, 1000]
    stats = session.stats()
    assert (stats.num_frames, stats.num_finished, stats.num_keyframes) == (5, 5, 2)
    assert stats.max_ms == 7000 and stats.duration_s == 9


def test_delay_is_at_most_the_gap(engine, frame):
    session, worst = StreamSession(engine), 0
    for t in range(50):
        for result in session.push(frame(t), float(t)):
            worst = max(worst, t - result.frame_id)
        assert session.num_waiting < 4
    assert worst == 3  # the frame after a keyframe waits for the next one, gap - 1 pushes later


def test_memory_does_not_grow_and_frames_are_released(engine, frame):
    session, alive = StreamSession(engine), []
    tracemalloc.start()
    try:
        for t in range(3001):  # at both looks only a keyframe is held
            image = frame(t)
            if t % 100 == 0:
                alive.append(weakref.ref(image))
            session.push(image, float(t))
            if t == 500:
                gc.collect()
                before = tracemalloc.get_traced_memory()[0]
        del image
        gc.collect()
        growth = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert growth < 60_000, f'{growth} bytes over 2,500 frames of 18 kB'
    assert [ref() for ref in alive[:-1]] == [None] * 30


def test_a_long_stream_holds_memory_threads_and_files_constant():
    num_frames = int(os.environ.get('VISION_TEST_STREAM_FRAMES', 2_000))
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (50, 48, 64, 3), np.uint8)

    class Detector:
        def detect(self, image_bgr):
            x, y = image_bgr[0, 0, :2] % 30
            return FrameBoxes([[x, y, x + 12, y + 12]], [0.9], [0])

    def state():
        gc.collect()
        files = resident = 0
        if os.path.isdir('/proc/self/fd'):
            files = len(os.listdir('/proc/self/fd'))
            with open('/proc/self/statm') as file:
                resident = int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
        return (tracemalloc.get_traced_memory()[0], resident, set(threading.enumerate()), files)

    with ThreadPoolExecutor(1) as executor:
        session = StreamSession(build_engine(Detector(), keyframes=8, executor=executor))
        tracemalloc.start()
        try:
            for t in range(num_frames):
                session.push(pictures[t % 50].copy(), t / 25)
                if t == 500:
                    before = state()
            after = state()
        finally:
            tracemalloc.stop()
        session.flush()
    assert session.stats().num_finished == num_frames and session.num_waiting == 0
    assert after[0] - before[0] < 1_000_000, f'{after[0] - before[0]} bytes more'
    assert after[1] - before[1] < 5_000_000, f'{after[1] - before[1]} bytes of the process more'
    assert after[2] <= before[2] and after[3] <= before[3]


def run(session, pictures, step_s=1 / 25):
    """(frame pushed last, result) for each result."""
    told = [(t, result) for t, picture in enumerate(pictures)
            for result in session.push(picture, t * step_s)]
    return told + [(len(pictures), result) for result in session.flush()]


@pytest.mark.parametrize('method', ['flow', 'linear'])
@pytest.mark.parametrize('num_frames', [1, 2, 5, 19])
def test_causal_gives_one_result_a_frame_at_once(frame, detector, method, num_frames):
    engine = build_engine(detector, method=method, keyframes=4, mode='causal')
    session = StreamSession(engine)
    told = run(session, [frame(t) for t in range(num_frames)])
    assert [pushed for pushed, _ in told] == [result.frame_id for _, result in told] \
        == list(range(num_frames))
    assert {result.status for _, result in told} == {'final'} and session.num_waiting == 0
    assert [result.frame_id for _, result in told if result.is_keyframe] \
        == list(range(0, num_frames, 4))


def test_causal_does_not_look_ahead(frame, detector):
    """What comes later, here another object, changes nothing of what was said before."""
    changed = [frame(t) for t in range(19)]
    for picture in changed[11:]:
        picture[45:57, 60:72] = frame(0)[25, 10]
    told = []
    for pictures in ([frame(t) for t in range(19)], changed):
        engine = build_engine(detector, keyframes=4, mode='causal')
        told.append([result for _, result in run(StreamSession(engine), pictures)])
    for t in range(19):
        one, other = (results[t].boxes for results in told)
        assert (len(other) == len(one)) == (t < 12)
        if t < 12:
            np.testing.assert_array_equal(one.boxes_xyxy, other.boxes_xyxy)


@pytest.mark.parametrize('method', ['flow', 'linear'])
def test_revision_gives_each_inner_frame_twice_and_the_second_is_that_of_buffered(
        frame, detector, method):
    pictures = [frame(t) for t in range(19)]
    buffered = [result for _, result in run(
        StreamSession(build_engine(detector, method=method, keyframes=4)), pictures)]
    session = StreamSession(build_engine(detector, method=method, keyframes=4,
                                         mode='causal+revise'))
    told = run(session, pictures)
    provisional = [(pushed, result) for pushed, result in told if result.status == 'provisional']
    final = [result for _, result in told if result.status == 'final']
    assert [result.frame_id for result in final] == list(range(19))
    # The last frame is an inner one until the stream ends, and a keyframe then.
    assert [result.frame_id for _, result in provisional] == [t for t in range(19) if t % 4]
    assert all(pushed == result.frame_id for pushed, result in provisional)
    order = [result.frame_id for _, result in told if result.frame_id == 6]
    assert order == [6, 6]
    for one, other in zip(buffered, final, strict=True):
        np.testing.assert_array_equal(one.boxes.boxes_xyxy, other.boxes.boxes_xyxy)
        np.testing.assert_array_equal(one.boxes.track_ids, other.boxes.track_ids)
        assert one.is_keyframe == other.is_keyframe
    stats = session.stats()
    assert (stats.num_finished, session.num_waiting) == (19, 0)
    assert stats.num_keyframes == 6


def test_latency_is_that_of_the_first_result_and_late_ones_are_counted(frame, detector):
    def session_of(mode):
        engine = build_engine(detector, keyframes=4, mode=mode)
        return StreamSession(engine, Clock(), deadline_ms=3500)

    buffered, revising = session_of('buffered'), session_of('causal+revise')
    run(buffered, [frame(t) for t in range(5)])  # 1, 7, 5, 3 and 1 s
    assert buffered.stats().deadline_misses == 2 and buffered.stats().max_ms == 7000
    run(revising, [frame(t) for t in range(5)])
    assert revising.stats().deadline_misses == 0 and revising.stats().max_ms == 1000


@pytest.mark.parametrize('mode', ['buffered', 'causal', 'causal+revise'])
def test_a_hole_in_time_begins_new_tracks(frame, detector, mode):
    session = StreamSession(build_engine(detector, keyframes=4, mode=mode))
    times = [t / 25 + 15 * (t >= 10) for t in range(20)]  # 15 s without a picture
    results = [result for t in range(20) for result in session.push(frame(t), times[t])]
    results += session.flush()
    ids = {result.frame_id: result.boxes.track_ids.tolist() for result in results
           if result.status == 'final'}
    assert {tuple(ids[t]) for t in range(10)} == {(1,)}
    assert {tuple(ids[t]) for t in range(10, 20)} == {(2,)}


def test_time_that_runs_backwards_is_refused(engine, frame):
    session = StreamSession(engine)
    session.push(frame(0), 1.0)
    with pytest.raises(VisionError, match='VIS-INPUT-501'):
        session.push(frame(1), 1.0)


def test_percentiles_agree_with_numpy_to_two_percent():
    values = np.random.default_rng(0).lognormal(3, 1, 5000)
    histogram = LatencyHistogram()
    for value in values:
        histogram.add(value)
    for percent in (50, 95, 99):
        assert histogram.percentile(percent) == pytest.approx(np.percentile(values, percent),
                                                              rel=0.03)
    assert histogram.percentile(100) == histogram.max_ms == values.max()


def test_an_empty_histogram_and_a_negative_latency():
    histogram = LatencyHistogram()
    assert histogram.percentile(95) == 0
    with pytest.raises(ValueError, match='>= 0'):
        histogram.add(-1)
