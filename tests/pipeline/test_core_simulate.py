"""Times against a slow judge and by hand; memory by hand; what is written for a trace viewer."""

import json
import random

import pytest

from vision.common.core.errors import VisionError
from vision.pipeline.core.gathers import with_gathers
from vision.pipeline.core.schedules import make_table
from vision.pipeline.core.simulate import simulate
from vision.pipeline.core.tasks import COMPUTE, Action, B, Costs, F, I, Table, W, looped
from vision.pipeline.core.transfers import with_transfers
from vision.pipeline.core.zeropp import zeropp_rows
from vision.pipeline.nn.torch_private import torch_table


def slow_ends(table, costs):
    """Judge: sweep over all tasks until no end moves; no order, no waiting lists."""
    ends = {action: 0.0 for row in table.rows for action in row}
    is_moving = True
    while is_moving:
        is_moving = False
        for rank, row in enumerate(table.rows):
            for place, action in enumerate(row):
                stage, kind, mb = action
                waits = [ends[row[place - 1]]] if place else [0.0]
                for reader, other in (((F, stage - 1), F), ((I, stage + 1), I),
                                      ((I, stage + 1), B), ((B, stage + 1), B),
                                      ((B, stage + 1), I)):
                    maker = Action(reader[1], other, mb)
                    if kind == reader[0] and maker in ends:
                        far = table.rank_of[maker.stage] != rank
                        waits.append(ends[maker] + costs.latency * far)
                end = max(waits) + costs.time_of(action)
                if end != ends[action]:
                    ends[action], is_moving = end, True
    return ends


def random_costs(num_stages, seed):
    rng = random.Random(seed)
    return Costs(*([rng.uniform(0, 2) for _ in range(num_stages)] for _ in range(3)),
                 latency=rng.choice((0, 0.3, 4)))


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('table', [
    make_table('1f1b', 4, 1, 6), make_table('interleaved-1f1b', 3, 2, 6),
    make_table('breadth-first', 2, 3, 4), torch_table('interleaved-zero-bubble', 3, 2, 6),
    torch_table('zbv', 3, 2, 6), torch_table('dualpipev', 3, 2, 6),
    zeropp_rows(3, 2, 7, 3, Costs.uniform(6))], ids=lambda table: table.name)
def test_times_are_those_of_the_judge(table, seed):
    costs = random_costs(table.num_stages, seed)
    expected = slow_ends(table, costs)
    timeline = simulate(table, costs)
    for row, starts, ends in zip(table.rows, timeline.starts, timeline.ends, strict=True):
        for action, start, end in zip(row, starts, ends, strict=True):
            assert end == pytest.approx(expected[action])
            assert end - start == pytest.approx(costs.time_of(action))
    assert timeline.makespan == pytest.approx(max(expected.values()))
    complete = with_transfers(with_gathers(table), costs)  # which cost nothing
    assert simulate(complete, costs).makespan == timeline.makespan


def test_1f1b_by_hand():
    """F 1, B 2, latency 0.5: rank 0 waits for its gradient from 2 to 5."""
    costs = Costs.uniform(2, latency=0.5)
    timeline = simulate(make_table('1f1b', 2, 1, 2), costs)
    assert timeline.starts == ((0, 1, 5, 8), (1.5, 2.5, 4.5, 5.5))
    assert timeline.makespan == 10 and timeline.busy == (0.6, 0.6)
    assert timeline.bubble == pytest.approx(0.4) and timeline.peak_in_flight == (2, 1)


def one_rank(kinds, *, num_stages=1):
    rows = tuple(Action(stage, kind, mb) for stage, kind, mb in kinds)
    return Table('any', looped(1, num_stages), 1, (rows,))


def test_a_task_waits_for_the_gather_of_its_chunk_and_collectives_are_serial():
    costs = Costs.uniform(2, gather=3, reduce=5)
    table = with_gathers(make_table('breadth-first', 1, 2, 1))
    timeline = simulate(table, costs)
    times = {str(action): span for action, *span in zip(
        table.rows[0], timeline.starts[0], timeline.ends[0], strict=True)}
    assert times['0UNSHARD'] == [0, 3] and times['1UNSHARD'] == [3, 6]
    assert times['0F0'] == [3, 4] and times['1F0'] == [6, 7] and times['1B0'] == [7, 9]
    assert times['1REDUCE_GRAD'] == [9, 14] and times['0B0'] == [9, 11]
    assert times['0REDUCE_GRAD'] == [14, 19]
    assert timeline.makespan == 19 and timeline.gathers == (2,)


