"""Copies to the host and back; those beside compute on streams that run whenever they may.

No GPU is needed: the streams here are queues, and a schedule drawn at random runs them in any
order that their events allow. Memory that is freed while a copy still needs it, a block that is
reused too early and a wait on the wrong stream show as wrong bytes or as an error.
"""

import math
import random
import weakref
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.memory.nn import transfer
from vision.memory.nn.transfer import CudaTransfer, Transfer, as_bytes


class Event:
    def __init__(self, device):
        self.device, self.is_done = device, False

    def query(self):
        return self.is_done

    def synchronize(self):
        while not self.is_done:
            self.device.run_one()


class Stream:
    def __init__(self, device):
        self.device, self.queue = device, []

    def wait_event(self, event):
        self.queue.append((lambda: event.is_done, lambda: None))

    def record_event(self):
        event = Event(self.device)
        self.queue.append((lambda: True, lambda: setattr(event, 'is_done', True)))
        return event


class Device:
    """Streams, and a random order among what may run."""

    def __init__(self, seed):
        self.random, self.streams = random.Random(seed), []
        self.compute = self.current = self.new_stream()

    def new_stream(self, device=None):
        self.streams.append(Stream(self))
        return self.streams[-1]

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def set_stream(self, stream):
        self.current = stream

    def run_one(self):
        ready = [stream for stream in self.streams if stream.queue and stream.queue[0][0]()]
        assert ready, 'the streams wait for each other'
        self.random.choice(ready).queue.pop(0)[1]()

    def run_all(self, device=None):
        while any(stream.queue for stream in self.streams):
            self.run_one()

    def do(self, action):
        self.current.queue.append((lambda: True, action))


class QueuedTransfer(CudaTransfer):
    """Copies happen when their stream comes to them; memory of the device must be there then."""

    def __init__(self, machine, host_bytes):
        super().__init__(torch.device('cpu'), host_bytes, None)
        self.machine = machine

    def _new_arena(self, size):
        return torch.empty(size, dtype=torch.uint8)

    def _free(self, storages):
        # As the allocator does: what the compute stream runs later may have it.
        self.machine.do(lambda kept=tuple(storages): None)

    def _copy(self, target, source):
        ends = [(weakref.ref(end.untyped_storage()), end.storage_offset(), end.numel())
                for end in (target, source)]

        def copy():
            tensors = []
            for ref, offset, size in ends:
                storage = ref()
                assert storage is not None, 'a copy after its memory was freed'
                tensors.append(as_bytes(storage)[offset:offset + size])
            tensors[0].copy_(tensors[1])
        self.machine.do(copy)


@pytest.fixture
def machine(monkeypatch):
    def make(seed):
        device = Device(seed)
        monkeypatch.setattr(transfer.torch.cuda, 'Stream', device.new_stream)
        monkeypatch.setattr(transfer.torch.cuda, 'stream', device.stream)
        monkeypatch.setattr(transfer.torch.cuda, 'set_stream', device.set_stream)
        monkeypatch.setattr(transfer.torch.cuda, 'current_device', lambda: 0)
        monkeypatch.setattr(transfer.torch.cuda, 'current_stream', lambda _: device.current)
        monkeypatch.setattr(transfer.torch.cuda, 'synchronize', device.run_all)
        return device
    return make


def exercise(device, moves, steps, host_bytes=None):
    """Values go out and come back, in any order, over several steps that share the host pool."""
    moves.settle(must_free=math.inf)
    away, there, number = {}, {}, 0
    for action, pick in steps:
        if action == 'make':
            storage = torch.empty(600, dtype=torch.uint8).untyped_storage()
            ref, value = weakref.ref(storage), number % 250 + 1
            device.do(lambda ref=ref, value=value: fill(ref(), value))
            there[number] = storage, value, None
            number += 1
            del storage
        elif action == 'out' and there:
            key = sorted(there)[pick % len(there)]
            storage, value, arrival = there[key]
            if arrival is not None:
                moves.wait(arrival)
            block = moves.out(storage)
            if block is not None:
                del there[key]
                away[key] = block, value
            del storage
        elif action == 'back' and away:
            key = sorted(away)[pick % len(away)]
            block, value = away.pop(key)
            storage, arrival = moves.back(block, 600)
            there[key] = storage, value, arrival
            del storage
        elif action == 'read' and there:
            key = sorted(there)[pick % len(there)]
            storage, value, arrival = there.pop(key)
            if arrival is not None:
                moves.wait(arrival)
            device.do(lambda storage=storage, value=value: check(storage, value))
            there[key] = storage, value, None
            del storage
        elif action == 'forget' and away:
            moves.release(away.pop(sorted(away)[pick % len(away)])[0])
        elif action == 'settle':
            moves.settle(must_free=600 * (pick % 4))
        elif action == 'run':
            for _ in range(pick % 7):
                if any(stream.queue and stream.queue[0][0]() for stream in device.streams):
                    device.run_one()
    device.run_all()


