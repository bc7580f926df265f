"""One step of a model on one device, as operators by module: what a trace of torch modules makes,
and strategies are compiled from.

The form is our choice; that a layer owns its forward, its backward and its tensors is
from Proteus (Duan et al., arXiv:2306.02267).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod

KINDS = ('gemm', 'attention', 'elementwise', 'norm', 'embedding', 'conv', 'collective', 'other')
FORWARD, INPUT_GRAD, WEIGHT_GRAD, OPTIMIZER = 'forward', 'input_grad', 'weight_grad', 'optimizer'
PHASES = (FORWARD, INPUT_GRAD, WEIGHT_GRAD, OPTIMIZER)
# Ends the name of a forward operator that runs a second time, for the backward pass.
AGAIN = ' again'


@dataclass(frozen=True, slots=True)
class Op:
    """An operator of one micro-batch on one device, before any split.

    Args:
        name: 'aten.mm', 'softmax', ...; for people, and to list what nobody priced.
        module: dotted name of the innermost module that ran it, '' for the model itself.
        kind: one of ``KINDS``.
        flops: two for a multiply-add.
        bytes_moved: read and written, each tensor once.
        dtype: of the computation, as torch writes it without 'torch.': 'float32', 'bfloat16'.
        phase: one of ``PHASES``. A backward operator belongs to 'weight_grad' if it makes the
            gradient of a parameter; one that makes both kinds at once is two entries.
        m, n, k: of a matrix product (m, k) x (k, n), each of ``batch`` ones; 0 elsewhere. For
            y = x w of a layer: forward (rows, out, in), input_grad (rows, in, out), weight_grad
            (out, in, rows).
        saved_bytes: that come into being with this operator and stay from forward to backward.
        output_bytes: of its results.
        begins, ends: keys of ``ModuleGraph.tensors`` that begin with this operator, and that are
            gone after it. Both empty where nobody followed single tensors: then memory is told by
            ``saved_bytes`` and ``output_bytes``.
        reads, writes: tensors among these that it reads, and that were there and that it writes in
            place; both empty where nobody followed single tensors.
        completes: parameters whose gradients are whole behind it; where no operator says so, a
            module's are behind its last 'weight_grad'.
        is_priced: its FLOPs are counted or known to be none; False has to be listed.
        ranks: that a collective joins; empty: those with the other parts of the same features.
    """

    name: str
    module: str
    kind: str
    flops: float
    bytes_moved: float
    dtype: str = 'float32'
    phase: str = FORWARD
    m: int = 0
    n: int = 0
    k: int = 0
    batch: int = 1
    saved_bytes: int = 0
    output_bytes: int = 0
    begins: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    completes: tuple[str, ...] = ()
    is_priced: bool = True
    ranks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert self.kind in KINDS and self.phase in PHASES, (self.kind, self.phase)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A weight or bias as the model has it.

    Args:
        shape: whole, of the unsplit model; a linear layer's weight is (out, in).
        element_bytes: of one number.
        is_trained: has a gradient and optimizer state.
        shared_with: other modules that use the same tensor (tied weights).
    """

    name: str
    shape: tuple[int, ...]
    element_bytes: int = 4
    is_trained: bool = True
    shared_with: tuple[str, ...] = ()

    @property
    def num_elements(self) -> int:
        """Numbers in the unsplit tensor."""
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Memory of the unsplit tensor, without gradient and optimizer state."""
        return self.num_elements * self.element_bytes


@dataclass(frozen=True, slots=True)
class Module:
    """A module and what it owns itself, without its children.

    Args:
        name: dotted, '' for the model.
        type: class name; 'Linear', 'Embedding' and 'MultiheadAttention' know how to be split.
        parameters: full dotted names; one that several modules share stands at the first, which
            has the others as ``shared_with``.
        buffer_bytes: of BatchNorm statistics and the like.
        output_bytes, output_shape: of its last call; what a pipeline sends on if cut behind it.
        like: number that modules with equal work share, None if nobody compared: equal layers
            need to be priced once only.
    """

    name: str
    type: str
    parameters: tuple[Parameter, ...] = ()
    buffer_bytes: int = 0
    output_bytes: int = 0
    output_shape: tuple[int, ...] = ()
    like: int | None = None

    @property
    def parameters_bytes(self) -> int:
        """Memory of its own parameters, without its children's."""
        return sum(each.num_bytes for each in self.parameters)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A storage: its bytes and what it is for, a category of ``program.CATEGORIES``; of a
    gradient the name of its parameter."""

    num_bytes: int
    category: str
    parameter: str = ''


@dataclass(frozen=True)
class ModuleGraph:
    """One micro-batch of a model on one device.

    Args:
        modules: in order of first use; those never called last.
        ops: in order of execution, forward first, then backward. No optimizer: strategies divide
            its state and add it.
        tensors: by the keys that operators begin and end; empty if nobody followed them.
        input_bytes: of the batch.
        batch_size: samples in it; 0 if unknown.
        notes: what was assumed, for people.
    """

    modules: tuple[Module, ...]
    ops: tuple[Op, ...]
    tensors: Mapping[int, TensorInfo] = field(default_factory=dict)
    input_bytes: int = 0
    batch_size: int = 0
    notes: tuple[str, ...] = ()

    def module(self, name: str) -> Module:
        """The module of a dotted name, '' for the model; KeyError if there is none."""
        return self.by_name[name]

    @property
    def by_name(self) -> dict[str, Module]:
        """Modules by dotted name; made anew at each access."""
        return {each.name: each for each in self.modules}

    def inside(self, name: str) -> Iterator[Module]:
        """The module and all below it."""
        return (each for each in self.modules if is_inside(each.name, name))

    def ops_of(self, name: str, *phases: str) -> list[Op]:
        """Operators of the module and all below it, in order; of all phases if none is named."""
        return [op for op in self.ops
                if is_inside(op.module, name) and (not phases or op.phase in phases)]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Parameters of all modules, shared ones once, in order of their modules."""
        return tuple(each for module in self.modules for each in module.parameters)

    @property
    def parameters_bytes(self) -> int:
        """Memory of all parameters, shared ones once."""
        return sum(module.parameters_bytes for module in self.modules)

    def flops(self, *phases: str) -> float:
        """Arithmetic of the operators in these phases ('forward', 'input_grad', 'weight_grad'); of
        all of them when none is named."""
        return sum(op.flops for op in self.ops if not phases or op.phase in phases)

    def unpriced(self) -> dict[str, int]:
        """How often each operator occurs whose FLOPs nobody knows."""
        names = [op.name for op in self.ops if not op.is_priced]
        return {name: names.count(name) for name in sorted(set(names))}


