"""Sends and receives cannot wait in a circle; a table that is wrong is refused with a reason."""

import pytest
from torch.distributed.pipelining.schedules import _Action, _simulate_comms_compute

from vision.common.core.errors import VisionError
from vision.pipeline.core.gathers import with_gathers
from vision.pipeline.core.schedules import make_table
from vision.pipeline.core.simulate import simulate
from vision.pipeline.core.tasks import (
    COMPUTE,
    RECV_F,
    REDUCE_GRAD,
    RESHARD,
    SEND_B,
    SEND_F,
    TRANSFERS,
    UNSHARD,
    Action,
    Costs,
    Table,
    looped,
)
from vision.pipeline.core.transfers import validate, with_transfers
from vision.pipeline.core.zeropp import zeropp_rows
from vision.pipeline.nn.torch_private import torch_table

COSTS = {'equal': ((1, 1, 1), 0), 'unequal': ((1, 1.3, 0.7), 0.25), 'slow links': ((1, 2, 3), 9)}


def tables():
    for name, chunks in (('gpipe', 1), ('1f1b', 1), ('interleaved-1f1b', 2),
                         ('breadth-first', 3)):
        yield make_table(name, 4, chunks, 8)
    yield torch_table('interleaved-zero-bubble', 4, 2, 8)
    yield torch_table('zbv', 4, 2, 8)
    yield torch_table('dualpipev', 4, 2, 8)
    yield zeropp_rows(4, 2, 8, 4, Costs.uniform(8))


def ids(table):
    return table.name


def parsed(text):
    """'0F0 0SEND_F0' as actions."""
    def action(word):
        kind = next(each for each in (*TRANSFERS, UNSHARD, RESHARD, REDUCE_GRAD, *COMPUTE)
                    if each in word)
        stage, mb = word.split(kind)
        return Action(int(stage), kind, int(mb) if mb else None)
    return tuple(map(action, text.split()))


def hand_made(*rows, mbs=1):
    return Table('hand-made', looped(len(rows), 1), mbs, tuple(map(parsed, rows)))


@pytest.mark.parametrize('costs', COSTS)
@pytest.mark.parametrize('table', tables(), ids=ids)
def test_every_schedule_runs_with_its_transfers(table, costs):
    times, latency = COSTS[costs]
    costs = Costs.uniform(table.num_stages, times, latency=latency)
    for gathered in (table, with_gathers(table)):
        complete = with_transfers(gathered, costs)
        validate(complete)
        left = [[action for action in row if action.kind not in TRANSFERS]
                for row in complete.rows]
        assert left == [list(row) for row in gathered.rows]
        assert simulate(complete, costs).makespan == simulate(gathered, costs).makespan


@pytest.mark.parametrize('table', tables(), ids=ids)
def test_torchs_dry_run_takes_it(table):
    """The judge is torch's own run of a table in steps of one unit."""
    complete = with_transfers(table, Costs.uniform(table.num_stages))
    order = {rank: [_Action.from_str(str(action)) for action in row]
             for rank, row in enumerate(complete.rows)}
    _simulate_comms_compute(order, lambda stage: table.rank_of[stage], table.num_stages)


@pytest.mark.parametrize('table', tables(), ids=ids)
def test_pairs_of_ranks_have_one_order(table):
    """What NCCL needs: both sides issue the transfers of a pair, both ways, in one order."""
    complete = with_transfers(table, Costs.uniform(table.num_stages, (1, 1.3, 0.7), latency=0.2))

    def of_pair(rank, other):
        for stage, kind, mb in complete.rows[rank]:
            if kind in TRANSFERS:
                step = 1 if kind in (SEND_F, 'RECV_B') else -1
                if table.rank_of[stage + step] == other:
                    yield (min(stage, stage + step), kind[-1], mb)

    for rank in range(4):
        for other in range(rank):
            assert list(of_pair(rank, other)) == list(of_pair(other, rank))


def test_nothing_is_sent_between_stages_of_one_rank():
    table = torch_table('zbv', 4, 2, 8)
    complete = with_transfers(table, Costs.uniform(8))
    actions = {action for row in complete.rows for action in row}
    assert not {Action(3, SEND_F, 0), Action(4, RECV_F, 0), Action(4, SEND_B, 0)} & actions
    assert {Action(2, SEND_F, 0), Action(3, RECV_F, 0), Action(5, SEND_B, 0)} <= actions


def test_a_receive_stands_behind_the_task_that_runs_when_it_is_sent():
    """Rank 1 is busy with 1F0 from 1 to 5 when rank 0 sends the input of 1F1 at 2."""
    costs = Costs((1, 4), (0, 1), (1, 1))
    complete = with_transfers(make_table('gpipe', 2, 1, 2), costs)
    assert ' '.join(map(str, complete.rows[1])) == \
        '1RECV_F0 1F0 1RECV_F1 1F1 1B0 1SEND_B0 1B1 1SEND_B1'


