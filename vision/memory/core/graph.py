"""One training step as numbers: operators, the values they made, and who reads these when.

A *moment* is the index of an operator in the step, forward and backward in one sequence. A *value*
is one version of one storage: an operator that writes in place makes a new value of the same
storage. Views are no values; they belong to the value whose storage they show.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class Call:
    """An operator of the forward pass.

    Args:
        name: such as ``aten.convolution``.
        moment: its index in the step.
        seconds: how long it took.
        inputs: values that it reads; what lives longer than the step (parameters, the batch) is
            not among them.
        outputs: values that it made.
        replayable: may it run again? Not so factories, whose memory others may fill unseen,
            collectives, and operators that gave another result when they were tried.
        inplace: (input, output) values that share a storage: the output overwrites the input.
    """

    name: str
    moment: int
    seconds: float
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    replayable: bool = True
    inplace: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Value:
    """One version of a storage.

    Args:
        num_bytes: of the whole storage.
        call: index of the call that made it.
        born: its moment.
        death: last moment at which the unmanaged step holds it in this version.
        packed: moment at which autograd saved it first; None: never.
        idle: last moment at which somebody besides autograd holds it: from the next one on,
            leaving it out frees its memory. None: somebody holds it as long as autograd does.
        may_drop: autograd saved it, it is large enough, and nothing pins it.
        where: name of the module that made it, '' where modules are not watched.
        shape: of the tensor that was saved or made first.
    """

    num_bytes: int
    call: int
    born: int
    death: int
    packed: int | None = None
    idle: int | None = None
    may_drop: bool = False
    where: str = ''
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Trace:
    """A step as it ran without a budget.

    Args:
        live_bytes: (K,) bytes of storages made in the step, right after operator k made its
            outputs and before anything is freed that only it still needed.
        made_bytes: (K,) bytes of the new storages of operator k: just before it runs
            ``live_bytes[k] - made_bytes[k]`` are there.
        seconds: (K,) of each operator.
        reads: (moment, value) in the order in which backward asks for saved values; the operator
            of that moment is the next to run.
        signature: of the operators and shapes of the forward pass; plans are kept by it.
    """

    calls: tuple[Call, ...]
    values: tuple[Value, ...]
    live_bytes: np.ndarray
    made_bytes: np.ndarray
    seconds: np.ndarray
    reads: tuple[tuple[int, int], ...]
    signature: int = 0

    @property
    def peak_bytes(self) -> int:
        """Most bytes of the step's own storages at one moment; 0 of an empty step."""
        return int(self.live_bytes.max(initial=0))

    @property
    def op_seconds(self) -> float:
        """Sum of all operators' seconds, forward and backward."""
        return float(self.seconds.sum())

    @property
    def largest_need(self) -> tuple[int, str]:
        """(bytes, name) of the operator of the forward pass whose inputs and outputs take most:
        no plan gets below."""
        return max(((sum(self.values[index].num_bytes for index in {*call.inputs, *call.outputs})
                     - sum(self.values[new].num_bytes for _, new in call.inplace), call.name)
                    for call in self.calls), default=(0, ''))

    @property
    def candidates(self) -> list[int]:
        """Values that a plan may drop or swap."""
        return [index for index, value in enumerate(self.values)
                if value.may_drop and value.idle is not None]


@dataclass
class StepReport:
    """What the last step did. Bytes are of storages made in the step, gradients included.

    Args:
        mode: 'unmanaged' (measuring a ratio's peak), 'reactive' or 'planned'.
        budget_bytes: None while a ratio has not been measured.
        unmanaged_peak_bytes: of the last step that ran without a budget, or as a plan's profile
            has it; 0: not known.
        saved_bytes: what autograd kept for backward at most, of what we may drop.
        replayed_calls, replay_seconds: operators that ran a second time, and in what time.
        swapped_bytes, swap_seconds: copied to the host, and the time of both ways as far as this
            thread waited; host_peak_bytes: most that lay there at once.
        op_seconds: of all operators, replays left out. On a GPU these and ``replay_seconds`` are
            of launches.
        drops: values left out, by action.
        is_over: the peak passed the budget by more than its tolerance.
        notes: what was logged in this step.
    """

    mode: str = 'unmanaged'
    budget_bytes: int | None = None
    peak_bytes: int = 0
    unmanaged_peak_bytes: int = 0
    saved_bytes: int = 0
    replayed_calls: int = 0
    replay_seconds: float = 0.0
    swapped_bytes: int = 0
    swap_seconds: float = 0.0
    host_peak_bytes: int = 0
    op_seconds: float = 0.0
    is_over: bool = False
    drops: dict[str, int] = field(default_factory=lambda: dict(drop=0, swap=0))
    notes: list[str] = field(default_factory=list)
