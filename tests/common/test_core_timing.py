import time

import pytest

from vision.common.core.timing import Stopwatch, measure


def test_warm_up_is_not_counted():
    naps = iter([0.05, 0.05] + [0.002] * 20)
    result = measure(lambda: time.sleep(next(naps)), num_warmup=2, num_runs=20)
    assert 2 <= result['p10_ms'] <= result['p50_ms'] <= result['p90_ms']
    assert result['p50_ms'] < 40 and result['num_runs'] == 20


def test_the_device_is_waited_for_on_both_sides():
    calls = []
    measure(lambda: calls.append('fn'), sync=lambda: calls.append('sync'), num_warmup=0,
            num_runs=2)
    assert calls == ['sync', 'fn', 'sync'] * 2


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match='num_runs >= 1, got 10 and 0'):
        measure(lambda: None, num_runs=0)


def test_stopwatch_adds_by_name_and_counts_what_raised():
    watch = Stopwatch()
    for _ in range(3):
        with watch('nap'):
            time.sleep(0.002)
    with pytest.raises(KeyError), watch('fault'):
        raise KeyError
    assert watch.num_calls == dict(nap=3, fault=1) and watch.seconds['nap'] >= 0.006