def test_memory_by_hand():
    costs = Costs((1, 1), (1, 1), (1, 1), activation_bytes=(10, 20), weight_bytes=(100, 200),
                  static_bytes=(7,))
    table = with_gathers(make_table('breadth-first', 1, 2, 1), active=1)
    timeline = simulate(table, costs)
    assert timeline.memory(0) == [
        (0.0, 7 + 100 + 10), (1.0, 7 + 10 + 200 + 20),
        (2.0, 7 + 10 + 200 + 20 + 200),  # the gradient of stage 1
        (4.0, 7 + 10 + 100 + 100),  # reduced; stage 1 freed, stage 0 whole again, its gradient
        (6.0, 7)]
    assert timeline.peak_bytes == (437,)
    plain = simulate(make_table('breadth-first', 1, 2, 1), costs)
    assert plain.peak_bytes == (37,)  # parameters and gradients are static without gathers


def test_gradients_of_a_step_stay_whole():
    costs = Costs.uniform(16, reduce=0.1)
    table = zeropp_rows(4, 4, 28, 7, costs)
    per_unit, per_step = (max(simulate(with_gathers(table, reduce=mode), costs).peak_bytes)
                          for mode in ('per_unit', 'per_step'))
    assert per_unit < per_step <= per_unit + 4


@pytest.mark.parametrize('mode', ['per_unit', 'per_step'])
def test_what_is_made_is_freed(mode):
    """Memory of each unit's gradients too: it ends as it began and is never less."""
    costs = Costs.uniform(16, reduce=0.1, gather=0.2)
    timeline = simulate(with_gathers(zeropp_rows(4, 4, 28, 7, costs), reduce=mode), costs)
    for rank in range(4):
        curve = [num_bytes for _, num_bytes in timeline.memory(rank)]
        assert curve[-1] == 0 == min(curve)


def test_activations_are_held_from_forward_to_weight_gradient():
    costs = Costs.uniform(1)
    kinds = [(0, F, 0), (0, F, 1), (0, I, 0), (0, I, 1), (0, W, 0), (0, W, 1)]
    timeline = simulate(one_rank(kinds), costs)
    assert timeline.peak_in_flight == (2,)
    assert timeline.memory(0) == [(0, 1), (1, 2), (5, 1), (6, 0)]


def test_a_rank_that_waits_for_itself_is_named():
    rows = ((Action(0, F, 0), Action(0, B, 0)), (Action(1, B, 0), Action(1, F, 0)))
    with pytest.raises(VisionError, match='rank 1 waits at 1B0 for rank 1') as caught:
        simulate(Table('any', looped(2, 1), 1, rows), Costs.uniform(2))
    assert caught.value.code == 'VIS-CONFIG-1502'


def test_the_trace_can_be_written_and_has_every_task():
    costs = Costs.uniform(4, latency=0.1, gather=0.5)
    table = with_transfers(with_gathers(make_table('breadth-first', 2, 2, 3)), costs)
    timeline = simulate(table, costs)
    trace = json.loads(json.dumps(timeline.chrome_trace()))
    tasks = [event for event in trace['traceEvents'] if event['ph'] == 'X']
    for rank, row in enumerate(table.rows):
        mine = [event for event in tasks if event['pid'] == rank and event['tid'] == 0]
        assert [event['name'] for event in mine] == \
            [str(action) for action in row if action.kind in COMPUTE]
        assert sum(event['dur'] for event in mine) == \
            pytest.approx(1e6 * timeline.busy[rank] * timeline.makespan)
    assert sum(event['cat'] == 'UNSHARD' for event in tasks) == sum(timeline.gathers)
    peaks = [max(event['args']['bytes'] for event in trace['traceEvents']
                 if event['ph'] == 'C' and event['pid'] == rank) for rank in range(2)]
    assert tuple(peaks) == timeline.peak_bytes
