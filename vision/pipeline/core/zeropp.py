"""ZeroPP's table: units of micro-batches, breadth-first inside, the weight gradients as filling.

After Tang et al. (arXiv:2402.03791). The paper's abstracts say that forward, input-gradient and
weight-gradient tasks are staggered inside adaptive scheduling units; the order inside of a unit,
the rules below and the search over them are our choice, judged by simulation.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import product

from vision.common.core.errors import VisionError
from vision.pipeline.core.gathers import with_gathers
from vision.pipeline.core.schedules import refuse_sizes
from vision.pipeline.core.simulate import simulate
from vision.pipeline.core.tasks import (
    Action,
    Costs,
    F,
    I,
    Table,
    W,
    looped,
    unit_ranges,
)
from vision.pipeline.core.transfers import validate

# Costs become whole numbers: sums that are equal on paper are then equal, and no tie is decided
# by rounding. A millionth of the longest task is far below what is measured.
RESOLUTION = 10**6
NEAR_BEST = 1.005
TIES = ('backward', 'forward', 'patient')


def zeropp_rows(num_ranks: int, num_chunks: int, num_microbatches: int, unit: int, costs: Costs,
                *, lag: int | None = None, cap: int | None = None, tie: str = 'backward'
                ) -> Table:
    """One table by list scheduling of all ranks together, event by event.

    On a rank, F go unit by unit and chunk by chunk, I unit by unit from the last chunk to the
    first, W in the order of their I. A rank that is free takes the first of: W, if ``lag`` are
    pending; I, if its gradient is here; F, if its input is here and fewer than ``cap``
    activations are held; W; else it waits for the next event.

    It ends for all sizes and costs. Take the first unit that is not done on all ranks: a rank
    that waits has no W left, so it holds activations of this unit and later ones alone, and while
    an F of this unit is left, of this unit alone: fewer than cap >= V * U. So neither cap nor lag
    stops the unit's F, which have one order for all ranks (chunk, micro-batch, rank), nor then
    its I.

    Args:
        unit: U, micro-batches of a unit, 1 to M; units are made equal (``unit_ranges``).
        costs: by stage, S = P * V of each.
        lag: W pending from which one goes first, at least 1 (default 2 (P - 1)).
        cap: most chunk activations from F to W on a rank, at least V * U (default V * U + P).
        tie: 'backward', the order above; 'forward', F before I; 'patient', no W is begun that an
            I or F on its way would have to wait for, if the rank waits less than half of the W.

    Raises:
        VisionError: VIS-CONFIG-1540, VIS-CONFIG-1541, sizes that are not possible.
    """
    refuse_unit(num_ranks, num_chunks, num_microbatches, unit)
    units = unit_ranges(num_microbatches, unit)
    lag = 2 * (num_ranks - 1) if lag is None else lag
    least = num_chunks * len(units[0])
    cap = least + num_ranks if cap is None else cap
    assert cap >= least and lag >= 0 and tie in TIES, (cap, lag, tie)
    scheduler = _Scheduler(num_ranks, num_chunks, units, costs)
    rows = scheduler.run(max(lag, 1), cap, tie)
    return Table('zeropp', looped(num_ranks, num_chunks), num_microbatches, rows,
                 unit=len(units[0]))


def refuse_unit(num_ranks: int, num_chunks: int, num_microbatches: int, unit: int) -> None:
    """Raises VIS-CONFIG-1540 or VIS-CONFIG-1541 for sizes that are not possible."""
    refuse_sizes('zeropp', num_ranks, num_chunks, num_microbatches)
    if not 1 <= unit <= num_microbatches:
        raise VisionError('VIS-CONFIG-1541', f'zeropp with a unit of {unit} micro-batches',
                          why=f'a step has {num_microbatches} micro-batches, a unit 1 of them to '
                          'all', do=f'give a unit from 1 to {num_microbatches}')


def zeropp(num_ranks: int, num_chunks: int, num_microbatches: int, unit: int, costs: Costs,
           extra: Sequence[Table] = (), *, cap: int | None = None, active: int | None = 2
           ) -> Table:
    """The best table found for a unit: several settings of ``zeropp_rows``, and other tables.

    The least simulated time wins. Of times within half a percent of it, one with at most
    (2 V - 1) gathers a unit is preferred, as many as visits of chunks in a blockwise unit: what a
    gather costs the links is not simulated. Then time, gathers, memory, and the earlier table
    decide. The result depends on the arguments alone, so ranks that each make it have the same.

    Args:
        extra: tables of compute actions with the same stages, such as torch's interleaved zero
            bubble. One that holds more than ``cap`` activations is left out.
        cap: most chunk activations on a rank (default V * U + P), at least V * U.
        active: chunks that are whole at the same time, for the gathers that are counted and, if
            the costs have a time for them, simulated; None if the data are not sharded.

    Raises:
        VisionError: as ``zeropp_rows``; or an extra table is not valid.
    """
    refuse_unit(num_ranks, num_chunks, num_microbatches, unit)
    units = unit_ranges(num_microbatches, unit)
    size = len(units[0])
    most = num_chunks * size + num_ranks if cap is None else cap
    found: list[tuple[float, int, int, Table]] = []
    for table in _candidates(num_ranks, num_chunks, num_microbatches, size, costs, most, extra):
        timeline = simulate(with_gathers(table, active=active) if active else table, costs)
        peak = max(timeline.peak_in_flight)
        if peak <= most:
            found.append((timeline.makespan, max(timeline.gathers), peak, table))
    best = _choose(found, (2 * num_chunks - 1) * len(units))
    validate(best)
    return best


def _candidates(num_ranks: int, num_chunks: int, num_microbatches: int, unit: int, costs: Costs,
                cap: int, extra: Sequence[Table]) -> Iterator[Table]:
    tight = num_chunks * unit
    caps = sorted({min(cap, tight + more) for more in (0, num_ranks)}, reverse=True)
    # 1 makes W follow its I, so chunks change least: the best where gathers take long.
    lags = dict.fromkeys([2 * (num_ranks - 1), num_ranks, 3 * num_ranks, num_chunks * unit, 1])
    seen = set()
    for most, lag, tie in product(caps, lags, TIES):
        table = zeropp_rows(num_ranks, num_chunks, num_microbatches, unit, costs, lag=lag,
                            cap=most, tie=tie)
        if table.rows not in seen:
            seen.add(table.rows)
            yield table
    for table in extra:
        assert table.rank_of == looped(num_ranks, num_chunks)
        assert table.num_microbatches == num_microbatches
        validate(table)
        yield Table('zeropp', table.rank_of, num_microbatches, table.rows, unit=unit)


def _choose(found: Sequence[tuple[float, int, int, Table]], most_gathers: int) -> Table:
    """Of (time, gathers, memory, table); times a billionth apart are equal."""
    least = min(time for time, *_ in found)

    def score(place: int) -> tuple:
        time, gathers, peak, _ = found[place]
        ratio = round(time / least, 9) if least else 1.0
        is_slow = ratio > NEAR_BEST
        return is_slow, not is_slow and gathers > most_gathers, ratio, gathers, peak, place

    return found[min(range(len(found)), key=score)][-1]


class _Scheduler:
    """State of ``zeropp_rows``. Times are whole numbers, 0 the start of the step."""

    def __init__(self, num_ranks: int, num_chunks: int, units: Sequence[range], costs: Costs
                 ) -> None:
        num_stages = num_ranks * num_chunks
        assert len(costs.forward) == num_stages, (len(costs.forward), num_stages)
        self.num_ranks, self.num_stages = num_ranks, num_stages
        longest = max(*costs.forward, *costs.backward_input, *costs.backward_weight) or 1.0

        def whole(value: float) -> int:
            return round(value / longest * RESOLUTION)

        self.times = {F: [*map(whole, costs.forward)], I: [*map(whole, costs.backward_input)],
                      W: [*map(whole, costs.backward_weight)]}
        self.latency = whole(costs.latency)
        stages = [range(rank, num_stages, num_ranks) for rank in range(num_ranks)]
        self.forwards = [[(stage, mb) for unit in units for stage in each for mb in unit]
                         for each in stages]
        self.backwards = [[(stage, mb) for unit in units for stage in reversed(each)
                           for mb in unit] for each in stages]
        # When the input of a task is on its rank; none is before its maker has begun.
        self.inputs = {(0, mb): 0 for unit in units for mb in unit}
        self.gradients: dict[tuple[int, int], int] = {}
        self.pending: list[deque[tuple[int, int]]] = [deque() for _ in stages]
        self.next_forward, self.next_backward = [0] * num_ranks, [0] * num_ranks
        self.held, self.free_at = [0] * num_ranks, [0] * num_ranks
        self.rows: list[list[Action]] = [[] for _ in stages]
        self.events = [(0, rank) for rank in range(num_ranks)]

    def run(self, lag: int, cap: int, tie: str) -> tuple[tuple[Action, ...], ...]:
        while self.events:
            now, rank = heapq.heappop(self.events)
            if self.free_at[rank] <= now:
                kind = self._choose(rank, now, lag, cap, tie)
                if kind:
                    self._begin(rank, now, kind)
        expected = [3 * len(each) for each in self.forwards]
        assert [len(row) for row in self.rows] == expected, 'the schedule did not end'
        return tuple(map(tuple, self.rows))

    def _choose(self, rank: int, now: int, lag: int, cap: int, tie: str) -> str:
        pending = self.pending[rank]
        if len(pending) >= lag:
            return W
        gradient = _next(self.backwards[rank], self.next_backward[rank], self.gradients)
        forward = _next(self.forwards[rank], self.next_forward[rank], self.inputs)
        if self.held[rank] >= cap:
            forward = None
        ready = [kind for kind, when in ((I, gradient), (F, forward))
                 if when is not None and when <= now]
        if ready:
            return ready[-1 if tie == 'forward' else 0]
        if not pending:
            return ''
        if tie == 'patient' and len(pending) < lag:
            coming = [when for when in (gradient, forward) if when is not None]
            if coming and 2 * (min(coming) - now) < self.times[W][pending[0][0]]:
                return ''
        return W

    def _begin(self, rank: int, now: int, kind: str) -> None:
        if kind == W:
            stage, mb = self.pending[rank].popleft()
            self.held[rank] -= 1
        elif kind == I:
            stage, mb = self.backwards[rank][self.next_backward[rank]]
            self.next_backward[rank] += 1
            self.pending[rank].append((stage, mb))
        else:
            stage, mb = self.forwards[rank][self.next_forward[rank]]
            self.next_forward[rank] += 1
            self.held[rank] += 1
        end = now + self.times[kind][stage]
        self.rows[rank].append(Action(stage, kind, mb))
        self.free_at[rank] = end
        heapq.heappush(self.events, (end, rank))
        if kind == F:
            self._arrive(rank, end, stage + 1, mb, self.inputs)
            if stage == self.num_stages - 1:
                self.gradients[stage, mb] = end
        elif kind == I:
            self._arrive(rank, end, stage - 1, mb, self.gradients)

    def _arrive(self, rank: int, end: int, stage: int, mb: int, where: dict) -> None:
        if not 0 <= stage < self.num_stages:
            return
        reader = stage % self.num_ranks
        where[stage, mb] = end + (self.latency if reader != rank else 0)
        heapq.heappush(self.events, (where[stage, mb], reader))


def _next(order: Sequence[tuple[int, int]], place: int, times: dict) -> int | None:
    """When the input of the next task is there, None if that is not known or none is left."""
    return times.get(order[place]) if place < len(order) else None
