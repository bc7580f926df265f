"""A model and a strategy as a program: who computes, sends and holds what, in the order in which
the host of a rank issues it.

Data parallel in buckets as DistributedDataParallel has them, ZeRO-1 and 2 on the same buckets,
ZeRO-3 as FSDP2 does it; tensor and sequence parallel by ``tensor_parallel``, modules that are
split in different ways by ``mixed``. All ranks of one stage do the same, so the program has one of
them, that stands for all (``replicas``). Models in several stages: see ``stages``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vision.common.core.errors import VisionError
from vision.simulator.core.buckets import FIRST_BUCKET_BYTES, Bucket, buckets_of
from vision.simulator.core.graph import (
    AGAIN,
    FORWARD,
    OPTIMIZER,
    ModuleGraph,
    Op,
    Parameter,
    is_inside,
)
from vision.simulator.core.merge import Span, spans
from vision.simulator.core.mixed import split_mixed
from vision.simulator.core.program import (
    COMPUTE,
    D2H,
    FEATURE,
    GRADIENT,
    H2D,
    Buffer,
    Node,
    Program,
)
from vision.simulator.core.rewrite import (
    D2H_OP,
    H2D_OP,
    first_backward,
    with_offload,
    with_recompute,
    with_tensors,
)
from vision.simulator.core.sharded import Unit, hook_units, units_of
from vision.simulator.core.strategy import Spread, StrategyTree
from vision.simulator.core.tensor_parallel import split_features

ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER = 'all_reduce', 'all_gather', 'reduce_scatter'


class Pricing(Protocol):
    """What a cluster takes."""

    def compute(self, ops: Sequence[Op]) -> float:
        """Seconds of operators, one after the other."""

    def communicate(self, kind: str, num_bytes: float, ranks: Sequence[int]) -> float:
        """Seconds of a collective over these ranks; bytes of the whole tensor."""

    def quote(self, kind: str, num_bytes: float, ranks: Sequence[int]) -> float:
        """As ``communicate``, of what is not sent yet: ways are compared by it."""

    def copy(self, num_bytes: float) -> float:
        """Seconds from a device to its host's memory or back."""


@dataclass(frozen=True)
class Settings:
    """What a strategy does not say.

    Args:
        num_microbatches: whose gradients are added up before the optimizer's step.
        optimizer: 'adamw', 'adam', 'sgd' or 'momentum'.
        optimizer_form: 'foreach' steps all parameters together (torch's default on GPUs), 'single'
            one after the other (its default on CPUs), 'fused' without memory of its own.
        bucket_bytes: of gradients reduced together; the first bucket has 1 MB (torch's own).
        has_bucket_copies: buckets are memory beside the gradients, as DistributedDataParallel has
            them unless gradient_as_bucket_view is set.
        master_bytes: of a number of a parameter shard and of optimizer states (zero=3); None: as
            the parameter. Gradients are as the graph has them.
        gathered_bytes: of a number of a gathered parameter (zero=3); None: as the parameter.
        slowdown: of compute under a collective, and of gradients' collectives under compute.
    """

    num_microbatches: int = 1
    optimizer: str = 'adamw'
    optimizer_form: str = 'foreach'
    bucket_bytes: int = 25 * 2**20
    first_bucket_bytes: int = FIRST_BUCKET_BYTES
    has_bucket_copies: bool = True
    master_bytes: int | None = None
    gathered_bytes: int | None = None
    slowdown: float = 0.0


# Optimizer: (tensors of state for each parameter, of them and parameters and gradients read and
# written in a step, copies that it makes meanwhile by its form: 'foreach' of all parameters,
# 'single' of the largest). With weight decay, which Adam and SGD add to a copy of the gradient.
OPTIMIZERS = dict(adamw=(2, 7, dict(foreach=1, single=2)), adam=(2, 7, dict(foreach=2, single=3)),
                  sgd=(0, 3, dict(foreach=1, single=1)),
                  momentum=(1, 5, dict(foreach=1, single=1)))


