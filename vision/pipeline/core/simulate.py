"""How long a table takes, who waits, and what memory it needs, from the costs of its tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from vision.common.core.errors import VisionError
from vision.pipeline.core.tasks import (
    COMPUTE,
    REDUCE_GRAD,
    RESHARD,
    TRANSFERS,
    UNSHARD,
    Action,
    B,
    Costs,
    F,
    Table,
    W,
)


@dataclass(frozen=True)
class Timeline:
    """A table in time. ``starts`` and ``ends`` are by rank and place in its row.

    A transfer has the moment at which its rank comes to it; what it takes is the latency between
    two compute tasks. An UNSHARD or REDUCE_GRAD has the time of its collective.
    """

    table: Table
    costs: Costs
    starts: tuple[tuple[float, ...], ...]
    ends: tuple[tuple[float, ...], ...]
    makespan: float = field(init=False)

    def __post_init__(self) -> None:
        last = max((end for row in self.ends for end in row), default=0.0)
        object.__setattr__(self, 'makespan', last)

    @cached_property
    def busy(self) -> tuple[float, ...]:
        """Share of the makespan in which a rank computes."""
        time_of = self.costs.time_of
        return tuple(sum(time_of(action) for action in row if action.kind in COMPUTE)
                     / (self.makespan or 1.0) for row in self.table.rows)

    @property
    def bubble(self) -> float:
        """Idle share of the rank that is idle most."""
        return 1 - min(self.busy)

    @cached_property
    def peak_in_flight(self) -> tuple[int, ...]:
        """Most activations of one chunk and micro-batch that a rank holds, F to W or B."""
        peaks = []
        for row in self.table.rows:
            changes = (_ACTIVATION_CHANGE.get(action.kind, 0) for action in row)
            peaks.append(max(accumulate(changes), default=0))
        return tuple(peaks)

    @cached_property
    def gathers(self) -> tuple[int, ...]:
        """All-gathers of each rank."""
        return tuple(sum(action.kind == UNSHARD for action in row) for row in self.table.rows)

    @cached_property
    def peak_bytes(self) -> tuple[int, ...]:
        """Highest of ``memory`` by rank."""
        return tuple(max(num_bytes for _, num_bytes in self.memory(rank))
                     for rank in range(self.table.num_ranks))

    def memory(self, rank: int) -> list[tuple[float, int]]:
        """(moment, bytes from then on), starting at 0 with what does not depend on the table.

        Static bytes; activations from the start of F to the end of W or B; whole parameters from
        the start of UNSHARD to RESHARD; whole gradients from the first W or B of a chunk to the
        end of its REDUCE_GRAD. A table without gathers has its parameters and gradients in the
        static bytes.
        """
        costs, row = self.costs, self.table.rows[rank]
        is_reduced = {action.stage for action in row if action.kind == REDUCE_GRAD}
        has_gradient: set[int] = set()
        changes: dict[float, int] = defaultdict(int)
        changes[0.0] = _at(costs.static_bytes, rank)
        for action, start, end in zip(row, self.starts[rank], self.ends[rank], strict=True):
            stage, kind = action.stage, action.kind
            weight_bytes = _at(costs.weight_bytes, stage)
            if kind == F:
                changes[start] += _at(costs.activation_bytes, stage)
            elif kind in (W, B):
                changes[end] -= _at(costs.activation_bytes, stage)
                if stage in is_reduced and stage not in has_gradient:
                    has_gradient.add(stage)
                    changes[start] += weight_bytes
            elif kind == UNSHARD:
                changes[start] += weight_bytes
            elif kind == RESHARD:
                changes[end] -= weight_bytes
            elif kind == REDUCE_GRAD:
                has_gradient.discard(stage)
                changes[end] -= weight_bytes
        moments = sorted(changes)
        return list(zip(moments, accumulate(changes[t] for t in moments), strict=True))

    def chrome_trace(self, microseconds: float = 1e6) -> dict[str, Any]:
        """For chrome://tracing and ui.perfetto.dev: a process for each rank with its compute, its
        collectives and its memory. ``microseconds`` are those of one unit of the costs."""
        events: list[dict[str, Any]] = []
        for rank, row in enumerate(self.table.rows):
            events.append(dict(name='process_name', ph='M', pid=rank,
                               args=dict(name=f'rank {rank}')))
            events += [dict(name='thread_name', ph='M', pid=rank, tid=tid, args=dict(name=name))
                       for tid, name in enumerate(('compute', 'collectives'))]
            for action, start, end in zip(row, self.starts[rank], self.ends[rank], strict=True):
                if action.kind in TRANSFERS or action.kind == RESHARD:
                    continue
                events.append(dict(name=str(action), cat=action.kind, ph='X', pid=rank,
                                   tid=int(action.kind not in COMPUTE), ts=start * microseconds,
                                   dur=(end - start) * microseconds,
                                   args=dict(stage=action.stage, microbatch=action.mb)))
            events += [dict(name='memory', ph='C', pid=rank, ts=moment * microseconds,
                            args=dict(bytes=num_bytes)) for moment, num_bytes in self.memory(rank)]
        return dict(traceEvents=events, displayTimeUnit='ms',
                    otherData=dict(schedule=self.table.name, makespan=self.makespan))


_ACTIVATION_CHANGE = {F: 1, W: -1, B: -1}


def simulate(table: Table, costs: Costs) -> Timeline:
    """Times of all actions of a table, with compute alone or complete.

    A rank computes its row in order, one task at a time; a task waits for its inputs, which need
    the latency from another rank, and for the gather of its chunk. UNSHARD and REDUCE_GRAD run
    one after the other on a second stream of the rank from the moment at which the row comes to
    them (our choice: both are collectives of the same group of ranks).

    Raises:
        VisionError: VIS-CONFIG-1502, ranks that wait for each other.
    """
    refuse_short_costs(table, costs)
    run = _Run(table, costs)
    runnable = list(range(table.num_ranks))[::-1]
    while runnable:
        runnable += run.advance(runnable.pop())
    waits = run.waits()
    if waits:
        raise stuck_error(waits)
    return Timeline(table, costs, tuple(map(tuple, run.starts)), tuple(map(tuple, run.ends)))


def refuse_short_costs(table: Table, costs: Costs) -> None:
    """Our own mistake: costs are measured for the stages that the table has."""
    assert len(costs.forward) == len(costs.backward_input) == len(costs.backward_weight) \
        == table.num_stages, f'{len(costs.forward)} costs for {table.num_stages} stages'


def stuck_error(waits: Mapping[int, tuple[str, int]]) -> VisionError:
    """The error, not raised, that names a cycle of ranks that wait for each other.

    Args:
        waits: by rank, the action it waits at and the rank that it waits for.

    Returns:
        VisionError: VIS-CONFIG-1502.
    """
    seen: list[int] = []
    rank = min(waits)
    while rank not in seen and rank in waits:
        seen.append(rank)
        rank = waits[rank][1]
    cycle = seen[seen.index(rank):] if rank in seen else seen
    text = ', which '.join(f'waits at {waits[each][0]} for rank {waits[each][1]}'
                           for each in cycle)
    if rank not in waits:
        text += ', which is at its end'
    return VisionError('VIS-CONFIG-1502', f'the table would never end: rank {cycle[0]} {text}',
                       why='each rank does its row in order, and a transfer takes both sides',
                       do='order the rows so that one order of all actions agrees with each of '
                       'them, as with_transfers does')


class _Run:
    """State of ``simulate``: where each rank is, and when each output was made.

    Outputs are numbered: 0 is forward, 1 the gradient of the input, by stage and micro-batch.
    """

    def __init__(self, table: Table, costs: Costs) -> None:
        self.table, self.costs = table, costs
        num_ranks = table.num_ranks
        self.starts: list[list[float]] = [[] for _ in range(num_ranks)]
        self.ends: list[list[float]] = [[] for _ in range(num_ranks)]
        self.clock = [0.0] * num_ranks
        self.stream = [0.0] * num_ranks
        self.ready = [0.0] * table.num_stages  # parameters of the stage are whole
        self.made: dict[tuple[int, int, int], float] = {}
        self.waiting: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        self.times = {kind: [costs.time_of(Action(stage, kind, 0))
                             for stage in range(table.num_stages)] for kind in COMPUTE}

    def advance(self, rank: int) -> list[int]:
        """Do the rank's row as far as it goes; the ranks that waited for what it made."""
        row, starts, ends = self.table.rows[rank], self.starts[rank], self.ends[rank]
        woken: list[int] = []
        for action in row[len(starts):]:
            kind = action.kind
            if kind not in self.times:
                start, end = self._beside(action, rank)
            else:
                start = max(self.clock[rank], self.ready[action.stage])
                for key, delay in self._inputs(action, rank):
                    if key not in self.made:
                        self.waiting[key].append(rank)
                        return woken
                    start = max(start, self.made[key] + delay)
                end = self.clock[rank] = start + self.times[kind][action.stage]
                if kind != W:
                    key = (int(kind != F), action.stage, action.mb)
                    self.made[key] = end
                    woken += self.waiting.pop(key, ())
            starts.append(start)
            ends.append(end)
        return woken

    def waits(self) -> dict[int, tuple[str, int]]:
        """Ranks whose row is not at its end: the action, and the rank that does not come to it."""
        found = {}
        for rank, row in enumerate(self.table.rows):
            if len(self.starts[rank]) < len(row):
                action = row[len(self.starts[rank])]
                missing = next(key for key, _ in self._inputs(action, rank)
                               if key not in self.made)
                found[rank] = str(action), self.table.rank_of[missing[1]]
        return found

    def _inputs(self, action: Action, rank: int) -> Sequence[tuple[tuple[int, int, int], float]]:
        """(what it reads, delay until that is here)."""
        stage, kind, mb = action
        rank_of, latency = self.table.rank_of, self.costs.latency
        if kind == F:
            if stage == 0:
                return ()
            return (((0, stage - 1, mb), latency if rank_of[stage - 1] != rank else 0.0),)
        if kind == W:
            return (((1, stage, mb), 0.0),)
        if stage == self.table.num_stages - 1:
            return (((0, stage, mb), 0.0),)
        return (((0, stage, mb), 0.0),
                ((1, stage + 1, mb), latency if rank_of[stage + 1] != rank else 0.0))

    def _beside(self, action: Action, rank: int) -> tuple[float, float]:
        """A collective, or what takes no time."""
        if action.kind not in (UNSHARD, REDUCE_GRAD):
            return self.clock[rank], self.clock[rank]
        costs = self.costs.gather if action.kind == UNSHARD else self.costs.reduce
        start = max(self.clock[rank], self.stream[rank])
        end = self.stream[rank] = start + _at(costs, action.stage)
        if action.kind == UNSHARD:
            self.ready[action.stage] = end
        return start, end


def _at(values: Sequence, index: int):
    """Costs that were not given are 0."""
    return values[index] if values else 0
