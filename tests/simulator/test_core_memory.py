"""Memory by hand: lifetimes, rounding, peaks and who is to blame, verdicts; and the trace."""

import json

import pytest

from vision.simulator.core.engine import run
from vision.simulator.core.memory import Allocator
from vision.simulator.core.program import COMPUTE, GRADIENT, TRANSFER, Buffer, Node, Program

NODES = (Node('F0', 'F', (0,), seconds=1, begins=('a0',)),
         Node('F1', 'F', (0,), seconds=1, begins=('a1',), ends=('input',)),
         Node('B1', 'B', (0,), seconds=2, begins=('g',), ends=('a1', 'a0')),
         Node('B0', 'B', (0,), seconds=2, ends=('a0',)),
         Node('reduce', 'reduce_scatter', (0, 1), GRADIENT, 3, after=(2,), ends=('g',)))
BUFFERS = dict(weights=Buffer(0, 1000, 'parameters'), input=Buffer(0, 300, 'inputs'),
               a0=Buffer(0, 100, 'activations'), a1=Buffer(0, 513, 'activations'),
               g=Buffer(0, 1000, 'gradients'), far=Buffer(1, 7, 'optimizer'))


@pytest.fixture
def outcome():
    return run(Program(2, NODES, BUFFERS))


def test_memory_by_hand(outcome):
    """a0 goes with the last of its two readers; the input at 2, when g comes."""
    curve = outcome.memory(0)
    assert curve.moments == (0, 1, 2, 4, 6, 7)
    assert curve.total == (1400, 1913, 2613, 2100, 2000, 1000)
    assert curve.categories == dict(
        parameters=(1000,) * 6, gradients=(0, 0, 1000, 1000, 1000, 0),
        activations=(100, 613, 613, 100, 0, 0), inputs=(300, 300, 0, 0, 0, 0))
    assert outcome.memory(1).total == (7,)


def test_a_peak_names_its_moment_and_the_largest(outcome):
    peak = outcome.peak(0)  # in blocks of 512 bytes
    assert (peak.moment, peak.num_bytes) == (2, 1024 + 512 + 1024 + 1024)
    assert peak.categories == dict(parameters=1024, gradients=1024, activations=1536, inputs=0)
    assert peak.culprits == (('a1', 1024, 'activations'), ('g', 1024, 'gradients'),
                             ('weights', 1024, 'parameters'), ('a0', 512, 'activations'))


@pytest.mark.parametrize(('capacity', 'state'), [
    (7000, 'fits'), (4800, 'fits'), (4700, 'tight'), (4560, 'tight'), (4559, 'out of memory')])
def test_a_verdict_tells_on_which_side(outcome, capacity, state):
    allocator = Allocator(fixed_bytes=618, fragmentation=0.1)
    verdict = outcome.verdict(capacity, allocator)
    assert verdict.state == state and verdict.needed_bytes == 618 + round(1.1 * 3584) == 4560
    assert verdict.margin == pytest.approx(1 - 4560 / capacity) and verdict.peak.rank == 0
    assert str(verdict).startswith(f'{state}: rank 0 needs 4.56 kB of') or 'rank 0' in str(verdict)


def test_what_ends_and_what_begins_at_one_moment_are_not_there_together():
    nodes = (Node('a', 'F', (0,), seconds=1, begins=('x',), ends=('x',)),
             Node('b', 'F', (0,), seconds=1, begins=('y',), ends=('y',)))
    buffers = dict(x=Buffer(0, 5, 'temporary'), y=Buffer(0, 5, 'temporary'))
    curve = run(Program(1, nodes, buffers)).memory(0)
    assert (curve.moments, curve.total) == ((0, 1, 2), (5, 5, 0))


def test_a_buffer_that_several_begin_comes_with_the_first():
    """A gradient that is added to; and what no node begins or ends is there all the time."""
    nodes = tuple(Node(f'B{k}', 'B', (0,), seconds=1, begins=('g',) * (k > 0)) for k in range(3))
    curve = run(Program(1, nodes, dict(g=Buffer(0, 5, 'gradients'), w=Buffer(0, 1, 'parameters'))))
    assert curve.memory(0).moments == (0, 1) and curve.memory(0).total == (1, 6)


def test_a_name_that_is_no_buffer_is_our_mistake():
    outcome = run(Program(1, (Node('a', 'F', (0,), begins=('x',)),)))
    with pytest.raises(AssertionError, match="'x'"):
        outcome.memory(0)


def test_a_trace_has_slices_arrows_and_memory(outcome):
    trace = json.loads(json.dumps(outcome.chrome_trace()))
    events = trace['traceEvents']
    slices = [event for event in events if event['ph'] == 'X']
    assert [(each['name'], each['pid'], each['tid'], each['ts'], each['dur']) for each in slices
            ] == [('F0', 0, 0, 0, 1e6), ('F1', 0, 0, 1e6, 1e6), ('B1', 0, 0, 2e6, 2e6),
                  ('B0', 0, 0, 4e6, 2e6), ('reduce', 0, 2, 4e6, 3e6), ('reduce', 1, 2, 4e6, 3e6)]
    arrows = [event for event in events if event['ph'] in 'stf']
    assert [(each['ph'], each['pid'], each['id']) for each in arrows] == [('s', 0, 4), ('f', 1, 4)]
    for arrow in arrows:  # viewers tie an arrow to the slice at its moment
        assert any(each['pid'] == arrow['pid'] and each['tid'] == arrow['tid']
                   and each['ts'] <= arrow['ts'] <= each['ts'] + each['dur'] for each in slices)
    counters = [event for event in events if event['ph'] == 'C' and event['pid'] == 0]
    assert [sum(each['args'].values()) for each in counters] == list(outcome.memory(0).total)
    named = {(event['pid'], event.get('tid')): event['args']['name'] for event in events
             if event['ph'] == 'M' and 'name' in event['args']}
    assert named[0, None] == 'rank 0' and named[0, 0] == COMPUTE and named[1, 2] == GRADIENT


def test_transfers_at_the_same_time_are_on_tracks_of_their_own():
    nodes = tuple(Node(f's{k}', 'send', (0, 1), TRANSFER, seconds) for k, seconds in
                  enumerate((3, 1))) + (Node('later', 'send', (0, 1), TRANSFER, 1, after=(1,)),)
    trace = run(Program(2, nodes)).chrome_trace()
    tracks = {event['name']: event['tid'] for event in trace['traceEvents'] if event['ph'] == 'X'}
    assert tracks['s0'] != tracks['s1'] == tracks['later']
    assert not any(event['pid'] == 1 for event in
                   run(Program(2, nodes)).chrome_trace(ranks=[0])['traceEvents'])