def compile_strategy(graph: ModuleGraph, tree: StrategyTree, pricing: Pricing,
                     settings: Settings = Settings()) -> Program:
    """One step of a rank that stands for all, of a model in one stage.

    Args:
        graph: of what one share of the batch does for one micro-batch, with whole features.

    Raises:
        VisionError: VIS-CONFIG-1620 to VIS-CONFIG-1625, see ``StrategyTree.spread``;
            VIS-CONFIG-1626, several stages.
    """
    spread = tree.spread(graph)
    if len(spread.stages) > 1:
        raise VisionError('VIS-CONFIG-1626', f'the model is mapped to {len(spread.stages)} stages',
                          where='strategy', why='stages need an action table that says their '
                          'order', do='compile_stages() with a table of vision.pipeline')
    return Step(local_graph(graph, spread, pricing), spread, pricing, settings).program()


def local_graph(graph: ModuleGraph, spread: Spread, pricing: Pricing) -> ModuleGraph:
    """What one rank does: its part of the features, activations made again or moved."""
    graph = with_tensors(graph)
    graph = split_mixed(graph, spread, pricing.quote).graph if spread.is_mixed else \
        split_features(graph, spread)
    layouts = spread.layouts.values()
    again = [(name,) for name in dict.fromkeys(
        each.kept_region for each in layouts if each.is_recomputed)]
    away = [name for name in dict.fromkeys(
        each.kept_region for each in layouts if each.is_offloaded)]
    return with_offload(with_recompute(graph, again), away)


