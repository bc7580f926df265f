"""What the ranks of a pipeline do: actions, tables of them, and what each costs.

P pipeline ranks hold S = P * V stages (V chunks of the model on each rank); a step runs M
micro-batches. Stages are numbered along the model, ranks and micro-batches from 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

# Values are those that torch writes for its actions.
F, I, W, B = 'F', 'I', 'W', 'B'  # noqa: E741  forward; gradient of the input; of the weights; both
UNSHARD, RESHARD, REDUCE_GRAD = 'UNSHARD', 'RESHARD', 'REDUCE_GRAD'
SEND_F, RECV_F, SEND_B, RECV_B = 'SEND_F', 'RECV_F', 'SEND_B', 'RECV_B'
COMPUTE = (F, I, W, B)
TRANSFERS = (SEND_F, RECV_F, SEND_B, RECV_B)


_ACTION = re.compile(r'(\d{1,9})([A-Z_]+)(\d{0,9})')


class Action(NamedTuple):
    """One entry of a rank's row. ``mb`` is None for what is done to a chunk as a whole."""

    stage: int
    kind: str
    mb: int | None = None

    def __str__(self) -> str:
        """As torch writes it: 3F0, 3SEND_F0, 3UNSHARD."""
        return f'{self.stage}{self.kind}{"" if self.mb is None else self.mb}'


@dataclass(frozen=True)
class Table:
    """What each rank does, in order; the same object is simulated, drawn and run.

    Args:
        name: of the schedule, as a user writes it.
        rank_of: rank of each stage.
        num_microbatches: M.
        rows: actions by rank. Either compute actions alone, or complete (``with_gathers``,
            ``with_transfers``).
        unit: micro-batches of the largest scheduling unit (ZeroPP), or None.
    """

    name: str
    rank_of: tuple[int, ...]
    num_microbatches: int
    rows: tuple[tuple[Action, ...], ...]
    unit: int | None = None

    @property
    def num_ranks(self) -> int:
        """P, the ranks of the pipeline."""
        return len(self.rows)

    @property
    def num_stages(self) -> int:
        """S, the stages of all ranks together."""
        return len(self.rank_of)

    @property
    def num_chunks(self) -> int:
        """V, the stages of a rank."""
        return self.num_stages // self.num_ranks

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """Stages that a rank holds, in order along the model."""
        return tuple(stage for stage, owner in enumerate(self.rank_of) if owner == rank)


def unit_ranges(num_microbatches: int, unit: int) -> list[range]:
    """Micro-batches of each scheduling unit: as few units as ``unit`` allows, of equal size or one
    apart (our choice: a short last unit costs bubble, 3.5 % against 1.5 % for 7 + 7 + 2 and 8 + 8
    micro-batches with 4 ranks of 4 chunks)."""
    num_units = -(-num_microbatches // unit)
    small, num_large = divmod(num_microbatches, num_units)
    starts = [k * small + min(k, num_large) for k in range(num_units + 1)]
    return [range(*pair) for pair in pairwise(starts)]


def row_as_text(row: Sequence[Action]) -> str:
    """'0F0 0SEND_F0 ...', for files; ``row_from_text`` is the reverse."""
    return ' '.join(map(str, row))


def row_from_text(text: str) -> tuple[Action, ...]:
    """Raises ValueError for what is no row."""
    row = []
    for word in text.split():
        match = _ACTION.fullmatch(word)
        if not match or match[2] not in (*COMPUTE, *TRANSFERS, UNSHARD, RESHARD, REDUCE_GRAD):
            raise ValueError(f'{word!r} is no action')
        row.append(Action(int(match[1]), match[2], int(match[3]) if match[3] else None))
    return tuple(row)


def looped(num_ranks: int, num_chunks: int) -> tuple[int, ...]:
    """Rank of each stage: 0 1 2 3 0 1 2 3, chunk after chunk."""
    return tuple(stage % num_ranks for stage in range(num_ranks * num_chunks))


def v_shaped(num_ranks: int) -> tuple[int, ...]:
    """Rank of each stage with two chunks: 0 1 2 3 3 2 1 0; the last stage is on the first rank."""
    return (*range(num_ranks), *reversed(range(num_ranks)))


@dataclass(frozen=True)
class Costs:
    """Of one micro-batch, by stage, in seconds (or any one unit) and bytes.

    Args:
        forward, backward_input, backward_weight: time of F, I and W; B takes I + W. Stage 0
            computes no gradient of its input: torch does all of its backward in W.
        latency: from the end of F or I to the moment its output is on another rank.
        gather: time of the all-gather of a chunk's parameters; reduce: of the reduce-scatter of
            its gradients. 0 without sharded data.
        activation_bytes: kept from F to W for one micro-batch.
        weight_bytes: of a chunk's parameters, whole.
        static_bytes: by rank: shards of parameters, gradients and optimizer state, and what else
            does not depend on the schedule.
    """

    forward: tuple[float, ...]
    backward_input: tuple[float, ...]
    backward_weight: tuple[float, ...]
    latency: float = 0.0
    gather: tuple[float, ...] = ()
    reduce: tuple[float, ...] = ()
    activation_bytes: tuple[int, ...] = ()
    weight_bytes: tuple[int, ...] = ()
    static_bytes: tuple[int, ...] = ()

    @classmethod
    def uniform(cls, num_stages: int, times: Sequence[float] = (1.0, 1.0, 1.0), *,
                latency: float = 0.0, gather: float = 0.0, reduce: float = 0.0) -> Costs:
        """Every stage takes ``times`` for F, I and W."""
        forward, backward_input, backward_weight = ((value,) * num_stages for value in times)
        return cls(forward, backward_input, backward_weight, latency=latency,
                   gather=(gather,) * num_stages, reduce=(reduce,) * num_stages,
                   activation_bytes=(1,) * num_stages, weight_bytes=(1,) * num_stages)

    def merged(self, num_stages: int) -> Costs:
        """Of the same model in fewer stages, each of as many neighbours; for schedules with fewer
        chunks on a rank. ``num_stages`` divides the number of stages."""
        size, rest = divmod(len(self.forward), num_stages)
        assert not rest, (len(self.forward), num_stages)

        def sums(values: Sequence) -> tuple:
            return tuple(sum(values[at:at + size]) for at in range(0, len(values), size))

        return replace(self, **{name: sums(getattr(self, name)) for name in (
            'forward', 'backward_input', 'backward_weight', 'gather', 'reduce',
            'activation_bytes', 'weight_bytes')})

    def time_of(self, action: Action) -> float:
        """Time that a compute action takes."""
        stage = action.stage
        if action.kind == B:
            return self.backward_input[stage] + self.backward_weight[stage]
        return dict(F=self.forward, I=self.backward_input,
                    W=self.backward_weight)[action.kind][stage]
