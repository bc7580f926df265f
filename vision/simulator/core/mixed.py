"""The part of a model that is left to a rank when modules are split in different ways: one by the
batch and the next by its features, over the same ranks or over others.

Operators are taken as a chain, as ``tensor_parallel`` takes them: what a module writes, the next
one reads. Where the layouts differ ``repartition`` says how a tensor gets from one to the other;
backward, its gradient goes the other way. An operator without parameters follows the layout that
it is given (Proteus, arXiv:2306.02267: what says nothing takes its neighbour's).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import lcm

from vision.simulator.core.graph import (
    AGAIN,
    FORWARD,
    INPUT_GRAD,
    WEIGHT_GRAD,
    ModuleGraph,
    Op,
    TensorInfo,
    larger_batch,
)
from vision.simulator.core.repartition import (
    ALL_REDUCE,
    P2P,
    Phase,
    Placed,
    Price,
    repartition,
    seconds_of,
)
from vision.simulator.core.rewrite import first_backward
from vision.simulator.core.strategy import HEADS, IN, OUT, Layout, Spread
from vision.simulator.core.tensor_parallel import local_module, part_of


@dataclass(frozen=True)
class Spot:
    """Layout of the features between two modules, on the ranks of a stage: ``batch`` parts of the
    rows, ``features`` of the columns; or as many partial sums (``is_sum``)."""

    stage: int
    batch: int
    features: int = 1
    is_sum: bool = False

    def placed(self, shape: tuple[int, int], ranks: Sequence[int]) -> Placed:
        """Parts of the batch one after the other, parts of the features next to each other."""
        size = len(ranks) // self.batch
        rows = [ranks[at:at + size] for at in range(0, len(ranks), size)]
        if self.is_sum or self.features == 1:
            return Placed(shape, (self.batch, 1), tuple(map(tuple, rows)),
                          sums=self.features if self.is_sum else 1)
        return Placed(shape, (self.batch, self.features), tuple(
            tuple(row[k::self.features]) for row in rows for k in range(self.features)))


@dataclass(frozen=True)
class Block:
    """Neighbouring operators [begin, end) of one module, or of one that is split by 'heads';
    ``is_again`` if the model itself makes them again for its backward pass."""

    begin: int
    end: int
    name: str
    layout: Layout
    is_again: bool


@dataclass
class Mixed:
    """What ``split_mixed`` finds.

    Attributes:
        graph: of one rank, with collectives; each takes as long as the slowest rank's.
        seconds: of messages between stages, the longest of both directions.
        entering: bytes of a rank that a stage takes from the one before it.
    """

    graph: ModuleGraph
    seconds: float = 0.0
    entering: dict[int, int] = field(default_factory=dict)


def split_mixed(graph: ModuleGraph, spread: Spread, price: Price) -> Mixed:
    """What one rank has and does.

    Args:
        graph: of one of ``spread.dp`` parts of the batch, with whole features.
    """
    return _Chain(graph, spread, price).split()


class _Chain:
    """State of ``split_mixed``: where the features are, block after block."""

    def __init__(self, graph: ModuleGraph, spread: Spread, price: Price) -> None:
        self.whole, self.spread, self.price = graph, spread, price
        # Modules in fewer parts of the batch have more samples on each rank.
        factors = {each.name: spread.dp / spread.layouts[each.name].batch for each in sorted(
            graph.modules, key=lambda each: -len(each.name.split('.')) if each.name else 0)}
        self.graph = replace(larger_batch(graph, 1.0, factors), notes=graph.notes)
        self.tensors = dict(self.graph.tensors)
        self.ops: list[Op] = []
        self.at: Spot | None = None
        self.num_bytes = 0.0
        self.followed: dict[str, Spot] = {}  # forward, by block name
        self.ends_of: dict[int, list[int]] = {}  # tensors that end with an operator, by its index
        self.found = Mixed(graph)

    def split(self) -> Mixed:
        start, ops = first_backward(self.graph.ops), self.graph.ops
        blocks = _blocks(self.graph, self.spread, start)
        stages = self._stages(blocks, start)
        # What was gathered for a module is kept for the gradient of its weights.
        self.last_use = {block.name: at for block in blocks if block.begin >= start
                         for at in range(block.begin, block.end) if ops[at].phase == WEIGHT_GRAD}
        for block, stage in zip(blocks, stages, strict=True):
            if block.begin == start:
                self.at = None  # the gradient of the output is wherever the output was
            if block.is_again:
                self._write(block, self.followed[block.name].features, is_summed=False)
            elif block.begin < start:
                self._forward(block, stage)
                if block.end == start and self.at != (reads := replace(
                        self.at, features=1, is_sum=False)):
                    self._change(block, reads, FORWARD, start)
            else:
                self._backward(block, stage)
        modules = tuple(local_module(each, self.spread.layouts[each.name])
                        for each in self.graph.modules)
        first = blocks[0].layout.batch if blocks else self.spread.dp
        self.found.graph = replace(
            self.graph, modules=modules, ops=tuple(self.ops), tensors=self.tensors,
            input_bytes=self.whole.input_bytes * self.spread.dp // first)
        return self.found

    def _stages(self, blocks: Sequence[Block], start: int) -> list[int]:
        """Of a block on no ranks of its own: forward that of the one before it, backward that of
        the one after it."""
        own = [self.spread.stages.index(block.layout.ranks)
               if block.layout.ranks in self.spread.stages else None for block in blocks]
        at = 0
        for index, stage in enumerate(own):
            if blocks[index].begin < start:
                at = own[index] = at if stage is None else stage
        at = next((stage for block, stage in zip(blocks, own, strict=True)
                   if block.begin >= start and stage is not None), at)
        for index, stage in enumerate(own):
            if blocks[index].begin >= start:
                at = own[index] = at if stage is None else stage
        return own

    def _forward(self, block: Block, stage: int) -> None:
        batch, dim, parts = block.layout.batch, _dim(block.layout), block.layout.parts
        reads = Spot(stage, batch)
        if dim == IN:
            reads = Spot(stage, batch, parts)
        elif not dim and not self._has_parameters(block) and self._is_kept(stage, batch):
            reads = self.at
        self.followed[block.name] = reads
        self._change(block, reads, FORWARD, self.last_use.get(block.name, block.end - 1))
        last = self.whole.ops[block.end - 1]
        self._write(block, reads.features, is_summed=dim in (IN, HEADS))
        self.num_bytes = float(last.output_bytes * self.spread.dp)
        self.at = reads
        if dim:
            self.at = Spot(stage, batch, parts, is_sum=dim != OUT)

    def _backward(self, block: Block, stage: int) -> None:
        batch, dim, parts = block.layout.batch, _dim(block.layout), block.layout.parts
        reads = Spot(stage, batch, parts if dim == OUT else 1)
        if not dim:
            reads = replace(self.followed.get(block.name, reads), stage=stage)
        if self.at is not None:
            self._change(block, reads, INPUT_GRAD, block.end - 1)
        self._write(block, reads.features, is_summed=False)
        made = [op for op in self.whole.ops[block.begin:block.end] if op.phase == INPUT_GRAD]
        if not made:
            self.at = None
            return
        self.num_bytes = float(made[-1].output_bytes * self.spread.dp)
        self.at = reads
        if dim:
            self.at = Spot(stage, batch, parts, is_sum=dim != IN)

    def _has_parameters(self, block: Block) -> bool:
        return any(self.whole.module(op.module).parameters
                   for op in self.whole.ops[block.begin:block.end])

    def _is_kept(self, stage: int, batch: int) -> bool:
        """Whether an operator can go on with what is there."""
        return self.at is not None and self.at.stage == stage and self.at.batch == batch \
            and not self.at.is_sum

    def _change(self, block: Block, reads: Spot, phase: str, until: int) -> None:
        """From where the features are to where the block reads them; the copy that is made is
        there until the operator ``until`` is done."""
        written = self.at
        if written is None or not self.num_bytes:
            return
        sums = max(spot.features if spot.is_sum else 1 for spot in (written, reads))
        shape = (lcm(written.batch, reads.batch) * sums,
                 lcm(written.features, reads.features) * sums)
        element_bytes = self.num_bytes / (shape[0] * shape[1])
        before, after = (spot.placed(shape, self.spread.stages[spot.stage])
                         for spot in (written, reads))
        phases = repartition(before, after, element_bytes, self.price)
        share = -(-int(self.num_bytes) // (reads.batch * reads.features))
        if written.stage != reads.stage:
            took = sum(seconds_of(each, self.price) for each in phases)
            self.found.seconds = max(self.found.seconds, took)
            if phase == FORWARD:
                self.found.entering[reads.stage] = share
            return
        op = self.graph.ops[block.begin]
        for each in phases:
            kind, num_bytes, ranks = _slowest(each, self.price)
            self.ops.append(Op(kind, op.module, 'collective', 0.0, num_bytes, op.dtype, phase,
                               ranks=ranks))
        if phases and self.ops[-1].name != ALL_REDUCE:  # which is done in place
            key = max(self.tensors, default=0) + 1
            self.tensors[key] = TensorInfo(
                share, 'activations' if phase == FORWARD else 'temporary')
            self.ops[-1] = replace(self.ops[-1], begins=(key,))
            self.ends_of.setdefault(until, []).append(key)

    def _write(self, block: Block, follows: int, *, is_summed: bool) -> None:
        """The block's operators, as a rank has them.

        Args:
            follows: parts of the features in what comes in, which an operator without a split of
                its own takes over.
        """
        dim = _dim(block.layout)
        parts = block.layout.parts if dim else follows
        for at in range(block.begin, block.end):
            op = self.graph.ops[at]
            local, keys = (op, ()) if parts == 1 else part_of(
                op, dim, parts, is_sum=is_summed and at == block.end - 1)
            for key in keys:
                size = -(-self.tensors[key].num_bytes // parts)
                self.tensors[key] = replace(self.tensors[key], num_bytes=size)
            self.ops.append(replace(local, ends=(*local.ends, *self.ends_of.pop(at, ()))))


def _dim(layout: Layout) -> str:
    return layout.dim if layout.parts > 1 else ''


def _blocks(graph: ModuleGraph, spread: Spread, start: int) -> list[Block]:
    found: list[Block] = []
    for at, op in enumerate(graph.ops):
        layout = spread.layouts[op.module]
        name = layout.region if _dim(layout) == HEADS else op.module
        is_again = op.name.endswith(AGAIN)
        if found and (found[-1].name, found[-1].is_again) == (name, is_again) and at != start:
            found[-1] = replace(found[-1], end=at + 1)
        else:
            found.append(Block(at, at + 1, name, layout, is_again))
    return found


def _slowest(phase: Phase, price: Price) -> tuple[str, float, tuple[int, ...]]:
    """(kind, bytes, ranks) that stand for a phase: its longest collective, or all messages of the
    rank that sends or takes in most."""
    times = {each: price(each.kind, each.num_bytes, each.ranks) for each in phase.transfers}
    longest = max(times, key=times.get)
    if longest.kind != P2P:
        return longest.kind, longest.num_bytes, longest.ranks
    load: Counter[tuple[int, int]] = Counter()
    for each in phase.transfers:
        for way in (0, 1):
            load[way, each.ranks[way]] += each.num_bytes
    return P2P, max(load.values()), longest.ranks