def is_inside(name: str, outer: str) -> bool:
    """Whether a dotted module name is ``outer`` or below it; all are below ''."""
    return not outer or name == outer or name.startswith(f'{outer}.')


def scaled(op: Op, share: float) -> Op:
    """The part of an operator that is left on a device when ``share`` of its work is, where it is
    cut along a dimension that all its tensors have."""
    return replace(op, flops=op.flops * share, bytes_moved=op.bytes_moved * share,
                   saved_bytes=round(op.saved_bytes * share),
                   output_bytes=round(op.output_bytes * share))


def larger_batch(graph: ModuleGraph, factor: float,
                 others: Mapping[str, float] | None = None) -> ModuleGraph:
    """The graph of ``factor`` times as many samples, or samples as large. What operators do and
    make grows with it, except gradients of parameters; weights that matrix products read do not.

    Args:
        others: factors of modules, and all below them, that grow otherwise: what a detector does
            for each of a fixed number of boxes does not grow with the image.
    """
    def factor_of(module: str) -> float:
        return next((each for name, each in (others or {}).items() if is_inside(module, name)),
                    factor)

    factors: dict[int, float] = {}
    for op in graph.ops:
        factors |= dict.fromkeys(op.begins, factor_of(op.module))
    tensors = {key: each if each.category == 'gradients' else
               replace(each, num_bytes=round(each.num_bytes * factors.get(key, factor)))
               for key, each in graph.tensors.items()}
    modules = tuple(replace(each, output_bytes=round(each.output_bytes * factor_of(each.name)))
                    for each in graph.modules)
    return replace(graph, modules=modules, tensors=tensors,
                   ops=tuple(_grown(op, factor_of(op.module)) for op in graph.ops),
                   input_bytes=round(graph.input_bytes * factor),
                   batch_size=round(graph.batch_size * factor),
                   notes=(*graph.notes, f'grown to {factor:g} times what was traced'))


def _grown(op: Op, factor: float) -> Op:
    fixed = 0.0
    if op.m and op.kind in ('gemm', 'conv'):
        weights = op.m * op.n if op.phase == WEIGHT_GRAD else op.n * op.k
        fixed = op.bytes_moved * weights / (op.m * op.n + op.n * op.k + op.m * op.k)
    side = 'k' if op.phase == WEIGHT_GRAD else 'm'
    return replace(scaled(op, factor), bytes_moved=fixed + (op.bytes_moved - fixed) * factor,
                   **{side: round(getattr(op, side) * factor)})


def with_likes(graph: ModuleGraph) -> ModuleGraph:
    """Modules numbered so that those share a number which have the same type, parameters and work,
    their children's included."""
    below: dict[str, list] = {each.name: [] for each in graph.modules}
    for op in graph.ops:
        parts = op.module.split('.') if op.module else []
        for depth in range(len(parts) + 1):
            name = '.'.join(parts[:depth])
            if name in below:
                below[name].append((op.name, op.phase, op.flops, op.bytes_moved))
    numbers: dict[tuple, int] = {}
    made = []
    for each in graph.modules:
        held = tuple((p.shape, p.element_bytes, p.is_trained) for p in each.parameters)
        key = each.type, held, tuple(sorted(below[each.name]))
        made.append(replace(each, like=numbers.setdefault(key, len(numbers))))
    return replace(graph, modules=tuple(made))
