"""When a rank gathers a chunk's parameters from the ranks that share them, and frees them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from vision.common.core.errors import VisionError
from vision.pipeline.core.tasks import (
    COMPUTE,
    REDUCE_GRAD,
    RESHARD,
    UNSHARD,
    Action,
    B,
    Table,
    W,
    unit_ranges,
)

REDUCE_MODES = ('per_unit', 'per_step')


def with_gathers(table: Table, *, active: int = 2, reduce: str = 'per_unit') -> Table:
    """The table with UNSHARD, RESHARD and REDUCE_GRAD (ZeroPP, arXiv:2402.03791, joins pipeline
    and sharded data; the placement is our choice).

    At most ``active`` chunks of a rank are whole. A gather is issued while the chunk before it is
    computed, where a place is free by then; the W of a chunk needs it whole too. With V <= active
    nothing is gathered twice. What is whole at the end is freed there.

    Args:
        table: compute actions alone.
        active: chunks of a rank that are whole at the same time, at least 1. With 1 no gather is
            hidden behind compute.
        reduce: 'per_unit', gradients of a chunk are reduced after its last W (or B) of each
            scheduling unit, and whole only while the unit is at it; 'per_step', once, and the
            whole gradients of up to V chunks are kept until then. The same for a table without
            units.

    Raises:
        VisionError: VIS-CONFIG-1542, a value that is not allowed.
    """
    if active < 1 or reduce not in REDUCE_MODES:
        raise VisionError('VIS-CONFIG-1542', f'gathers with active={active!r}, reduce={reduce!r}',
                          why='active is a number of chunks from 1 on, reduce one of '
                          f'{", ".join(REDUCE_MODES)}', do='give such a value')
    assert all(action.kind in COMPUTE for row in table.rows for action in row), \
        'gathers are placed first, transfers after them'
    unit = table.unit if table.unit and reduce == 'per_unit' else table.num_microbatches
    sizes = unit_ranges(table.num_microbatches, unit)
    unit_of = [k for k, mbs in enumerate(sizes) for _ in mbs]
    rows = tuple(_with_gathers(row, active, unit_of) for row in table.rows)
    return replace(table, rows=rows)


def count(table: Table) -> dict[str, tuple[int, ...]]:
    """Number of actions of each kind that the table has, by rank."""
    counts = [Counter(action.kind for action in row) for row in table.rows]
    kinds = sorted(set().union(*counts))
    return {kind: tuple(each[kind] for each in counts) for kind in kinds}


def _with_gathers(row: Sequence[Action], active: int, unit_of: Sequence[int]) -> tuple:
    before: dict[int, list[Action]] = defaultdict(list)
    gathers = _gathers(row, active)
    for place, _, freed, stage in sorted(gathers):
        if freed is not None:
            before[place].append(Action(freed, RESHARD))
        before[place].append(Action(stage, UNSHARD))
    last_of_unit = {(action.stage, unit_of[action.mb]): place for place, action in enumerate(row)
                    if action.kind in (W, B)}
    reduced = set(last_of_unit.values())
    made: list[Action] = []
    for place, action in enumerate(row):
        made += (*before[place], action)
        if place in reduced:
            made.append(Action(action.stage, REDUCE_GRAD))
    whole = dict.fromkeys(stage for *_, stage in gathers)
    num_gathers = Counter(stage for *_, stage in gathers)
    num_gathers.subtract(freed for _, _, freed, _ in gathers if freed is not None)
    return (*made, *(Action(stage, RESHARD) for stage in whole if num_gathers[stage]))


def _gathers(row: Sequence[Action], active: int) -> list[tuple[int, int, int | None, int]]:
    """(place at which it is issued, place of the use, chunk freed for it, chunk).

    What is freed is the chunk whose next use is farthest away: no other choice needs fewer
    gathers (Belady 1966). The gather is issued as soon as that chunk's last use is over and its
    own chunk is one of the next ``active`` ones.
    """
    windows = _next_chunks(row, active)
    uses: dict[int, list[int]] = defaultdict(list)
    for place, action in enumerate(row):
        uses[action.stage].append(place)

    def next_use(stage: int, place: int) -> int:
        at = bisect_left(uses[stage], place)
        return uses[stage][at] if at < len(uses[stage]) else len(row)

    gathers: list[tuple[int, int, int | None, int]] = []
    last_use: dict[int, int] = {}  # of what is whole
    for place, action in enumerate(row):
        stage = action.stage
        if stage not in last_use:
            freed, issue = None, 0
            if len(last_use) == active:
                freed = max(last_use, key=lambda each: (next_use(each, place), each))
                issue = last_use.pop(freed) + 1
            while stage not in windows[issue]:
                issue += 1
            gathers.append((issue, place, freed, stage))
        last_use[stage] = place
    return gathers


def _next_chunks(row: Sequence[Action], count: int) -> list[tuple[int, ...]]:
    """The next ``count`` distinct stages from each place of the row on, nearest first."""
    windows: list[tuple[int, ...]] = []
    window: tuple[int, ...] = ()
    for action in reversed(row):
        if window[:1] != (action.stage,):
            window = (action.stage, *(stage for stage in window if stage != action.stage))[:count]
        windows.append(window)
    return windows[::-1]
