"""Which unit of micro-batches: the fastest whose memory fits.

The abstracts of ZeroPP (arXiv:2402.03791) say that scheduling units trade bubble, memory and
communication adaptively; how a unit is chosen is our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vision.common.core.amounts import format_bytes
from vision.common.core.errors import VisionError
from vision.pipeline.core.gathers import with_gathers
from vision.pipeline.core.simulate import Timeline, simulate
from vision.pipeline.core.tasks import Costs, Table, unit_ranges
from vision.pipeline.core.transfers import with_transfers
from vision.pipeline.core.zeropp import refuse_unit, zeropp

# Measured costs are not known better; the smaller unit needs less memory.
EQUAL_TIMES = 1.001
# Between units that are tried, so that a step of hundreds of micro-batches is chosen in seconds.
LEAST_RATIO = 1.15


@dataclass(frozen=True)
class Candidate:
    """One unit that was tried.

    Args:
        unit: micro-batches.
        is_tight: activations were held to V * U chunks, the least for the unit.
        makespan: simulated time of a step, in the costs' unit.
        bubble: idle share of the rank that is idle most.
        peak_bytes: of the rank that needs most; peak_in_flight: chunk activations there are.
        gathers: of the rank that has most.
        fits: within the budget.
    """

    unit: int
    is_tight: bool
    makespan: float
    bubble: float
    peak_bytes: int
    peak_in_flight: int
    gathers: int
    fits: bool


@dataclass(frozen=True)
class Choice:
    """What was chosen: the complete table, its simulation, and all that was tried.

    ``warning`` is not empty if the unit is below P, where every unit costs a bubble.
    """

    table: Table
    timeline: Timeline
    candidates: tuple[Candidate, ...]
    warning: str = ''

    @property
    def unit(self) -> int:
        """Micro-batches of a scheduling unit in the chosen table."""
        return self.table.unit


def choose(num_ranks: int, num_chunks: int, num_microbatches: int, costs: Costs, *,
           budget_bytes: int | None = None, active: int = 2, reduce: str = 'per_unit',
           extra: Sequence[Table] = (), is_sharded: bool = True) -> Choice:
    """The fastest complete table of ZeroPP whose memory fits on every rank.

    Units that divide the step evenly are tried from M down to P; the least simulated time wins,
    of times a thousandth apart the smallest unit. If none fits: P with as few activations as the
    unit needs, then units below P, the largest that fits, with a warning.

    Args:
        costs: measured, by stage; bytes are needed if there is a budget.
        budget_bytes: of a rank; None for no limit.
        active, reduce: as in ``with_gathers``.
        extra: further tables, as in ``zeropp``.
        is_sharded: data-parallel ranks share parameters, so chunks are gathered.

    Raises:
        VisionError: VIS-CONFIG-1503, even a unit of 1 is above the budget; VIS-CONFIG-1540, sizes
            that are not possible.
    """
    refuse_unit(num_ranks, num_chunks, num_microbatches, 1)
    tried: list[tuple[Candidate, Table, Timeline]] = []

    def attempt(unit: int, is_tight: bool = False) -> bool:
        table = zeropp(num_ranks, num_chunks, num_microbatches, unit, costs, extra,
                       cap=num_chunks * unit if is_tight else None,
                       active=active if is_sharded else None)
        if is_sharded:
            table = with_gathers(table, active=active, reduce=reduce)
        table = with_transfers(table, costs)
        timeline = simulate(table, costs)
        candidate = _candidate(timeline, is_tight, budget_bytes)
        tried.append((candidate, table, timeline))
        return candidate.fits

    for unit in units_to_try(num_ranks, num_microbatches):
        attempt(unit)
    fitting = [each for each in tried if each[0].fits]
    if fitting:
        least = min(candidate.makespan for candidate, *_ in fitting)
        _, table, timeline = min(
            (each for each in fitting if each[0].makespan <= least * EQUAL_TIMES),
            key=lambda each: each[0].unit)
        return Choice(table, timeline, tuple(each[0] for each in tried))
    for unit in _equal_units(num_microbatches, most=min(num_ranks, num_microbatches)):
        if attempt(unit, is_tight=True):
            candidate, table, timeline = tried[-1]
            return Choice(table, timeline, tuple(each[0] for each in tried),
                          _warning(candidate, num_ranks))
    raise _too_small(budget_bytes, min((each[0] for each in tried),
                                       key=lambda each: each.peak_bytes))


def heuristic_unit(num_ranks: int, num_microbatches: int) -> int:
    """A unit when nothing was measured: 2 P - 1 or, so that units are equal, a little more; M at
    most.

    With 2 P - 1 micro-batches the first rank still has forwards to do until the first gradient
    comes back to it: the last rank turns micro-batch 0 of the last chunk round at once, and
    2 (P - 1) tasks later its gradient is on rank 0.
    """
    refuse_unit(num_ranks, 1, num_microbatches, 1)
    num_units = max(1, num_microbatches // (2 * num_ranks - 1))
    return len(unit_ranges(num_microbatches, -(-num_microbatches // num_units))[0])


def units_to_try(num_ranks: int, num_microbatches: int) -> list[int]:
    """Sizes of equal units from M down to P, thinned where there are many; always M, the
    heuristic one and the smallest."""
    sizes = [unit for unit in _equal_units(num_microbatches, most=num_microbatches)
             if unit >= min(num_ranks, num_microbatches)]
    always = {heuristic_unit(num_ranks, num_microbatches), sizes[-1]}
    kept: list[int] = []
    for unit in sizes:
        if not kept or unit in always or kept[-1] >= LEAST_RATIO * unit:
            kept.append(unit)
    return kept


def _equal_units(num_microbatches: int, *, most: int) -> list[int]:
    """Largest sizes of 1, 2, ... equal units, from ``most`` down to 1."""
    sizes = {-(-num_microbatches // num_units) for num_units in range(1, num_microbatches + 1)}
    return sorted((size for size in sizes if size <= most), reverse=True)


def _candidate(timeline: Timeline, is_tight: bool, budget_bytes: int | None) -> Candidate:
    peak_bytes = max(timeline.peak_bytes)
    return Candidate(timeline.table.unit, is_tight, timeline.makespan, timeline.bubble, peak_bytes,
                     max(timeline.peak_in_flight), max(timeline.gathers),
                     budget_bytes is None or peak_bytes <= budget_bytes)


def _warning(candidate: Candidate, num_ranks: int) -> str:
    if candidate.unit >= num_ranks:
        return ''
    return (f'only a unit of {candidate.unit} micro-batches fits the memory budget, less than the '
            f'{num_ranks} ranks: {100 * candidate.bubble:.1f} % of a step is idle. More chunks, '
            'or more data-parallel ranks allow a larger one')


def _too_small(budget_bytes: int, least: Candidate) -> VisionError:
    return VisionError(
        'VIS-CONFIG-1503', f'no schedule fits a memory budget of '
        f'{format_bytes(budget_bytes)} a rank',
        why=f'the least that was found is {format_bytes(least.peak_bytes)}, with a unit of '
        f'{least.unit}: '
        'static bytes, activations and whole chunks of the rank that needs most',
        do='use more data-parallel ranks (smaller shards), more chunks on each rank (smaller '
        'whole ones), smaller micro-batches, or a larger budget')
