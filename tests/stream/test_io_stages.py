"""Threads with queues between them: order, bounds, errors, and nothing left behind."""

import threading
import time

import pytest

from vision.stream.io.stages import ReadAhead, Stage

pytestmark = pytest.mark.usefixtures('no_thread_is_left')


def test_items_come_in_order_and_no_more_than_the_queue_holds_are_read_ahead():
    taken = []

    def items():
        for number in range(50):
            taken.append(number)
            yield number

    with ReadAhead(items(), 3, 'r') as ahead:
        got = []
        for number in ahead:
            got.append(number)
            if number == 10:
                time.sleep(0.2)
                assert len(taken) <= 10 + 1 + 3 + 1  # read, waiting, and one in the hand
    assert got == taken == list(range(50))


def test_leaving_early_ends_the_thread_and_closes_the_generator():
    closed = []

    def items():
        try:
            while True:
                yield 1
        finally:
            closed.append(threading.current_thread().name)

    with ReadAhead(items(), 2, 'r') as ahead:
        for _ in ahead:
            break
    assert closed == ['r']


def test_an_error_of_the_reader_comes_after_the_items_before_it():
    error = RuntimeError('torn tape')

    def items():
        yield from range(5)
        raise error

    got = []
    with pytest.raises(RuntimeError) as raised, ReadAhead(items(), 2, 'r') as ahead:
        for number in ahead:
            got.append(number)
    assert raised.value is error and got == list(range(5))


def test_work_is_done_in_order_and_the_block_waits_for_it():
    done = []

    def work(item):
        time.sleep(0.001)
        done.append((item, threading.current_thread().name))

    with Stage(work, 4, 'w') as stage:
        for number in range(30):
            stage.put(number)
    assert done == [(number, 'w') for number in range(30)]


def test_an_error_of_the_work_is_raised_by_a_later_put_or_at_the_end():
    done = []

    def work(item):
        if item == 3:
            raise OSError('full')
        done.append(item)

    with pytest.raises(OSError, match='full'), Stage(work, 2, 'w') as stage:
        for number in range(1000):
            stage.put(number)
    assert done == [0, 1, 2]
    with pytest.raises(OSError, match='full'), Stage(work, 2, 'w') as stage:
        stage.put(3)


def test_the_error_of_the_block_goes_before_that_of_the_work():
    def work(item):
        raise OSError('full')

    with pytest.raises(KeyError), Stage(work, 2, 'w') as stage:
        stage.put(1)
        raise KeyError('mine')


def test_what_waits_is_done_after_an_error_and_dropped_after_an_interruption():
    for kind, least in ((ValueError, 4), (KeyboardInterrupt, 0)):
        done = []

        def work(item, done=done):
            time.sleep(0.05)
            done.append(item)

        with pytest.raises(kind), Stage(work, 4, 'w') as stage:
            for number in range(4):
                stage.put(number)
            raise kind
        assert len(done) == least or (kind is KeyboardInterrupt and len(done) <= 1)
