"""Action tables of a pipeline as programs, and back: what is simulated is what runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from vision.pipeline.core.simulate import refuse_short_costs
from vision.pipeline.core.tasks import COMPUTE as TASKS
from vision.pipeline.core.tasks import (
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
from vision.pipeline.core.transfers import KINDS, validate
from vision.simulator.core.program import FEATURE, GRADIENT, TRANSFER, Buffer, Node, Program


def from_actions(table: Table, costs: Costs, *, overhead_s: float = 0.0) -> Program:
    """The program of a pipeline's step; a node for each action, and for each transfer.

    Its times are those of ``vision.pipeline.core.simulate``, to the bit, as long as each send
    stands behind its task with no other task between, as ``with_transfers`` places it: here the
    message leaves when its rank comes to the send, there when the task is over. A send blocks
    nothing, a task waits for the message, which takes the latency and is hindered by no other. A
    receive only says where the row takes it up. UNSHARD is on the FEATURE stream and REDUCE_GRAD
    on the GRADIENT stream, but each waits for the one before it in its row, and for the task
    before it: they are collectives of the same ranks, in one order.

    Memory is that of ``Timeline.memory``: static bytes, activations from F to W or B, whole
    parameters from UNSHARD to RESHARD, whole gradients from the first W or B of a chunk to its
    REDUCE_GRAD.

    Args:
        table: compute actions alone, or complete.
        costs: by stage.
        overhead_s: that each compute action takes beyond its cost.

    Raises:
        VisionError: VIS-CONFIG-1502, ranks that wait for each other; VIS-CONFIG-1505 to
            VIS-CONFIG-1509, a table that would not run.
    """
    refuse_short_costs(table, costs)
    validate(table)
    return _Translation(table, costs, overhead_s).program()


def to_actions(program: Program) -> Table:
    """The table that a program was made from; nodes that are of no action are left out.

    The program is of ``from_actions``, or has nodes with the kinds, stages and micro-batches of
    actions in the order in which ranks do them.
    """
    rows: list[list[Action]] = [[] for _ in range(program.num_ranks)]
    rank_of: dict[int, int] = {}
    for node in program.nodes:
        if node.kind in KINDS and node.stage is not None:
            rank, = node.ranks
            rows[rank].append(Action(node.stage, node.kind, node.mb))
            rank_of[node.stage] = rank
    num_mbs = 1 + max((action.mb for row in rows for action in row if action.mb is not None),
                      default=-1)
    return Table(program.name, tuple(rank_of[stage] for stage in sorted(rank_of)), num_mbs,
                 tuple(map(tuple, rows)), unit=program.unit)


class _Translation:
    """State of ``from_actions``. Nodes of actions are numbered row after row, those of messages
    after all of them."""

    def __init__(self, table: Table, costs: Costs, overhead_s: float) -> None:
        self.table, self.costs, self.overhead_s = table, costs, overhead_s
        actions = [action for row in table.rows for action in row]
        self.has_transfers = any(action.kind in TRANSFERS for action in actions)
        self.number_of = {action: number for number, action in enumerate(actions)
                          if action.mb is not None}  # these are there once
        self.num_actions = len(actions)
        self.messages: dict[Action, Node] = {}  # by the task that makes what is sent
        self.message_number: dict[Action, int] = {}
        self.buffers: dict[str, Buffer] = {
            f'static of rank {rank}': Buffer(rank, _at(costs.static_bytes, rank), 'parameters')
            for rank in range(table.num_ranks)}

    def program(self) -> Program:
        nodes: list[Node] = []
        for rank in range(self.table.num_ranks):
            nodes += _Row(self, rank, len(nodes)).nodes
        return Program(self.table.num_ranks, (*nodes, *self.messages.values()), self.buffers,
                       name=self.table.name, unit=self.table.unit)

    def inputs(self, action: Action) -> tuple[int, ...]:
        """Nodes that make what a task reads, or bring it."""
        stage, kind, mb = action
        if kind == F:
            return (self._from(Action(stage - 1, F, mb), action),) if stage else ()
        if kind == W:
            return (self.number_of[Action(stage, I, mb)],)
        own = self.number_of[Action(stage, F, mb)]
        if stage == self.table.num_stages - 1:
            return (own,)
        maker = Action(stage + 1, I, mb)
        if maker not in self.number_of:
            maker = Action(stage + 1, B, mb)
        return own, self._from(maker, action)

    def _from(self, maker: Action, reader: Action) -> int:
        source, target = (self.table.rank_of[each.stage] for each in (maker, reader))
        if source == target:
            return self.number_of[maker]
        send = Action(maker.stage, SEND_F if maker.kind == F else SEND_B, maker.mb)
        if maker not in self.messages:
            self.message_number[maker] = self.num_actions + len(self.messages)
            before = send if self.has_transfers else maker
            self.messages[maker] = Node(
                f'{send} to rank {target}', 'send', (source, target), TRANSFER,
                latency=self.costs.latency, after=(self.number_of[before],))
        return self.message_number[maker]


class _Row:
    """Nodes of one rank, in the order of its row."""

    def __init__(self, whole: _Translation, rank: int, first: int) -> None:
        self.whole, self.costs, self.rank = whole, whole.costs, rank
        row = whole.table.rows[rank]
        self.is_reduced = {action.stage for action in row if action.kind == REDUCE_GRAD}
        self.num_reduces: Counter[int] = Counter()
        self.num_gathers: Counter[int] = Counter()
        self.gather_of: dict[int, int] = {}  # the last
        self.before: dict[str, int] = {}  # the last task and the last collective
        self.nodes: list[Node] = []
        for number, action in enumerate(row, start=first):
            if action.kind in TASKS:
                made = self._task(action)
            elif action.kind in (UNSHARD, REDUCE_GRAD):
                made = self._collective(action, number)
            else:
                made = dict(ends=(self._name('whole', action),) if action.kind == RESHARD else ())
            self.nodes.append(Node(str(action), action.kind, (rank,), stage=action.stage,
                                   mb=action.mb, **made))
            is_beside = action.kind in (UNSHARD, REDUCE_GRAD)
            self.before['collective' if is_beside else 'task'] = number

    def _task(self, action: Action) -> dict[str, Any]:
        stage, kind, _ = action
        after = self.whole.inputs(action)
        if stage in self.gather_of:
            after = (*after, self.gather_of[stage])
        made = dict(seconds=self.costs.time_of(action) + self.whole.overhead_s, after=after)
        activation = self._name('activation', action)
        if kind == F:
            self._add(activation, stage, self.costs.activation_bytes, 'activations')
            return dict(made, begins=(activation,))
        if kind == I:
            return made
        begins = ()
        if stage in self.is_reduced:  # there from the first of them on
            begins = (self._name('gradient', action),)
            self._add(begins[0], stage, self.costs.weight_bytes, 'gradients')
        return dict(made, begins=begins, ends=(activation,))

    def _collective(self, action: Action, number: int) -> dict[str, Any]:
        stage, kind, _ = action
        after = tuple(self.before.values())
        if kind == REDUCE_GRAD:
            ends = (self._name('gradient', action),)
            self.num_reduces[stage] += 1
            return dict(stream=GRADIENT, seconds=_at(self.costs.reduce, stage), after=after,
                        ends=ends)
        self.gather_of[stage] = number
        self.num_gathers[stage] += 1
        begins = (self._name('whole', action),)
        self._add(begins[0], stage, self.costs.weight_bytes, 'parameters')
        return dict(stream=FEATURE, seconds=_at(self.costs.gather, stage), after=after,
                    begins=begins)

    def _name(self, what: str, action: Action) -> str:
        """Of a buffer."""
        stage = action.stage
        which = {'activation': action.mb, 'whole': self.num_gathers[stage],
                 'gradient': self.num_reduces[stage]}[what]
        return f'{what} of stage {stage}, {which}'

    def _add(self, name: str, stage: int, sizes: Sequence[int], category: str) -> None:
        self.whole.buffers[name] = Buffer(self.rank, _at(sizes, stage), category)


def _at(values: Sequence, index: int):
    """Costs that were not given are 0."""
    return values[index] if values else 0
