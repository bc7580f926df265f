"""Two judges of one truth: the engine and the pipeline's own simulator, to the bit."""

import random
from dataclasses import replace

import pytest

from vision.common.core.errors import VisionError
from vision.pipeline.core.gathers import with_gathers
from vision.pipeline.core.schedules import make_table
from vision.pipeline.core.simulate import simulate
from vision.pipeline.core.tasks import SEND_F, Action, B, Costs, F, Table, looped
from vision.pipeline.core.transfers import with_transfers
from vision.pipeline.core.zeropp import zeropp_rows
from vision.pipeline.nn.torch_private import torch_table
from vision.simulator.core.engine import run
from vision.simulator.core.from_actions import from_actions, to_actions

TABLES = [make_table('gpipe', 4, 1, 6), make_table('1f1b', 4, 1, 6), make_table('1f1b', 1, 1, 3),
          make_table('interleaved-1f1b', 3, 2, 6), make_table('breadth-first', 2, 3, 4),
          torch_table('interleaved-zero-bubble', 3, 2, 6), torch_table('zbv', 3, 2, 6),
          torch_table('dualpipev', 3, 2, 6), zeropp_rows(3, 2, 7, 3, Costs.uniform(6)),
          zeropp_rows(4, 4, 28, 7, Costs.uniform(16))]


def uneven(num_stages, seed):
    rng = random.Random(seed)

    def draw(most, make=rng.uniform):
        return tuple(make(0, most) for _ in range(num_stages))

    return Costs(draw(2), draw(2), draw(2), latency=(0, 0.3, 4)[seed], gather=draw(1),
                 reduce=draw(1), activation_bytes=draw(99, rng.randint),
                 weight_bytes=draw(99, rng.randint), static_bytes=draw(99, rng.randint))


def variants(table, costs):
    for gathers in (None, 'per_unit', 'per_step'):
        each = table if gathers is None else with_gathers(table, active=2, reduce=gathers)
        yield from (each, with_transfers(each, costs))
    yield with_transfers(with_gathers(table, active=1), costs)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('table', TABLES, ids=lambda table: f'{table.name}-{table.num_ranks}')
def test_times_memory_and_rows_are_those_of_the_pipeline(table, seed):
    costs = uneven(table.num_stages, seed)
    for each in variants(table, costs):
        timeline, program = simulate(each, costs), from_actions(each, costs)
        outcome = run(program)
        assert to_actions(program) == each
        assert outcome.makespan == timeline.makespan
        found = iter(zip(outcome.starts, outcome.ends, strict=True))
        for row in zip(each.rows, timeline.starts, timeline.ends, strict=True):
            for action, start, end in zip(*row, strict=True):
                assert next(found) == (start, end), action
        for rank in range(each.num_ranks):
            curve = outcome.memory(rank)
            assert list(zip(curve.moments, curve.total, strict=True)) == timeline.memory(rank)
        assert outcome.bubble == pytest.approx(timeline.bubble)


def test_an_overhead_is_of_each_task():
    costs = Costs.uniform(2, latency=0.5)
    table = with_transfers(make_table('1f1b', 2, 1, 2), costs)
    longer = Costs((1.5, 1.5), (1.25, 1.25), (1.25, 1.25), latency=0.5)
    assert run(from_actions(table, costs, overhead_s=0.5)).makespan == \
        simulate(table, longer).makespan == 13


def test_a_message_leaves_when_its_rank_comes_to_the_send():
    """The send of 0F0 stands behind 0F1: a second later than the pipeline's simulator, which has
    a message leave as soon as its task is over."""
    costs = Costs.uniform(2, latency=0.5)
    table = with_transfers(make_table('gpipe', 2, 1, 2), costs)
    row = list(table.rows[0])
    row.remove(Action(0, SEND_F, 0))
    row.insert(row.index(Action(0, SEND_F, 1)), Action(0, SEND_F, 0))
    late = replace(table, rows=(tuple(row), table.rows[1]))
    starts = {}
    for each in (table, late):
        program = from_actions(each, costs)
        assert to_actions(program) == each
        times = dict(zip((node.name for node in program.nodes), run(program).starts, strict=True))
        starts[each.rows] = times['1F0']
    assert starts == {table.rows: 1.5, late.rows: 2.5}
    assert simulate(late, costs).makespan == simulate(table, costs).makespan


def test_messages_show_who_waits():
    costs = Costs.uniform(2, latency=0.5)
    outcome = run(from_actions(make_table('1f1b', 2, 1, 2), costs))
    sends = [node for node in outcome.program.nodes if node.kind == 'send']
    assert [(node.name, node.ranks) for node in sends] == [
        ('1SEND_B0 to rank 0', (1, 0)), ('1SEND_B1 to rank 0', (1, 0)),
        ('0SEND_F0 to rank 1', (0, 1)), ('0SEND_F1 to rank 1', (0, 1))]
    # Rank 0 idles while it sends 0F1 and while both gradients come, rank 1 while 0F0 comes and
    # while it sends the last gradient.
    assert outcome.exposed == (1.5, 1.0)


@pytest.mark.parametrize(('rows', 'code'), [
    (((Action(0, B, 0), Action(0, F, 0)), (Action(1, F, 0), Action(1, B, 0))), 1506),
    (((Action(0, F, 0),), (Action(1, F, 0), Action(1, B, 0))), 1505)])
def test_a_table_that_would_not_run_is_refused(rows, code):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}'):
        from_actions(Table('bad', looped(2, 1), 1, rows), Costs.uniform(2))


def test_ranks_that_wait_for_each_other_are_refused():
    """Rank 0 goes back with micro-batch 1 first, rank 1 forward with 0 alone before that."""
    rows = ((Action(0, F, 0), Action(0, B, 0), Action(0, F, 1), Action(0, B, 1)),
            (Action(1, F, 0), Action(1, F, 1), Action(1, B, 0), Action(1, B, 1)))
    with pytest.raises(VisionError, match='VIS-CONFIG-1502.*never end'):
        from_actions(Table('bad', looped(2, 1), 2, rows), Costs.uniform(2))
