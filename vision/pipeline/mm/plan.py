"""From the options of a config to the table that all ranks run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vision.common.core.amounts import format_bytes
from vision.common.core.errors import VisionError
from vision.pipeline.core.choose import choose
from vision.pipeline.core.cut import cut
from vision.pipeline.core.gathers import with_gathers
from vision.pipeline.core.schedules import SCHEDULES, make_table
from vision.pipeline.core.simulate import Timeline, simulate
from vision.pipeline.core.tasks import Costs, Table, looped, v_shaped
from vision.pipeline.core.transfers import with_transfers
from vision.pipeline.core.zeropp import zeropp
from vision.pipeline.nn.chunks import PieceCost, measure_pieces, pieces_of
from vision.pipeline.nn.torch_private import TORCH_SCHEDULES, torch_table

V_SHAPED = ('zbv', 'dualpipev')
ONE_CHUNK = ('gpipe', '1f1b')
NAMES = ('auto', 'zeropp', *SCHEDULES, *TORCH_SCHEDULES)
# Predicted steps that near are equal, and the one that takes less memory is better: what ran was
# up to 2 % from what was simulated (docs/results/pipeline_executed.json).
EQUAL_TIMES = 1.02


@dataclass(frozen=True)
class Planner:
    """Makes tables of one pipeline.

    Args:
        schedule: a name of ``NAMES``. 'auto' is the fastest by simulation that fits: ZeroPP, or
            with two chunks one of torch's V-shaped ones.
        num_ranks, num_chunks, num_microbatches: P, V and M.
        unit: U of zeropp, or 'auto'; no other schedule has one.
        budget_bytes: of the memory of a rank; None: as much as the schedule takes.
        active: chunks of a rank whose parameters are whole at a time (sharded data).
        reduce_grad: 'per_unit' or 'per_step'.
        is_sharded: are parameters sharded over several ranks of a stage?

    Raises:
        VisionError: VIS-CONFIG-1535, options that do not go together.
    """

    schedule: str
    num_ranks: int
    num_chunks: int
    num_microbatches: int
    unit: int | str = 'auto'
    budget_bytes: int | None = None
    active: int = 2
    reduce_grad: str = 'per_unit'
    is_sharded: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in NAMES:
            raise wrong_option(f'no schedule is called {self.schedule!r}', 'schedule',
                           f'one of {", ".join(NAMES)}')
        is_number = isinstance(self.unit, int) and not isinstance(self.unit, bool)
        if not (self.unit == 'auto' or is_number and 1 <= self.unit <= self.num_microbatches):
            raise wrong_option(f'a unit of {self.unit!r} micro-batches', 'unit',
                           f"'auto', or from 1 to num_microbatches={self.num_microbatches}")
        if is_number and self.schedule != 'zeropp':
            raise wrong_option(f'unit={self.unit} with schedule={self.schedule!r}', 'unit',
                           "remove it, or take schedule='zeropp', which alone has units")

    def make(self, costs_of: Callable[[tuple[int, ...]], Costs]) -> tuple[Table, str]:
        """(complete table, what it is expected to do in words).

        Args:
            costs_of: costs where these ranks have the stages.

        Raises:
            VisionError: VIS-CONFIG-1503, VIS-CONFIG-1529, nothing fits the budget;
                VIS-CONFIG-1504, VIS-CONFIG-1510: sizes that the schedule cannot have.
        """
        names = [self.schedule]
        if self.schedule == 'auto':
            names = ['zeropp', *(V_SHAPED if self.num_chunks == 2 else ())]
        found, errors = [], []
        for name in names:
            try:
                found.append(self._simulated(name, costs_of))
            except VisionError as error:  # V-shaped ones ask for a number of micro-batches
                errors.append(error)
        if not found:
            raise errors[0]
        least = min(timeline.makespan for timeline, _ in found)
        timeline, warning = min(
            (each for each in found if each[0].makespan <= least * EQUAL_TIMES),
            key=lambda each: max(each[0].peak_bytes))
        return timeline.table, '\n'.join(filter(None, (warning, told(timeline))))

    def _simulated(self, name: str, costs_of: Callable) -> tuple[Timeline, str]:
        """(a schedule in time, what to warn of)."""
        sizes = self.num_ranks, self.num_chunks, self.num_microbatches
        costs = costs_of(v_shaped(self.num_ranks) if name in V_SHAPED else
                         looped(self.num_ranks, self.num_chunks))
        if name == 'zeropp' and self.unit == 'auto':
            choice = choose(*sizes, costs, budget_bytes=self.budget_bytes, active=self.active,
                            reduce=self.reduce_grad, is_sharded=self.is_sharded,
                            extra=self._rivals())
            return choice.timeline, choice.warning
        if name == 'zeropp':
            table = zeropp(*sizes, int(self.unit), costs, self._rivals(),
                           active=self.active if self.is_sharded else None)
        else:
            table = (torch_table if name in TORCH_SCHEDULES else make_table)(name, *sizes)
        if self.is_sharded:
            table = with_gathers(table, active=self.active, reduce=self.reduce_grad)
        timeline = simulate(with_transfers(table, costs), costs)
        self._require_fit(timeline)
        return timeline, ''

    def _rivals(self) -> list[Table]:
        """torch's own order, where it has one of these sizes: the search may find it best."""
        try:
            return [torch_table('interleaved-zero-bubble', self.num_ranks, self.num_chunks,
                                self.num_microbatches)]
        except VisionError:
            return []

    def _require_fit(self, timeline: Timeline) -> None:
        needed, table = max(timeline.peak_bytes), timeline.table
        if self.budget_bytes is not None and needed > self.budget_bytes:
            unit = '' if table.unit is None else f' with a unit of {table.unit}'
            raise VisionError(
                'VIS-CONFIG-1529', f'{table.name}{unit} takes {format_bytes(needed)} on a rank, '
                f'the budget is {format_bytes(self.budget_bytes)}', where='strategy.memory',
                do="schedule='zeropp' with unit='auto', which looks for one that fits, or a "
                'larger memory')