def fill(storage, value):
    assert storage is not None, 'an operator after its memory was freed'
    as_bytes(storage).fill_(value)


def check(storage, value):
    assert bool((as_bytes(storage) == value).all()), 'other bytes'


STEPS = st.lists(st.tuples(st.sampled_from(
    ['make', 'make', 'out', 'out', 'back', 'back', 'read', 'forget', 'settle', 'run', 'run']),
    st.integers(0, 1000)), min_size=10, max_size=80)


@pytest.mark.parametrize('host_bytes', [None, 4096])
def test_no_schedule_reads_other_bytes(machine, host_bytes):
    @settings(max_examples=150, deadline=None)
    @given(st.integers(0, 2**32), STEPS)
    def run(seed, steps):
        device = machine(seed)
        moves = QueuedTransfer(device, host_bytes)
        exercise(device, moves, steps)
        moves.settle(must_free=math.inf)
        assert not moves.stash and not moves.readers
        moves.close()
        assert moves.pool.used_bytes == 0
    run()


@pytest.mark.parametrize('fault', ['no stash', 'no wait for compute', 'block at once',
                                   'no wait for arrival', 'free without a wait'])
def test_the_schedules_find_the_faults_of_others(machine, fault):
    """The judge judges: each of these was a bug in a library."""
    class Faulty(QueuedTransfer):
        def _copy_out(self, storage, block):
            if fault == 'no wait for compute':
                with transfer.torch.cuda.stream(self.to_host):
                    wrong = transfer.torch.cuda.current_stream(None)  # the side stream itself
                    with device.stream(wrong):
                        return super()._copy_out(storage, block)
            super()._copy_out(storage, block)
            if fault == 'no stash':
                self.stash.clear()

        def release(self, block):
            if fault == 'block at once':
                self.written.pop(block, None)
                self.readers = [entry for entry in self.readers if entry.block is not block]
                return self.pool.release(block)
            return super().release(block)

        def settle(self, *, must_free=0):
            if fault == 'free without a wait':
                self._free([storage for _, storage in self.stash])
                self.stash.clear()
            super().settle(must_free=must_free)

        def wait(self, arrival):
            if fault != 'no wait for arrival':
                super().wait(arrival)

    rng, found = random.Random(0), 0
    for seed in range(300):
        device = machine(seed)
        moves = Faulty(device, None)
        names = ['make', 'make', 'out', 'out', 'back', 'back', 'read', 'run', 'forget']
        steps = [(rng.choice(names), rng.randrange(1000)) for _ in range(60)]
        try:
            exercise(device, moves, steps)
        except AssertionError:
            found += 1
    assert found > 0


def test_copies_on_a_cpu_are_there_at_once_and_the_cap_holds():
    moves = Transfer(torch.device('cpu'), 2048, None)
    storages = [torch.full((1000,), value, dtype=torch.uint8).untyped_storage()
                for value in (1, 2, 3)]
    blocks = [moves.out(storage) for storage in storages]
    assert blocks[2] is None and moves.pool.used_bytes == 2048
    del storages
    for block, value in zip(blocks[:2], (1, 2), strict=True):
        storage, arrival = moves.back(block, 1000)
        assert arrival is None
        check(storage, value)
    assert moves.pool.used_bytes == 0


def test_a_link_is_measured_once_and_a_given_one_is_kept():
    moves = Transfer(torch.device('cpu'), None, None)
    assert moves.link is moves.link and not moves.link.overlaps
    assert 1e7 < moves.link.out_bytes_per_s < 1e13
    given_link = transfer.Link(1.0, 2.0, overlaps=True)
    assert Transfer(torch.device('cpu'), None, given_link).link is given_link
