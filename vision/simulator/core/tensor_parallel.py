"""The part of a model that is left to a rank when features and sequence are split, with the
collectives that it needs.

A layer split by 'out' takes whole features and gives parts; backward, the gradient of its input
is a partial sum. One split by 'in' takes parts and gives a partial sum. A partial sum becomes
whole by an all-reduce (Proteus's table of layouts, arXiv:2306.02267; pairs of layers are those of
Megatron-LM, arXiv:1909.08053). Between the two, operators without parameters follow the layout of
their neighbours. With a split sequence, partial sums are reduce-scattered along it, and what
enters a pair of layers is gathered (arXiv:2205.05198).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vision.simulator.core.graph import (
    FORWARD,
    INPUT_GRAD,
    WEIGHT_GRAD,
    Module,
    ModuleGraph,
    Op,
    Parameter,
    is_inside,
    scaled,
)
from vision.simulator.core.rewrite import first_backward
from vision.simulator.core.strategy import HEADS, IN, OUT, Layout, Spread, cut_axis

ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER = 'all_reduce', 'all_gather', 'reduce_scatter'
# Which side of a product is which: y (rows, out) = x (rows, in) w, and its backward.
_SIDES = {FORWARD: dict(rows='m', out='n', inner='k'),
          INPUT_GRAD: dict(rows='m', out='k', inner='n'),
          WEIGHT_GRAD: dict(rows='k', out='m', inner='n')}


@dataclass(frozen=True)
class Region:
    """Operators [begin, end] of the forward pass, or of the backward, between whole features.

    Args:
        names: modules split by 'out' at its beginning, by 'in' at its end, or one by 'heads'.
        is_closed: ends in partial sums; otherwise its output is parts that have to be gathered.
        in_bytes, out_bytes: of the whole features that enter and leave.
    """

    begin: int
    end: int
    outs: tuple[str, ...]
    ins: tuple[str, ...]
    in_bytes: float
    out_bytes: float

    @property
    def is_closed(self) -> bool:
        """Whether it ends in partial sums, which an all-reduce makes whole."""
        return bool(self.ins)


def split_features(graph: ModuleGraph, spread: Spread) -> ModuleGraph:
    """What one of ``spread.tp`` ranks has and does; collectives are operators of kind
    'collective', their ``bytes_moved`` those of the whole tensor."""
    if spread.tp == 1:
        return graph
    regions = _regions(graph, spread.layouts)
    start = first_backward(graph.ops)
    inside: dict[int, Region] = {}
    before: dict[int, list[Op]] = {}
    after: dict[int, list[Op]] = {}
    for region in regions:
        back = _backward_of(graph, region, start)
        inside |= dict.fromkeys(range(region.begin, region.end + 1), region)
        if back is not None:
            inside |= dict.fromkeys(range(back[0], back[1] + 1), region)
        is_sequence = spread.layouts[(region.outs or region.ins)[0]].sequence > 1
        _add_collectives(graph, region, back, is_sequence, (before, after))
    tensors, ops = dict(graph.tensors), []
    for at, op in enumerate(graph.ops):
        region = inside.get(at)
        ends_here = region is not None and at == region.end and region.is_closed
        local, keys = _local(op, region, spread, ends_here)
        for key in keys:
            tensors[key] = replace(tensors[key], num_bytes=-(-tensors[key].num_bytes // spread.tp))
        ops += [*before.get(at, ()), local, *after.get(at, ())]
    modules = tuple(local_module(each, spread.layouts[each.name]) for each in graph.modules)
    return replace(graph, modules=modules, ops=tuple(ops), tensors=tensors)


def _regions(graph: ModuleGraph, layouts: dict[str, Layout]) -> list[Region]:
    owners = {each.name for each in graph.modules if each.parameters}
    found: list[Region] = []
    open_: dict | None = None
    ops = graph.ops[:first_backward(graph.ops)]

    def close(end: int, ins: tuple[str, ...], out_bytes: float) -> None:
        nonlocal open_
        found.append(Region(open_['begin'], end, tuple(open_['outs']), ins, open_['bytes'],
                            out_bytes))
        open_ = None

    for at, op in enumerate(ops):
        layout = layouts[op.module]
        dim = layout.dim if layout.parts > 1 else ''
        if dim == HEADS:
            if open_ is None or open_['heads'] != layout.region:
                if open_ is not None:
                    close(open_['last'], (), open_['width'])
                open_ = dict(begin=at, outs=[layout.region], bytes=_input_bytes(op),
                             heads=layout.region, last=at, width=0.0)
            if not (at + 1 < len(ops) and is_inside(ops[at + 1].module, layout.region)):
                close(at, (layout.region,), op.output_bytes)
        elif dim == OUT:
            if open_ is None:
                open_ = dict(begin=at, outs=[], bytes=_input_bytes(op), heads='', last=at,
                             width=0.0)
            if op.module not in open_['outs']:
                open_['outs'].append(op.module)
            open_['last'], open_['width'] = at, float(op.output_bytes)
        elif dim == IN:
            open_ = open_ or dict(begin=at, outs=[], bytes=0.0, heads='', last=at, width=0.0)
            close(at, (op.module,), op.output_bytes)
        elif open_ is not None and op.module in owners:
            close(open_['last'], (), open_['width'])
    if open_ is not None:
        close(open_['last'], (), open_['width'])
    return found


def _input_bytes(op: Op) -> float:
    """Of the features that enter a layer, from its product; what it makes where it has none."""
    if op.m and op.k and op.n:
        return op.output_bytes / op.n * op.k
    return float(op.output_bytes)


def _backward_of(graph: ModuleGraph, region: Region, start: int) -> tuple[int, int] | None:
    """From the first backward operator of the modules at its end to the last of those at its
    beginning."""
    names = (*region.outs, *region.ins)
    ats = [at for at in range(start, len(graph.ops))
           if any(is_inside(graph.ops[at].module, name) for name in names)]
    return (ats[0], ats[-1]) if ats else None


def _add_collectives(graph: ModuleGraph, region: Region, back: tuple[int, int] | None,
                     is_sequence: bool, places: tuple[dict, dict]) -> None:
    before, after = places
    dtype = graph.ops[region.begin].dtype

    def put(where: dict, at: int, name: str, num_bytes: float, phase: str) -> None:
        if num_bytes:
            module = graph.ops[at].module
            where.setdefault(at, []).append(Op(name, module, 'collective', 0.0, num_bytes, dtype,
                                               phase))

    needs_input_gradient = back is not None and any(
        graph.ops[at].phase == INPUT_GRAD and any(
            is_inside(graph.ops[at].module, name) for name in region.outs)
        for at in range(back[0], back[1] + 1))
    if region.outs:
        if is_sequence:
            put(before, region.begin, ALL_GATHER, region.in_bytes, FORWARD)
        if needs_input_gradient:
            put(after, back[1], REDUCE_SCATTER if is_sequence else ALL_REDUCE, region.in_bytes,
                INPUT_GRAD)
    if region.is_closed:
        put(after, region.end, REDUCE_SCATTER if is_sequence else ALL_REDUCE, region.out_bytes,
            FORWARD)
        if is_sequence and back is not None:
            put(before, back[0], ALL_GATHER, region.out_bytes, INPUT_GRAD)
        if not region.outs and not is_sequence and back is not None:
            # Whole features came in and only a part of them was used: so is their gradient.
            put(after, back[1], ALL_GATHER, _input_bytes(graph.ops[region.begin]), INPUT_GRAD)
    else:
        put(after, region.end, ALL_GATHER, region.out_bytes, FORWARD)


def _local(op: Op, region: Region | None, spread: Spread,
           ends_here: bool) -> tuple[Op, tuple[int, ...]]:
    """(the operator on one rank, tensors of it that are parts there)."""
    layout, parts = spread.layouts[op.module], spread.tp
    if region is None:
        if layout.sequence > 1:
            made = scaled(op, 1 / parts)
            return _cut(made, 'rows', parts), _not_gradients(op)
        return op, ()
    return part_of(op, layout.dim if layout.parts > 1 else '', parts, is_sum=ends_here)


def part_of(op: Op, dim: str, parts: int, *, is_sum: bool) -> tuple[Op, tuple[int, ...]]:
    """(the part of an operator of a layer split along ``dim``, tensors of it that are parts).

    Args:
        dim: of the layer; '' of what only follows the layout of its neighbours.
        is_sum: what it makes forward is a partial sum.
    """
    made = scaled(op, 1 / parts)
    if op.kind == 'gemm':
        made = _product(op, dim, parts)
    # Partial sums are whole in size: of the last layer forward, of the first ones backward.
    if is_sum or dim == OUT and op.phase == INPUT_GRAD:
        return replace(made, saved_bytes=op.saved_bytes, output_bytes=op.output_bytes), ()
    return made, op.begins


def _not_gradients(op: Op) -> tuple[int, ...]:
    return () if op.phase == WEIGHT_GRAD else op.begins


def _product(op: Op, dim: str, parts: int) -> Op:
    """A product with one side cut, and the bytes that its other sides still have."""
    side = 'inner' if dim == IN else 'out'
    if dim == HEADS and op.batch > 1:
        return replace(scaled(op, 1 / parts), batch=max(1, op.batch // parts))
    made = _cut(op, side, parts)
    elements = op.m * op.n + op.n * op.k + op.m * op.k
    left = made.m * made.n + made.n * made.k + made.m * made.k
    return replace(scaled(made, 1 / parts), bytes_moved=op.bytes_moved * left / elements)


def _cut(op: Op, side: str, parts: int) -> Op:
    if not (op.m and op.phase in _SIDES):
        return op
    letter = _SIDES[op.phase][side]
    return replace(op, **{letter: -(-getattr(op, letter) // parts)})


def local_module(module: Module, layout: Layout) -> Module:
    """With the parameters of one rank, and the part of a split sequence that it sends on."""
    module = replace(module, output_bytes=-(-module.output_bytes // layout.sequence))
    if layout.parts == 1 or not module.parameters:
        return module

    def cut(each: Parameter) -> Parameter:
        axis = cut_axis(module, layout, each.shape)
        if axis is None:
            return each
        shape = list(each.shape)
        shape[axis] //= layout.parts
        return replace(each, shape=tuple(shape))

    return replace(module, parameters=tuple(cut(each) for each in module.parameters))
