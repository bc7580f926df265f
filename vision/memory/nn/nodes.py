"""What a step remembers: values, the operators that made them, and autograd's handles on them."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from vision.memory.nn.operators import Operator
from vision.memory.nn.tracker import Watch

WRITTEN = -1


class Leaf:
    """Memory that the step did not make: a parameter, a buffer, the batch. Held by reference, as a
    tensor of any shape.

    Attributes:
        dependents: nodes that were dropped when a call that reads it was to make them again.
    """

    __slots__ = ('dependents', 'geometry', 'tensor')

    def __init__(self, tensor: Tensor, geometry: tuple) -> None:
        self.tensor, self.geometry = tensor, geometry
        self.dependents: list[Node] = []


class Slot(NamedTuple):
    """A tensor argument of a recorded call.

    Args:
        source: a Node, or a Leaf with the version that was read.
        geometry: (dtype, size, stride, offset) on the storage of the source.
    """

    source: Any
    version: int
    geometry: tuple


class Call:
    """One operator of the forward pass, ready to run again.

    Attributes:
        args, kwargs: as it was called, each tensor replaced by a ``Slot``.
        nodes: of the tensor arguments, without what it overwrites in full.
        outputs: (position among the result's tensors, node) of what it made; WRITTEN is the
            position of the argument that it wrote into.
        is_plain: it is recorded in full, and its tensors can be made again from slots.
        inplace: (node before, node after) of the first argument, which it changes.
        overwrites: node of the first argument, for which fresh memory stands in.
        durable: (operators that were refused by then, could all that it needs be made again?)
        rng: state of the generator before it ran, of operators that draw.
    """

    __slots__ = ('args', 'durable', 'index', 'inplace', 'is_plain', 'kwargs', 'leaves', 'moment',
                 'nodes', 'operator', 'outputs', 'overwrites', 'rng', 'seconds')

    def __init__(self, operator: Operator, moment: int, index: int) -> None:
        self.operator, self.moment, self.index = operator, moment, index
        self.args: list[Any] = []
        self.kwargs: dict[str, Any] = {}
        self.nodes: list[Node] = []
        self.outputs: list[tuple[int, Node]] = []
        self.inplace: tuple[Node, Node] | None = None
        self.overwrites: Node | None = None
        self.rng: Tensor | None = None
        self.is_plain = operator.may_replay
        self.durable: tuple[int, bool] | None = None
        self.leaves: list[Slot] | None = None
        self.seconds = 0.0

    def leaf_slots(self) -> list[Slot]:
        """What it reads from outside of the step, without running statistics."""
        if self.leaves is None:
            self.leaves = [
                slot for position, value in enumerate((*self.args, *self.kwargs.values()))
                for slot in (value if type(value) is list else (value,))
                if type(slot) is Slot and type(slot.source) is Leaf
                and position not in self.operator.running]
        return self.leaves

    def clear(self) -> None:
        """Let go of all that it holds: it never runs again."""
        self.is_plain = False
        self.args, self.kwargs, self.nodes, self.outputs = [], {}, [], []
        self.inplace = self.overwrites = self.rng = self.leaves = None


class Node:
    """One version of one storage.

    Attributes:
        watch: of its living storage; None once another version has taken the storage over.
        handles: what autograd saved of it and still needs.
        away: None; or 'drop' or 'swap': the handles are open and the memory is free; or 'host': no
            handle is open, but what was made from it needs the copy on the host.
        arrival: of a copy back that may still be on its way; None on a CPU.
        dependents: dropped nodes that were to be made from this one when they left.
        group: of dropped nodes; see ``Residence.joint_bytes``.
        anchor: alias that holds the storage for others that were dropped, while ``locks`` > 0.
        is_root: never made again, whatever made it.
        is_pinned: never leaves.
        order: position among the values that autograd saved; -1: not saved.
        num_leaves: how often it left in this step.
        check: bytes' sum when it left, where that is watched.
    """

    __slots__ = ('anchor', 'arrival', 'away', 'block', 'born', 'call', 'check',
                 'death', 'dependents', 'geometry', 'group', 'handles', 'idle', 'index',
                 'is_pinned', 'is_root', 'is_verified', 'locked_by', 'locks', 'num_bytes',
                 'num_leaves', 'order', 'packed', 'watch', 'where')

    def __init__(self, index: int, call: Call, watch: Watch, geometry: tuple) -> None:
        self.index, self.call, self.watch, self.geometry = index, call, watch, geometry
        self.num_bytes = watch.num_bytes
        self.born, self.death = call.moment, -1
        self.packed: int | None = None
        self.idle: int | None = None
        self.order = -1
        self.handles: list[Saved] = []
        self.away: str | None = None
        self.anchor: Tensor | None = None
        self.locks = 0
        self.locked_by: list[Node] = []  # what this one's absence locks
        self.block = self.arrival = self.group = None
        self.dependents: list[Node] = []
        self.check: int | None = None
        self.is_root = self.is_pinned = self.is_verified = False
        self.num_leaves = 0
        self.where = ''

    def storage(self):
        """Its storage if that is there in this version."""
        return None if self.watch is None else self.watch()


class Saved:
    """A tensor that autograd saved, of any shape. Its alias shares the version counter, also as
    the empty shell that it becomes when the memory leaves; ``geometry`` is then what it was."""

    __slots__ = ('alias', 'geometry', 'version')

    def __init__(self, alias: Tensor) -> None:
        self.alias, self.version = alias, alias._version
        self.geometry: tuple | None = None

    def refuse_if_changed(self) -> None:
        """Autograd leaves its check of versions out where hooks are."""
        if self.alias._version != self.version:
            raise RuntimeError(
                'one of the variables needed for gradient computation has been modified by an '
                f'inplace operation: [{self.alias.type()} {list(self.alias.size())}] is at version'
                f' {self.alias._version}; expected version {self.version} instead.')


class Handle:
    """What autograd holds of a value that may leave; the value's node learns of its end."""

    __slots__ = ('node', 'saved', 'step')

    def __init__(self, saved: Saved, node: Node, step: Any) -> None:
        self.saved, self.node, self.step = saved, node, step
        node.handles.append(saved)

    def __del__(self) -> None:
        self.step.closed(self)
