"""What is folded has the times, the memory and the loads of the whole, to the bit."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vision.pipeline.core.schedules import make_table
from vision.pipeline.core.tasks import Costs
from vision.simulator.core.engine import run
from vision.simulator.core.fold import fold
from vision.simulator.core.from_actions import from_actions
from vision.simulator.core.program import GRADIENT, TRANSFER, Buffer, Flow, Node, Program

sys.path.insert(0, str(Path(__file__).parent))
from random_programs import copies, random_program


def with_buffers(program):
    """Each compute node makes something that the next node of any stream on its rank ends."""
    nodes, buffers = list(program.nodes), {}
    for rank in range(program.num_ranks):
        numbers = [number for number, node in enumerate(nodes) if rank in node.ranks]
        for number, later in zip(numbers, numbers[2:], strict=False):
            name = f'b{rank}.{number}'
            buffers[name] = Buffer(rank, 100 + number, 'activations')
            nodes[number] = replace(nodes[number], begins=(*nodes[number].begins, name))
            nodes[later] = replace(nodes[later], after=(*nodes[later].after, number),
                                   ends=(*nodes[later].ends, name))
    return replace(program, nodes=tuple(nodes), buffers=buffers)


def assert_same(program, folded):
    whole, small = run(program), run(folded.program)
    for number, own in enumerate(folded.node_of):
        assert whole.starts[number] == small.starts[own], program.nodes[number].name
        assert whole.ends[number] == small.ends[own], program.nodes[number].name
    assert whole.makespan == small.makespan
    for rank, own in enumerate(folded.rank_of):
        assert whole.memory(rank) == small.memory(own)
        assert whole.busy[rank] == small.busy[own] and whole.exposed[rank] == small.exposed[own]


@pytest.mark.parametrize('seed', range(30))
def test_copies_are_folded_and_nothing_changes(seed):
    program = copies(with_buffers(random_program(seed)), 4)
    folded = fold(program)
    assert folded.program.num_ranks <= 3 and folded.program.replicas % 4 == 0
    assert folded.program.num_ranks * folded.program.replicas == program.num_ranks
    assert_same(program, folded)


def test_what_is_folded_still_loads_the_link_it_shared():
    """Four groups over one card take 12 s, and so does the one that stands for them."""
    groups = tuple(Node(f'reduce {rank}', 'all_reduce', (rank,), GRADIENT,
                        flows=(Flow(('card',), 30),)) for rank in range(4))
    program = Program(4, groups, links={'card': 10})
    folded = fold(program).program
    assert (folded.num_ranks, folded.replicas, len(folded.nodes)) == (1, 4, 1)
    assert folded.nodes[0].flows == (Flow(('card',) * 4, 30),)
    assert run(folded).makespan == 12


@pytest.mark.parametrize('change', [
    lambda node: replace(node, seconds=node.seconds + 1),
    lambda node: replace(node, latency=0.5),
    lambda node: replace(node, flows=(Flow(('card',), 31),))])
def test_a_rank_that_differs_is_not_folded(change):
    nodes = [Node(f'reduce {rank}', 'all_reduce', (rank,), GRADIENT,
                  flows=(Flow(('card',), 30),)) for rank in range(4)]
    nodes[2] = change(nodes[2])
    program = Program(4, tuple(nodes), links={'card': 10})
    assert fold(program).program is program


def test_a_rank_with_other_memory_is_not_folded():
    program = Program(2, (), dict(a=Buffer(0, 1, 'inputs'), b=Buffer(1, 2, 'inputs')))
    assert fold(program).program is program
    equal = replace(program, buffers=dict(a=Buffer(0, 1, 'inputs'), b=Buffer(1, 1, 'inputs')))
    assert fold(equal).program.replicas == 2


def test_messages_round_a_ring_are_one_message_of_a_rank_to_itself():
    """Each rank has two of them, in another order; what comes belongs to the receiver."""
    nodes = tuple(Node(f's{rank}', 'send', (rank, (rank + 1) % 4), TRANSFER, 2,
                       begins=(f'in {(rank + 1) % 4}',)) for rank in range(4))
    program = Program(4, nodes, {f'in {rank}': Buffer(rank, 9, 'inputs') for rank in range(4)},
                      replicas=2)
    folded = fold(program)
    assert (folded.program.num_ranks, folded.program.replicas) == (1, 8)
    assert [node.ranks for node in folded.program.nodes] == [(0,)]
    assert folded.program.nodes[0].begins == ('in 0',)
    assert_same(program, folded)


def test_the_order_of_messages_does_not_matter():
    kinds = ((0, 'a'), (0, 'b'), (1, 'b'), (1, 'a'))
    program = Program(2, tuple(Node(kind, kind, (rank,), TRANSFER, 1) for rank, kind in kinds))
    assert fold(program).program.replicas == 2
    in_order = replace(program, nodes=tuple(replace(node, stream=GRADIENT)
                                            for node in program.nodes))
    assert fold(in_order).program is in_order


def test_copies_of_a_pipeline_are_one_pipeline():
    """Stages differ by their place alone, and that is enough: four ranks stay four."""
    program = from_actions(make_table('1f1b', 4, 1, 6), Costs.uniform(4, latency=0.25))
    assert fold(program).program is program
    folded = fold(copies(program, 8))
    assert folded.program.num_ranks == 4 and folded.program.replicas == 8
    assert_same(copies(program, 8), folded)


def test_a_program_that_never_ends_is_left_to_the_engine():
    program = Program(2, (Node('a', 'F', (0,), after=(1,)), Node('b', 'F', (1,), after=(0,))))
    assert fold(program).program is program
