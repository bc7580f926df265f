"""Schedules side by side: each one complete, checked and simulated with the same costs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from vision.common.core.errors import VisionError
from vision.pipeline.core.choose import Candidate, choose
from vision.pipeline.core.gathers import with_gathers
from vision.pipeline.core.schedules import SCHEDULES, make_table
from vision.pipeline.core.simulate import Timeline, simulate
from vision.pipeline.core.tasks import Costs, Table
from vision.pipeline.core.transfers import validate, with_transfers
from vision.pipeline.core.zeropp import zeropp

TORCH = ('interleaved-zero-bubble', 'zbv', 'dualpipev')  # of torch, which core never imports
NAMES = ('zeropp', *SCHEDULES, *TORCH)
CHUNKS = {'gpipe': 1, '1f1b': 1, 'zbv': 2, 'dualpipev': 2}  # of those that have a fixed number


@dataclass(frozen=True)
class Simulated:
    """One schedule: its complete table in time, and the units tried for it."""

    label: str
    timeline: Timeline
    candidates: tuple[Candidate, ...] = ()
    warning: str = ''

    @property
    def devices_in_flight(self) -> float:
        """Activations in those of all chunks of a rank for one micro-batch."""
        return max(self.timeline.peak_in_flight) / self.timeline.table.num_chunks


@dataclass(frozen=True)
class Comparison:
    """What schedules that stand side by side have in common.

    Args:
        num_ranks, num_chunks, num_microbatches: P, V and M; a schedule that has fewer chunks on a
            rank gets the same model in fewer, longer chunks.
        costs: of ``num_ranks * num_chunks`` stages.
        unit: U of zeropp; None: the fastest that fits.
        active: chunks of a rank whose parameters are whole at a time.
        reduce: a mode of ``REDUCE_MODES``: when gradients are reduced.
        budget_bytes: of a rank, for the choice of a unit.
        torch_table: makes the tables of ``TORCH``: (name, P, V, M) -> Table.
    """

    num_ranks: int
    num_chunks: int
    num_microbatches: int
    costs: Costs
    unit: int | None = None
    active: int = 2
    reduce: str = 'per_unit'
    budget_bytes: int | None = None
    torch_table: Callable[..., Table] | None = None

    def simulated(self, name: str) -> Simulated:
        """A schedule with gathers and transfers, checked and simulated.

        Raises:
            VisionError: VIS-CONFIG-1504, its chunks cannot be joined to those of the others;
                VIS-CONFIG-1503 and VIS-CONFIG-1510, nothing fits, or sizes that the schedule
                cannot have.
        """
        num_chunks = CHUNKS.get(name, self.num_chunks)
        if self.num_chunks % num_chunks:
            raise VisionError('VIS-CONFIG-1504', f'{name} beside {self.num_chunks} chunks on each '
                              'rank', why=f'it has {num_chunks}, and chunks are joined to compare '
                              'them', do=f'give a multiple of {num_chunks} to --chunks, or leave '
                              f'{name} out')
        sizes = self.num_ranks, num_chunks, self.num_microbatches
        costs = self.costs.merged(self.num_ranks * num_chunks)
        if name == 'zeropp' and self.unit is None:
            choice = choose(*sizes, costs, budget_bytes=self.budget_bytes, active=self.active,
                            reduce=self.reduce)
            validate(choice.table)
            return Simulated(f'zeropp U={choice.unit}', choice.timeline, choice.candidates,
                             choice.warning)
        if name == 'zeropp':
            table = zeropp(*sizes, self.unit, costs, active=self.active)
        else:
            table = (self.torch_table if name in TORCH else make_table)(name, *sizes)
        table = with_transfers(with_gathers(table, active=self.active, reduce=self.reduce), costs)
        validate(table)
        label = name if table.unit is None else f'{name} U={table.unit}'
        return Simulated(label, simulate(table, costs))


def read_costs(path: Path, num_ranks: int, num_stages: int) -> Costs:
    """Costs by stage out of a JSON file: ``forward``, ``backward_input`` and ``backward_weight``,
    and any of the other fields of ``Costs`` (times in one unit; bytes; ``static_bytes`` by rank).

    Raises:
        VisionError: VIS-DATA-1501, a file that does not hold costs of so many stages.
    """
    try:
        content = dict(json.loads(path.read_text()))
        lengths = {'latency': None, 'static_bytes': num_ranks}
        known = {field.name: lengths.get(field.name, num_stages) for field in fields(Costs)}
        if unknown := sorted(set(content) - set(known)):
            raise ValueError(f'unknown keys {unknown}; known are {sorted(known)}')
        for name, length in known.items():
            values = content.get(name, [])
            if length is None:
                values = [float(values or 0)]
            needed = name in ('forward', 'backward_input', 'backward_weight')
            if length is not None and len(values) != length and (values or needed):
                raise ValueError(f'{name} has {len(values)} values, {length} are needed')
            if not all(value >= 0 and math.isfinite(value) for value in values):
                raise ValueError(f'{name} has a value that is no number from 0 on')
            content[name] = values[0] if length is None else tuple(values)
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise VisionError('VIS-DATA-1501', f'{path} does not hold costs of {num_stages} stages',
                          where=str(path), why=str(error),
                          do='give a JSON file as --help shows it') from error
    return Costs(**content)
