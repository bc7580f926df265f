import time

import pytest

from vision.common.core.timing import Stopwatch


def test_stopwatch_adds_by_name_and_counts_what_raised():
    watch = Stopwatch()
    for _ in range(3):
        with watch('nap'):
            time.sleep(0.002)
    with pytest.raises(KeyError), watch('fault'):
        raise KeyError
    assert watch.num_calls == dict(nap=3, fault=1) and watch.seconds['nap'] >= 0.006