def test_a_circle_is_printed():
    """Both ranks wish to send first, each what the other reads later."""
    table = hand_made('0F0 0F1 0SEND_F0 0SEND_F1 0RECV_B0 0B0 0RECV_B1 0B1',
                      '1RECV_F0 1F0 1B0 1SEND_B0 1RECV_F1 1F1 1B1 1SEND_B1', mbs=2)
    with pytest.raises(VisionError) as caught:
        validate(table)
    assert caught.value.code == 'VIS-CONFIG-1502'
    assert ('rank 0 waits at 0SEND_F1 for rank 1, which waits at 1SEND_B0 for rank 0'
            in caught.value.what)


def test_other_orders_of_a_pair_are_a_circle():
    table = hand_made('0F0 0F1 0SEND_F1 0SEND_F0 0RECV_B0 0B0 0RECV_B1 0B1',
                      '1RECV_F0 1RECV_F1 1F0 1F1 1B0 1SEND_B0 1B1 1SEND_B1', mbs=2)
    with pytest.raises(VisionError, match='rank 0 waits at 0SEND_F1 for rank 1, which waits at '
                       '1RECV_F0 for rank 0'):
        validate(table)


def test_compute_that_waits_in_a_circle_is_found_without_transfers():
    table = hand_made('0F0 0B0 0F1 0B1', '1F0 1F1 1B0 1B1', mbs=2)
    with pytest.raises(VisionError, match='rank 0 waits at 0B0 for rank 1, which waits at 1F1 for'
                       ' rank 0'):
        validate(table)


GOOD = '0F0 0SEND_F0 0RECV_B0 0B0', '1RECV_F0 1F0 1B0 1SEND_B0'


@pytest.mark.parametrize(('code', 'rows', 'said'), [
    ('1505', ('0F0 0SEND_F0 0RECV_B0', GOOD[1]), 'stage 0 does micro-batch 0 with 1 F, 0 I'),
    ('1505', (GOOD[0], GOOD[1] + ' 0B0'), 'rank 1 has 0B0'),
    ('1505', (GOOD[0] + ' 0F1', GOOD[1]), 'rank 0 has 0F1'),
    ('1505', ('0F0 0SEND_F0 0RECV_B0 0I0', GOOD[1]), '1 F, 1 I, 0 W, 0 B'),
    ('1506', ('0F0 0SEND_F0 0B0 0RECV_B0', GOOD[1]), '0B0 before 0RECV_B0'),
    ('1506', ('0SEND_F0 0F0 0RECV_B0 0B0', GOOD[1]), '0SEND_F0 before 0F0'),
    ('1506', ('0F0 0SEND_F0 0RECV_B0 0W0 0I0', GOOD[1]), '0W0 before 0I0'),
    ('1508', ('0F0 0RECV_B0 0B0', GOOD[1]), '0SEND_F0 is there 0 times'),
    ('1508', (GOOD[0], GOOD[1] + ' 1SEND_B0'), '1SEND_B0 is there 2 times'),
    ('1509', ('0UNSHARD 0F0 0RESHARD 0SEND_F0 0RECV_B0 0B0', GOOD[1]), '0B0 while'),
    ('1509', ('0UNSHARD 0UNSHARD 0F0 0SEND_F0 0RECV_B0 0B0', GOOD[1]), '0UNSHARD while'),
    ('1509', ('0UNSHARD 0F0 0SEND_F0 0RECV_B0 0B0 0REDUCE_GRAD', GOOD[1]), 'ends with stages'),
    ('1509', ('0UNSHARD 0F0 0SEND_F0 0RECV_B0 0B0 0RESHARD', GOOD[1]), 'not reduced'),
    ('1509', ('0UNSHARD 0F0 0REDUCE_GRAD 0SEND_F0 0RECV_B0 0B0', GOOD[1]), 'no gradient made'),
])
def test_each_fault_has_its_error(code, rows, said):
    validate(hand_made(*GOOD))
    with pytest.raises(VisionError) as caught:
        validate(hand_made(*rows))
    assert caught.value.code == f'VIS-CONFIG-{code}' and said in str(caught.value)


def test_the_last_stage_keeps_the_order_of_micro_batches():
    rows = '0F0 0F1 0B0 0B1', '1F1 1F0 1B0 1B1'
    with pytest.raises(VisionError, match='VIS-CONFIG-1507'):
        validate(hand_made(*rows, mbs=2))
