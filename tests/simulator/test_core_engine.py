"""Times against a slow judge and by hand; who waits; what would never end."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vision.common.core.errors import VisionError
from vision.simulator.core.ablations import without_sharing, without_slowdowns
from vision.simulator.core.engine import run
from vision.simulator.core.program import (
    COMPUTE,
    FEATURE,
    GRADIENT,
    TRANSFER,
    Flow,
    Node,
    Program,
)
from vision.simulator.core.sharing import SharedLinks

sys.path.insert(0, str(Path(__file__).parent))
from random_programs import fair_rates, random_program, slow_run


@pytest.mark.parametrize('is_slowed', [False, True])
@pytest.mark.parametrize('seed', range(40))
def test_times_are_those_of_the_judge(seed, is_slowed):
    program = random_program(seed, is_slowed=is_slowed)
    starts, ends = slow_run(program)
    outcome = run(program)
    for number in range(len(program.nodes)):
        assert outcome.starts[number] == pytest.approx(float(starts[number]), abs=1e-9)
        assert outcome.ends[number] == pytest.approx(float(ends[number]), abs=1e-9)
    again = run(program)
    assert (again.starts, again.ends) == (outcome.starts, outcome.ends)  # to the bit


@pytest.mark.parametrize('seed', range(20))
def test_shares_are_those_of_the_judge_while_flows_come_and_go(seed):
    program = random_program(seed, num_nodes=30)
    flows = [flow.links for node in program.nodes for flow in node.flows]
    links, rates, active = SharedLinks(program.links), {}, []
    for number, crossed in enumerate(flows):
        links.add(number, crossed)
        active.append(number)
        if number % 3 == 2:
            links.remove(active.pop(number % len(active)))
        rates |= links.new_rates()
        expected = fair_rates([flows[each] for each in active], program.links)
        assert [rates[each] for each in active] == pytest.approx(list(map(float, expected)))


def ends_of(*nodes, num_ranks=1, **kwargs):
    return run(Program(num_ranks, nodes, **kwargs)).ends


def test_a_collective_begins_when_it_is_at_the_head_on_all_ranks():
    outcome = run(Program(2, (
        Node('a', 'F', (0,), seconds=1), Node('b', 'F', (1,), seconds=3),
        Node('reduce', 'all_reduce', (0, 1), GRADIENT, 2, after=(0, 1)),
        Node('c', 'F', (0,), seconds=1),
        Node('reduce again', 'all_reduce', (0,), GRADIENT, 2, after=(3,)))))
    assert outcome.starts == (0, 0, 3, 1, 5) and outcome.makespan == 7
    assert outcome.busy == ({COMPUTE: 2, GRADIENT: 4}, {COMPUTE: 3, GRADIENT: 2})
    assert outcome.exposed == (4, 2) and outcome.bubble == pytest.approx(1 - 2 / 7)


def test_only_while_both_are_there_they_slow_each_other_down():
    """Gradients take 5 s beside compute, for 4 alone; compute does 5 / 1.5 of its 10 s by then."""
    nodes = (Node('B', 'B', (0,), seconds=10), Node('reduce', 'all_reduce', (0,), GRADIENT, 4))
    slowdowns = {(COMPUTE, GRADIENT): 0.5, (GRADIENT, COMPUTE): 0.25}
    program = Program(1, nodes, slowdowns=slowdowns)
    assert run(program).ends == pytest.approx((5 + 10 - 5 / 1.5, 5))
    assert run(without_slowdowns(program)).ends == (10, 4)  # 14 % too short


def test_slow_downs_of_several_streams_add_up_and_the_slowest_rank_counts():
    slowdowns = {(COMPUTE, GRADIENT): 0.5, (COMPUTE, FEATURE): 0.25, (GRADIENT, COMPUTE): 1.0}
    ends = ends_of(Node('B', 'B', (0,), seconds=7), Node('g', 'reduce', (0, 1), GRADIENT, 8),
                   Node('f', 'gather', (0,), FEATURE, 8), num_ranks=2, slowdowns=slowdowns)
    # 7 s at 1 / 1.75 are over at 12.25; f at 8, from where on it is 1 / 1.5; g at half its speed.
    compute = 8 + 1.5 * (7 - 8 / 1.75)
    assert ends == pytest.approx((compute, compute + 8 - compute / 2, 8))


def test_what_changes_no_rate_changes_no_bit():
    """0.9 - 0.2 + 0.2 is not 0.9: compute is not cut where what does not slow it ends."""
    nodes = (Node('B', 'B', (0,), seconds=0.9),
             *(Node(f'g{k}', 'g', (0,), FEATURE, seconds) for k, seconds in enumerate((.2, .1))))
    assert ends_of(*nodes, slowdowns={(COMPUTE, GRADIENT): 0.5, (GRADIENT, FEATURE): 0.5}
                   )[0] == 0.9


def test_two_transfers_share_a_link_while_both_are_under_way():
    """10 bytes a second: 50 of 100 bytes alone by 5, then 5 a second each until 15; the other has
    50 left and ends at 20. Each for itself they would end at 10 and 15."""
    program = Program(2, (
        Node('late', 'F', (0,), seconds=5),
        Node('first', 'send', (0, 1), TRANSFER, flows=(Flow(('link',), 100),)),
        Node('second', 'send', (0, 1), TRANSFER, flows=(Flow(('link',), 100),), after=(0,))),
        links={'link': 10})
    assert run(program).ends == (5, 15, 20)
    assert run(without_sharing(program)).ends == (5, 10, 15)


def test_what_one_cannot_use_is_for_the_others():
    links = {'wide': 10, 'narrow': 4}
    ends = ends_of(*(Node(str(k), 'send', (0,), TRANSFER, flows=(Flow(crossed, 8),))
                     for k, crossed in enumerate((('wide',), ('wide', 'narrow'), ('narrow',)))),
                   links=links)
    assert ends == (1, 4, 4)  # 8, 2 and 2 bytes a second


def test_a_node_takes_the_longer_of_its_seconds_and_its_flows_after_its_latency():
    for seconds, end in ((2, 4), (8, 9)):
        assert ends_of(Node('x', 'send', (0,), TRANSFER, seconds, 1, (Flow(('l',), 6),)),
                       links={'l': 2}) == (end,)
    assert ends_of(Node('x', 'send', (0,), TRANSFER, latency=1, flows=(Flow((), 6),))) == (1,)


def test_messages_do_not_wait_for_each_other_and_nodes_of_a_stream_do():
    def two(stream):
        return ends_of(Node('a', 'send', (0,), stream, 2), Node('b', 'send', (0,), stream, 1))
    assert two(TRANSFER) == (2, 1) and two(FEATURE) == (2, 3)


def test_a_cycle_is_told_by_names():
    """Both ranks have the two collectives in another order."""
    nodes = (Node('early', 'F', (0,)), Node('gather 1', 'g', (0, 1), FEATURE, after=(3,)),
             Node('gather 2', 'g', (0, 1), FEATURE), Node('F of 1', 'F', (1,), after=(2,)))
    with pytest.raises(VisionError) as caught:
        run(Program(2, nodes))
    assert caught.value.code == 'VIS-CONFIG-1601' and '3 of 4 nodes' in caught.value.where
    assert caught.value.what == (
        'the step would never end: gather 1 waits for F of 1, which waits for gather 2, which '
        'stands behind gather 1 on the feature stream of rank 0')


def test_who_waits_for_a_cycle_is_not_in_it():
    nodes = (Node('late', 'F', (1,), after=(1,)), Node('a', 'F', (0,), after=(2,)),
             Node('b', 'F', (0,)))
    with pytest.raises(VisionError, match='end: a waits for b, which stands behind a on the comp'):
        run(Program(2, nodes))


def test_an_empty_program_takes_no_time():
    assert run(Program(2, ())).makespan == 0


@pytest.mark.parametrize(('node', 'said'), [
    (Node('x', 'F', (2,)), 'rank'), (Node('x', 'F', (0,), after=(1,)), 'waits for'),
    (Node('x', 'F', (0,), seconds=-1), 'seconds'), (Node('x', 'F', (0,), 'other'), 'stream'),
    (Node('x', 'send', (0,), TRANSFER, flows=(Flow(('gone',), 1),)), 'gone')])
def test_a_broken_program_is_our_mistake(node, said):
    with pytest.raises(AssertionError, match=said):
        run(Program(2, (node,)))


def test_sharing_off_is_too_short_for_collectives_of_neighbours():
    """Four groups of a node reduce over one card: each takes four times as long."""
    groups = tuple(Node(f'reduce {rank}', 'all_reduce', (rank,), GRADIENT,
                        flows=(Flow(('card',), 30),)) for rank in range(4))
    program = Program(4, groups, links={'card': 10})
    assert run(program).makespan == 12 and run(without_sharing(program)).makespan == 3
    slow = replace(program, nodes=(replace(groups[0], seconds=5),))
    assert run(without_sharing(slow)).makespan == 5
    alone = replace(program, nodes=groups[:1])
    assert run(alone).makespan == run(without_sharing(alone)).makespan == 3