def told(timeline: Timeline) -> str:
    """What a table is expected to do, for the log."""
    table = timeline.table
    unit = '' if table.unit is None else f', unit {table.unit}'
    gathers = f', {max(timeline.gathers)} gathers of chunks' if any(timeline.gathers) else ''
    return (f'{table.name}{unit}: {table.num_ranks} ranks of {table.num_chunks} chunks, '
            f'{table.num_microbatches} micro-batches; expected idle {100 * timeline.bubble:.1f} % '
            f'of a step, at most {max(timeline.peak_in_flight)} chunk activations held, '
            f'{format_bytes(max(timeline.peak_bytes))} on a rank{gathers}')


def stage_costs(pieces: Sequence[PieceCost], ranges: Sequence[tuple[int, int]],
                rank_of: Sequence[int], *, num_shares: int = 1, states: int = 0) -> Costs:
    """Costs of stages from those of their pieces, before a pipeline has run.

    Times are seconds where the pieces were measured, else floating-point operations. Half of a
    backward pass is for the input, half for the weights (our choice: the two products of a layer
    have as many operations); counted, each half has as many as the forward pass.

    Args:
        pieces: of the whole model, for one micro-batch.
        ranges: pieces (begin, end) of each stage.
        num_shares: ranks over which a stage's parameters are sharded.
        states: tensors of the optimizer for each parameter.
    """
    def of_stages(values: Sequence) -> list:
        return [sum(values[a:b]) for a, b in ranges]

    is_measured = all(piece.seconds is not None for piece in pieces)
    forward = of_stages([piece.forward_seconds if is_measured else float(max(piece.flops, 1))
                         for piece in pieces])
    half = [value / 2 for value in of_stages([piece.backward_seconds for piece in pieces])] \
        if is_measured else forward
    weights = of_stages([piece.parameter_bytes for piece in pieces])
    kept = of_stages([piece.activation_bytes for piece in pieces])
    entering = [pieces[a - 1].output_bytes if a else 0 for a, _ in ranges]
    static = [0] * (max(rank_of) + 1)
    for stage, rank in enumerate(rank_of):  # shards of parameters, gradients and states
        static[rank] += (2 + states) * weights[stage] // num_shares
    return Costs(tuple(forward), (0.0, *half[1:]), (2 * half[0], *half[1:]),
                 gather=(0.0,) * len(ranges), reduce=(0.0,) * len(ranges),
                 activation_bytes=tuple(map(sum, zip(entering, kept, strict=True))),
                 weight_bytes=tuple(weights) if num_shares > 1 else (0,) * len(ranges),
                 static_bytes=tuple(static))


def measured_costs(model: nn.Module, inputs: Tensor, given: Any, *, num_ranks: int,
                   num_chunks: int) -> tuple[Costs, str]:
    """(costs of a model's stages as measured here, what was found in words).

    Each piece runs forward and backward on its own, and the pieces are cut into stages of even
    time.

    Args:
        inputs: of the model, one micro-batch (N, ...).
        given: ``strategy.stages`` of a config, or None: pieces are found.

    Raises:
        VisionError: the model cannot be cut (1501, 1520 to 1527).
    """
    pieces = pieces_of(model, given)
    costs = measure_pieces(model, pieces, inputs)
    ranges = cut([cost.seconds for cost in costs], num_ranks * num_chunks)
    return stage_costs(costs, ranges, looped(num_ranks, num_chunks)), (
        f'{len(pieces)} pieces in {len(ranges)} stages of '
        f'{", ".join(str(end - begin) for begin, end in ranges)}; a micro-batch of {len(inputs)} '
        f'takes {sum(cost.seconds for cost in costs):.3g} s in all of them')


def wrong_option(what: str, option: str, do: str) -> VisionError:
    """VIS-CONFIG-1535: an option of the strategy that is not possible."""
    return VisionError('VIS-CONFIG-1535', what, where=f'strategy.{option}', do=do)