class Step:
    """Writes the program of one rank, in the host's order."""

    def __init__(self, graph: ModuleGraph, spread: Spread, pricing: Pricing,
                 settings: Settings) -> None:
        self.graph, self.spread, self.pricing, self.settings = graph, spread, pricing, settings
        self.nodes: list[Node] = []
        self.buffers: dict[str, Buffer] = {}
        self.mb = 0
        self._last: dict[str, int] = {}
        self._waits: list[int] = []  # what the next compute node has to wait for
        self._copies: dict[tuple[int, ...], int] = {}
        self._makers = {key: f'{op.module or "model"} {op.name.rpartition(".")[2]}'
                        for op in graph.ops for key in op.begins}
        self.trained = [each for each in graph.parameters if each.is_trained]
        self.start = first_backward(graph.ops)
        self.units: list[Unit] = units_of(graph, spread) if spread.zero == 3 else []

    # Writing nodes.

    def add(self, name: str, kind: str, seconds: float, *, stream: str = COMPUTE,
            after: Sequence[int] = (), begins: Sequence[str] = (), ends: Sequence[str] = ()
            ) -> int:
        """A node; compute waits for what it was told to wait for."""
        if stream == COMPUTE:
            after, self._waits = (*after, *self._waits), []
        self.nodes.append(Node(name, kind, (0,), stream, seconds,
                               after=tuple(dict.fromkeys(after)), begins=tuple(begins),
                               ends=tuple(ends), mb=self.mb))
        self._last[stream] = len(self.nodes) - 1
        return self._last[stream]

    def hold(self, name: str, num_bytes: int, category: str) -> str:
        """A buffer; the same name twice is our own mistake."""
        assert name not in self.buffers, name
        self.buffers[name] = Buffer(0, round(num_bytes), category)
        return name

    def wait(self, node: int | None) -> None:
        """Let the next compute node begin after this one has ended; None is nothing to
        wait for."""
        if node is not None:
            self._waits.append(node)

    def last(self, stream: str = COMPUTE) -> tuple[int, ...]:
        """The newest node of a stream, as the ``after`` of another; () before the first."""
        return (self._last[stream],) if stream in self._last else ()

    def collective(self, name: str, kind: str, num_bytes: float, *, ranks: Sequence[int] = (),
                   stream: str = FEATURE, **more) -> int:
        """A node of a collective over these ranks, or those that have other parts of the batch."""
        ranks = ranks or self.spread.sharing(0, self.spread.dp)
        seconds = self.pricing.communicate(kind, num_bytes, ranks)
        return self.add(name, kind, seconds, stream=stream, **more)

    def copying(self, num_bytes: float) -> float:
        """Seconds of memory read and written once."""
        return self.pricing.compute([Op('copy', '', 'elementwise', 0.0, 2 * num_bytes)])

    # The step.

    def program(self) -> Program:
        """The whole step: states held, micro-batches forward and backward, the optimizer."""
        self._hold_states()
        for mb in range(self.settings.num_microbatches):
            self.mb = mb
            self._microbatch(is_last=mb == self.settings.num_microbatches - 1)
        self._optimizer()
        slow = self.settings.slowdown
        slowdowns = {(COMPUTE, GRADIENT): slow, (COMPUTE, FEATURE): slow,
                     (GRADIENT, COMPUTE): slow} if slow else {}
        return Program(1, tuple(self.nodes), self.buffers, slowdowns=slowdowns,
                       replicas=self.spread.num_ranks)

    def _hold_states(self) -> None:
        spread, settings = self.spread, self.settings
        num_states = OPTIMIZERS[settings.optimizer][0]
        if self.units:
            for unit in self.units:
                self.hold(f'shard of {unit}', unit.shard_bytes(settings.master_bytes),
                          'parameters')
                states = sum(unit.each_state_bytes(settings.master_bytes)) * num_states
                self.hold(f'optimizer of {unit}', states, 'optimizer')
        else:
            shares = spread.dp if spread.zero else 1
            for each in self.graph.parameters:
                self.hold(each.name, each.num_bytes, 'parameters')
            states = sum(each.num_bytes for each in self.trained) * num_states
            self.hold('optimizer', -(-states // shares), 'optimizer')
        self.hold('buffers', sum(each.buffer_bytes for each in self.graph.modules), 'parameters')
        self.hold('inputs', self.graph.input_bytes, 'inputs')

    def _microbatch(self, is_last: bool) -> None:
        ops = self.graph.ops
        before, after = self._hooks(is_last)
        special = {at for at, op in enumerate(ops)
                   if op.kind == 'collective' or op.name in (H2D_OP, D2H_OP)}
        cuts = {*special, *(at + 1 for at in special), *before, *(at + 1 for at in after),
                self.start}
        for span in spans(self.graph, cuts):
            for act in before.get(span.begin, ()):
                act()
            if span.begin in special:
                self._special(ops[span.begin])
            else:
                self._compute(span)
            for act in after.get(span.end - 1, ()):
                act()

    def _hooks(self, is_last: bool) -> tuple[dict, dict]:
        """What happens before and behind operators, by their index."""
        before: dict[int, list] = {}
        after: dict[int, list] = {}
        if self.units:
            hook_units(self, before, after)
        elif self.spread.dp > 1 and is_last:
            for number, (bucket, ranks) in enumerate(self._buckets()):
                after.setdefault(bucket.at, []).append(
                    lambda n=number, each=bucket, ranks=ranks: self._reduce(
                        n, each.parameters, ranks))
        for index, op in enumerate(self.graph.ops):
            if op.name == H2D_OP:
                before.setdefault(self._first_reader(index), []).append(
                    lambda keys=op.begins: self.wait(self._copies.pop(keys, None)))
        return before, after

    def _first_reader(self, index: int) -> int:
        """Of what the operator of this index brings back; where nobody followed reads, the first
        operator of the backward pass in its module."""
        ops, keys = self.graph.ops, set(self.graph.ops[index].begins)
        inside = next(at for at in range(self.start, len(ops)) if ops[at].name != H2D_OP
                      and is_inside(ops[at].module, ops[index].module))
        return next((at for at in range(index + 1, len(ops)) if keys.intersection(ops[at].reads)),
                    inside)

    def _buckets(self) -> list[tuple[Bucket, tuple[int, ...]]]:
        """Buckets and the ranks that reduce them: those that have other parts of the batch."""
        by_batch: dict[int, set[str]] = {}
        for module in self.graph.modules:
            by_batch.setdefault(self.spread.layouts[module.name].batch, set()).update(
                each.name for each in module.parameters)
        return [(bucket, self.spread.sharing(0, batch))
                for batch, names in sorted(by_batch.items()) if batch > 1
                for bucket in buckets_of(self.graph, names, self.settings.first_bucket_bytes,
                                         self.settings.bucket_bytes)]

    def _special(self, op: Op) -> None:
        """A collective of the features' parts, or a copy to or from the host."""
        begins = [self.hold(self._key(key), self.graph.tensors[key].num_bytes,
                            self.graph.tensors[key].category) for key in op.begins]
        ends = [self._key(key) for key in op.ends]
        if op.kind == 'collective':
            kind = op.name.removesuffix(AGAIN)
            ranks = op.ranks or self.spread.stages[0][:self.spread.tp]
            self.wait(self.collective(f'{op.name} {op.module}', kind, op.bytes_moved, ranks=ranks,
                                      after=self.last(), begins=begins, ends=ends))
            return
        stream, kind = (D2H, 'd2h') if op.name == D2H_OP else (H2D, 'h2d')
        node = self.add(f'{kind} {op.module}', kind, self.pricing.copy(op.bytes_moved),
                        stream=stream, after=self.last(), begins=begins, ends=ends)
        if op.name == H2D_OP:
            self._copies[op.begins] = node

    def _compute(self, span: Span) -> None:
        ops = self.graph.ops[span.begin:span.end]
        begins, ends = [], [self._key(key) for key in span.ends]
        for key in span.begins:
            tensor = self.graph.tensors[key]
            begins.append(self.hold(self._key(key), tensor.num_bytes, tensor.category))
            if tensor.category == 'gradients' and self.mb and not self.units:
                ends.append(begins[-1])  # added to the gradient that is there
        if span.transient_bytes:
            name = self.hold(f'inside {len(self.nodes)}', span.transient_bytes, 'temporary')
            begins.append(name)
            ends.append(name)
        phase = {op.phase for op in ops}
        is_again = ops[0].name.endswith(AGAIN)
        kind = 'recompute' if is_again else 'F' if phase == {FORWARD} else \
            'I' if 'weight_grad' not in phase else 'W' if len(phase) == 1 else 'B'
        self.add(f'{kind} {ops[0].module or ops[0].name}', kind, self.pricing.compute(ops),
                 begins=begins, ends=ends)

    def _key(self, key: int, mb: int | None = None) -> str:
        """Name of a tensor's buffer: what made it, of which module."""
        return f'{self._makers[key]} #{key}.{self.mb if mb is None else mb}'

    def gradients(self, names: Sequence[str], mb: int) -> list[str]:
        """Buffers of gradients of these parameters that a micro-batch made."""
        wanted = set(names)
        return [name for key, tensor in self.graph.tensors.items()
                if tensor.parameter in wanted and key in self._makers
                and (name := self._key(key, mb)) in self.buffers]

    # Data parallel and ZeRO-1, 2.

    def _reduce(self, number: int, parameters: Sequence[Parameter], ranks: Sequence[int]) -> None:
        size = sum(each.num_bytes for each in parameters)
        is_scattered = self.spread.zero == 2
        begins, ends = [], []
        if self.settings.has_bucket_copies:
            name = self.hold(f'bucket {number}', size, 'communication')
            if is_scattered:  # else it is there from the start and stays
                begins.append(name)
                ends.append(name)
        if is_scattered:
            begins.append(self.hold(f'gradient shard {number}', -(-size // self.spread.dp),
                                    'gradients'))
            ends += self.gradients([each.name for each in parameters], 0)
        self.collective(f'gradients {number}', REDUCE_SCATTER if is_scattered else ALL_REDUCE,
                        size, ranks=ranks, stream=GRADIENT, after=self.last(), begins=begins,
                        ends=ends)

    def _optimizer(self) -> None:
        """Its step, behind all gradients; then parameters are put together (ZeRO-1, 2)."""
        spread = self.spread
        for node in (*self.last(GRADIENT), *self.last(FEATURE)):
            self.wait(node)
        shares = spread.dp if spread.zero else 1
        size = sum(each.num_bytes for each in self.trained)
        moved = OPTIMIZERS[self.settings.optimizer][1] * size / shares
        elements = sum(each.num_elements for each in self.trained) / shares
        op = Op(self.settings.optimizer, '', 'elementwise', 2.0 * elements, moved,
                phase=OPTIMIZER)
        ended = {name for node in self.nodes for name in node.ends}
        still = [name for name, each in self.buffers.items()
                 if each.category == 'gradients' and name not in ended]
        scratch = self.hold('optimizer scratch', self._scratch_bytes(), 'temporary')
        self.add('optimizer', 'optimizer', self.pricing.compute([op]), begins=[scratch],
                 ends=[*still, scratch])
        if spread.zero in (1, 2):
            self.collective('parameters', ALL_GATHER, size, after=self.last())


    def _scratch_bytes(self) -> int:
        """Of the optimizer's step."""
        form = self.settings.optimizer_form
        copies = OPTIMIZERS[self.settings.optimizer][2].get(form, 0)
        if self.units:
            sizes = [size for unit in self.units
                     for size in unit.each_state_bytes(self.settings.master_bytes)]
        else:
            shares = self.spread.dp if self.spread.zero else 1
            sizes = [-(-each.num_bytes // shares) for each in self.trained]
        return copies * (sum(sizes) if form == 'foreach' else max(sizes, default=0))
