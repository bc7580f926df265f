"""Latency accounting, bounded delay and constant memory."""

import gc
import tracemalloc
import weakref

import numpy as np
import pytest

from vision.common.core.errors import VisionError
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
