"""Sends and receives of a table, placed so that no rank can wait for ever, and its check."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

from vision.common.core.errors import VisionError
from vision.pipeline.core.simulate import simulate, stuck_error
from vision.pipeline.core.tasks import (
    COMPUTE,
    RECV_B,
    RECV_F,
    REDUCE_GRAD,
    RESHARD,
    SEND_B,
    SEND_F,
    TRANSFERS,
    UNSHARD,
    Action,
    B,
    Costs,
    F,
    I,
    Table,
    W,
)

KINDS = (*COMPUTE, *TRANSFERS, UNSHARD, RESHARD, REDUCE_GRAD)


def with_transfers(table: Table, costs: Costs) -> Table:
    """The table with a send behind each task whose output goes to another rank, and its receive.

    The rows are cut out of ONE order of all actions of all ranks, in which a send stands next to
    its receive. Hence the table ends even if every transfer blocks both ranks until both are at
    it: of the actions not yet done take the first in that order; all before it on its rank, or on
    both ranks of a transfer, are done, so it can run; and so on to the end. It also follows that
    a pair of ranks issues its transfers, both ways, in the same order, which NCCL needs.

    The order is by simulated time: a receive is issued when its send is, and stands behind the
    task that its rank is busy with at that moment.

    Args:
        table: without transfers, with gathers or not.

    Raises:
        VisionError: VIS-CONFIG-1502, ranks that wait for each other.
    """
    assert not any(action.kind in TRANSFERS for row in table.rows for action in row), \
        'the table has transfers already'
    timeline = simulate(table, costs)
    todo = [deque(zip(*each, strict=True))
            for each in zip(table.rows, timeline.starts, timeline.ends, strict=True)]
    rows: list[list[Action]] = [[] for _ in todo]
    arrived: set[Action] = set()
    held: dict[Action, int] = {}  # ranks whose next action waits for a receive
    # (moment, 0 transfer or 1 action, rank, stage, kind, mb): moments alone may be equal.
    events: list[tuple] = []

    def push_next(rank: int) -> None:
        if todo[rank]:
            action, start, _ = todo[rank][0]
            receive = _receive_before(table, action)
            if receive is None or receive in arrived:
                heapq.heappush(events, (start, 1, rank, 0, '', 0))
            else:
                held[receive] = rank

    for rank in range(table.num_ranks):
        push_next(rank)
    while events:
        _, is_action, rank, *rest = heapq.heappop(events)
        if is_action:
            action, _, end = todo[rank].popleft()
            rows[rank].append(action)
            send = _send_behind(table, action)
            if send is not None:
                heapq.heappush(events, (end, 0, rank, *send))
            push_next(rank)
            continue
        send = Action(*rest)
        receive = _receive_of(send)
        rows[rank].append(send)
        rows[table.rank_of[receive.stage]].append(receive)
        arrived.add(receive)
        if receive in held:
            push_next(held.pop(receive))
    assert not any(todo)
    return replace(table, rows=tuple(map(tuple, rows)))


def _send_behind(table: Table, action: Action) -> Action | None:
    """The send of what a task made, if another rank reads it."""
    stage, kind, mb = action
    if kind == F:
        reader, name = stage + 1, SEND_F
    elif kind in (I, B):
        reader, name = stage - 1, SEND_B
    else:
        return None
    if not 0 <= reader < table.num_stages or table.rank_of[reader] == table.rank_of[stage]:
        return None
    return Action(stage, name, mb)


def _receive_of(send: Action) -> Action:
    is_forward = send.kind == SEND_F
    return Action(send.stage + (1 if is_forward else -1), RECV_F if is_forward else RECV_B,
                  send.mb)


def _send_of(receive: Action) -> Action:
    is_forward = receive.kind == RECV_F
    return Action(receive.stage - (1 if is_forward else -1), SEND_F if is_forward else SEND_B,
                  receive.mb)


def _receive_before(table: Table, action: Action) -> Action | None:
    """The receive of what a task reads from another rank."""
    stage, kind, mb = action
    if kind == F:
        maker, name = stage - 1, RECV_F
    elif kind in (I, B):
        maker, name = stage + 1, RECV_B
    else:
        return None
    if not 0 <= maker < table.num_stages or table.rank_of[maker] == table.rank_of[stage]:
        return None
    return Action(stage, name, mb)


def validate(table: Table) -> None:
    """Refuse a table that would not run, or would run wrong.

    All tasks once and on their rank; a task behind what it reads; forwards of the last stage in
    the order of micro-batches (torch stores losses in the order they are made); every send with
    its receive; compute on whole chunks only; and a run of all rows in which a transfer blocks
    both of its ranks until both are at it. Two ranks with different orders of their transfers
    block there, so orders need no check of their own.

    Raises:
        VisionError: VIS-CONFIG-1502, ranks that wait for each other; VIS-CONFIG-1505, tasks;
            VIS-CONFIG-1506, order inside a rank; VIS-CONFIG-1507, order of the last stage;
            VIS-CONFIG-1508, transfers; VIS-CONFIG-1509, gathers.
    """
    _check_tasks(table)
    _check_last_stage(table)
    has_transfers = any(action.kind in TRANSFERS for row in table.rows for action in row)
    if has_transfers:
        _check_transfers(table)
    for rank, row in enumerate(table.rows):
        _check_order(table, rank, row, has_transfers)
        _check_gathers(rank, row)
    if has_transfers:
        _rendezvous(table)
    else:
        simulate(table, Costs.uniform(table.num_stages))


def _check_tasks(table: Table) -> None:
    num_mbs, num_stages = table.num_microbatches, table.num_stages
    found: Counter[Action] = Counter()
    for rank, row in enumerate(table.rows):
        for action in row:
            stage, kind, mb = action
            if kind not in KINDS:
                raise _wrong_task(f'rank {rank} has {action}', f'kinds are {", ".join(KINDS)}')
            if not 0 <= stage < num_stages or table.rank_of[stage] != rank:
                raise _wrong_task(f'rank {rank} has {action}', 'it is of a stage that the rank '
                                  f'does not hold; it holds {table.stages_of(rank)}')
            if kind in COMPUTE:
                if mb is None or not 0 <= mb < num_mbs:
                    raise _wrong_task(f'rank {rank} has {action}',
                                      f'micro-batches are 0 to {num_mbs - 1}')
                found[action] += 1
    for stage in range(num_stages):
        for mb in range(num_mbs):
            counts = [found[Action(stage, kind, mb)] for kind in (F, I, W, B)]
            if counts not in ([1, 1, 1, 0], [1, 0, 0, 1]):
                said = ', '.join(f'{n} {kind}' for n, kind in zip(counts, 'FIWB', strict=True))
                raise _wrong_task(f'stage {stage} does micro-batch {mb} with {said}',
                                  'each micro-batch goes through each stage once, forward and '
                                  'back, as F I W or F B')


def _check_last_stage(table: Table) -> None:
    last = table.num_stages - 1
    order = [action.mb for action in table.rows[table.rank_of[last]]
             if action.stage == last and action.kind == F]
    if order != sorted(order):
        raise _fault('VIS-CONFIG-1507', f'the last stage goes forward in the order {order}',
                     'losses are stored in the order they are made: micro-batch after micro-batch')


def _check_transfers(table: Table) -> None:
    found = Counter(action for row in table.rows for action in row if action.kind in TRANSFERS)
    wanted = set()
    for row in table.rows:
        for action in row:
            send = _send_behind(table, action) if action.kind in COMPUTE else None
            if send is not None:
                wanted |= {send, _receive_of(send)}
    for action in sorted(wanted | set(found), key=str):
        expected = int(action in wanted)
        if found[action] != expected:
            raise _fault('VIS-CONFIG-1508', f'{action} is there {found[action]} times, and '
                         f'{expected} was expected', 'each output that another '
                         'rank reads is sent once and received once, nothing else is')


def _check_order(table: Table, rank: int, row: Iterable[Action], has_transfers: bool) -> None:
    """What an action of a rank reads stands before it in the same row."""
    done: set[Action] = set()
    for action in row:
        for needed in _needed_here(table, action, has_transfers):
            if not any(each in done for each in needed):
                raise _fault('VIS-CONFIG-1506', f'rank {rank} does {action} before {needed[0]}',
                             'it reads what that makes')
        done.add(action)


def _needed_here(table: Table, action: Action, has_transfers: bool
                 ) -> Iterator[tuple[Action, ...]]:
    """Groups of actions of the same rank, of each of which one comes first."""
    stage, kind, mb = action
    if kind in (SEND_F, SEND_B):
        yield (Action(stage, F, mb),) if kind == SEND_F else \
            (Action(stage, I, mb), Action(stage, B, mb))
    if kind not in COMPUTE:
        return
    if kind == W:
        yield (Action(stage, I, mb),)
        return
    if kind in (I, B):
        yield (Action(stage, F, mb),)
    receive = _receive_before(table, action)
    if receive is not None:
        if has_transfers:
            yield (receive,)
    elif kind == F and stage > 0:
        yield (Action(stage - 1, F, mb),)
    elif kind != F and stage < table.num_stages - 1:
        yield (Action(stage + 1, I, mb), Action(stage + 1, B, mb))


def _check_gathers(rank: int, row: tuple[Action, ...]) -> None:
    """Compute on whole chunks, none gathered twice, none left whole, all gradients reduced."""
    if not any(action.kind in (UNSHARD, RESHARD, REDUCE_GRAD) for action in row):
        return
    whole: set[int] = set()
    unreduced: set[int] = set()
    for action in row:
        stage, kind = action.stage, action.kind
        if kind == UNSHARD and stage in whole:
            raise _wrong_gather(f'rank {rank} does {action} while the chunk is whole',
                                'a chunk is gathered after it was freed')
        if kind in (*COMPUTE, RESHARD, REDUCE_GRAD) and stage not in whole:
            raise _wrong_gather(f'rank {rank} does {action} while the chunk is not whole',
                                'an UNSHARD of the stage comes first')
        if kind == REDUCE_GRAD and stage not in unreduced:
            raise _wrong_gather(f'rank {rank} does {action} with no gradient made since the last',
                                'gradients are reduced after a W or B of the stage')
        if kind == UNSHARD:
            whole.add(stage)
        elif kind == RESHARD:
            whole.remove(stage)
        elif kind in (W, B):
            unreduced.add(stage)
        elif kind == REDUCE_GRAD:
            unreduced.remove(stage)
    if whole or unreduced:
        raise _wrong_gather(
            f'rank {rank} ends with stages {sorted(whole)} whole and {sorted(unreduced)} with '
            'gradients not reduced',
            'every chunk is freed and every gradient reduced at the end of a step')


def _rendezvous(table: Table) -> None:
    """Run all rows; a transfer waits until its other side is at the matching one."""
    rows, rank_of = table.rows, table.rank_of
    places = [0] * table.num_ranks

    def partner(action: Action) -> Action:
        return _receive_of(action) if action.kind in (SEND_F, SEND_B) else _send_of(action)

    def next_transfer(rank: int) -> Action | None:
        row, place = rows[rank], places[rank]
        while place < len(row) and row[place].kind not in TRANSFERS:
            place += 1
        places[rank] = place
        return row[place] if place < len(row) else None

    runnable = list(range(table.num_ranks))
    while runnable:
        rank = runnable.pop()
        action = next_transfer(rank)
        if action is None:
            continue
        other = rank_of[partner(action).stage]
        if next_transfer(other) == partner(action):
            places[rank] += 1
            places[other] += 1
            runnable += [rank, other]
    waits = {}
    for rank in range(table.num_ranks):
        action = next_transfer(rank)
        if action is not None:
            waits[rank] = str(action), rank_of[partner(action).stage]
    if waits:
        raise stuck_error(waits)


def _wrong_task(what: str, why: str) -> VisionError:
    return _fault('VIS-CONFIG-1505', what, why)


def _wrong_gather(what: str, why: str) -> VisionError:
    return _fault('VIS-CONFIG-1509', what, why)


def _fault(code: str, what: str, why: str) -> VisionError:
    return VisionError(code, what, why=why,
                       do='make the table with with_gathers and with_transfers, or mend its rows')
