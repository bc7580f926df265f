"""Changes of a model's graph that a strategy asks for: lifetimes where nobody followed tensors,
activations made again, activations in host memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vision.simulator.core.graph import (
    AGAIN,
    FORWARD,
    WEIGHT_GRAD,
    ModuleGraph,
    Op,
    TensorInfo,
    is_inside,
)

H2D_OP, D2H_OP = 'host_to_device', 'device_to_host'


def first_backward(ops: Sequence[Op]) -> int:
    """Index of the first operator of the backward pass, or of what is made again for it; their
    number if there is none."""
    return next((at for at, op in enumerate(ops)
                 if op.phase != FORWARD or op.name.endswith(AGAIN)), len(ops))


def with_tensors(graph: ModuleGraph) -> ModuleGraph:
    """The same graph with lifetimes, made from ``saved_bytes`` and ``output_bytes``.

    What is saved goes behind the last backward operator of its module, other results live until
    the next operator is done, gradients of parameters stay. A graph that has tensors is returned
    as it is, with gradients completed where no operator said so.
    """
    ops = list(graph.ops)
    if graph.tensors:
        return graph
    tensors: dict[int, TensorInfo] = {}
    begins: list[list[int]] = [[] for _ in ops]
    ends: list[list[int]] = [[] for _ in ops]
    completes: list[tuple[str, ...]] = [op.completes for op in ops]
    backward = first_backward(ops)
    last = {op.module: at for at, op in enumerate(ops) if at >= backward}
    lasting = {op.module: at for at, op in enumerate(ops) if op.phase == WEIGHT_GRAD}

    def add(at: int, until: int | None, num_bytes: int, category: str, owner: str = '') -> None:
        if num_bytes > 0:
            key = len(tensors)
            tensors[key] = TensorInfo(num_bytes, category, owner)
            begins[at].append(key)
            if until is not None:
                ends[until].append(key)

    for at, op in enumerate(ops):
        following = min(at + 1, len(ops) - 1)
        if op.phase == FORWARD:
            add(at, last.get(op.module, len(ops) - 1), op.saved_bytes, 'activations')
            add(at, following, op.output_bytes - op.saved_bytes, 'activations')
        elif op.phase != WEIGHT_GRAD:
            add(at, following, op.output_bytes, 'temporary')
    for module in graph.modules:
        at = lasting.get(module.name, last.get(module.name))
        trained = [each for each in module.parameters if each.is_trained]
        if at is None or not trained:
            continue
        for each in trained:
            add(at, None, each.num_bytes, 'gradients', each.name)
        if not any(op.completes for op in graph.ops):
            completes[at] = tuple(each.name for each in trained)
    made = [replace(op, begins=tuple(begins[at]), ends=tuple(ends[at]), completes=completes[at])
            for at, op in enumerate(ops)]
    return replace(graph, ops=tuple(made), tensors=tensors)


def renamed(op: Op, names: Mapping[int, int]) -> Op:
    """The operator on other tensors."""
    return replace(op, **{kind: tuple(names.get(key, key) for key in getattr(op, kind))
                          for kind in ('begins', 'ends', 'reads', 'writes')})


def with_recompute(graph: ModuleGraph, regions: Sequence[Sequence[str]]) -> ModuleGraph:
    """Each region, of one module or of neighbours, keeps nothing of its inside: its forward runs
    again before its backward.

    What its last operator made stays, which is its output (Proteus: all but the node's outputs).
    """
    # From the last on: what comes back first is then asked for first.
    for region in reversed(regions):
        graph = _recomputed(graph, region)
    return graph


def with_offload(graph: ModuleGraph, names: Sequence[str]) -> ModuleGraph:
    """What each of the modules keeps goes to host memory behind its forward, and comes back one
    module before its backward."""
    for name in reversed(names):
        graph = _offloaded(graph, name, names)
    return graph


def offloaded_tensors(graph: ModuleGraph, region: Sequence[str]) -> list[int]:
    """Activations that a region of modules keeps and ``offload`` moves: all but its output."""
    return [key for key in _kept_of(graph, region)[2]
            if graph.tensors[key].category == 'activations']


def _kept_of(graph: ModuleGraph, region: Sequence[str]) -> tuple[list[int], int, list[int]]:
    """(forward operators of a region by index, first backward one, tensors that it keeps)."""
    def is_of_region(at: int) -> bool:
        return any(is_inside(graph.ops[at].module, name) for name in region)

    start = first_backward(graph.ops)
    forward = [at for at in range(start) if is_of_region(at)
               and graph.ops[at].name not in (H2D_OP, D2H_OP)]
    back = next((at for at in range(start, len(graph.ops)) if is_of_region(at)), len(graph.ops))
    ended_early = {key for op in graph.ops[:start] for key in op.ends}
    ended = {key for op in graph.ops[start:] for key in op.ends}
    kept = [key for at in forward[:-1] for key in graph.ops[at].begins
            if key in ended and key not in ended_early]
    return forward, back, kept


def _recomputed(graph: ModuleGraph, region: Sequence[str]) -> ModuleGraph:
    forward, back, kept = _kept_of(graph, region)
    if not kept or back == len(graph.ops):
        return graph
    tensors, ops = dict(graph.tensors), list(graph.ops)
    born = [key for at in forward[:-1] for key in ops[at].begins]
    again = {key: max(tensors) + 1 + n for n, key in enumerate(born)}
    tensors |= {again[key]: tensors[key] for key in born}
    copies = []
    for at in forward[:-1]:
        op = ops[at]
        copies.append(replace(
            renamed(op, again), name=op.name + AGAIN,
            ends=tuple(again[key] for key in op.ends if key in again), saved_bytes=0,
            completes=()))
    # What the module's last operator freed is freed behind the copies as well.
    tail = tuple(again[key] for key in ops[forward[-1]].ends if key in again)
    copies[-1] = replace(copies[-1], ends=(*copies[-1].ends, *tail))
    ops[forward[-1]] = replace(ops[forward[-1]], ends=(*ops[forward[-1]].ends, *kept))
    swap = {key: again[key] for key in kept}
    rest = [renamed(op, swap) for op in ops[back:]]
    return replace(graph, ops=(*ops[:back], *copies, *rest), tensors=tensors)


def _offloaded(graph: ModuleGraph, name: str, names: Sequence[str]) -> ModuleGraph:
    forward, back, _ = _kept_of(graph, (name,))
    kept = offloaded_tensors(graph, (name,))
    if not kept or back == len(graph.ops):
        return graph
    tensors, ops = dict(graph.tensors), list(graph.ops)
    again = {key: max(tensors) + 1 + n for n, key in enumerate(kept)}
    tensors |= {again[key]: tensors[key] for key in kept}
    num_bytes = float(sum(tensors[key].num_bytes for key in kept))
    out = Op(D2H_OP, name, 'other', 0.0, num_bytes, ends=tuple(kept))
    back_in = Op(H2D_OP, name, 'other', 0.0, num_bytes, begins=tuple(again.values()),
                 phase=ops[back].phase)
    # One module ahead: behind the first backward operator of the one that is done before it.
    start = first_backward(ops)
    earlier = [at for at in range(start, back) if ops[at].name != H2D_OP and any(
        other != name and is_inside(ops[at].module, other) for other in names)]
    nearest = ops[earlier[-1]].module if earlier else None
    ahead = back
    if nearest is not None:
        owner = next(other for other in names if is_inside(nearest, other))
        ahead = next(at for at in earlier if is_inside(ops[at].module, owner))
    rest = [renamed(op, again) for op in ops[ahead:]]
    return replace(graph, ops=(*ops[:forward[-1] + 1], out, *ops[forward[-1] + 1:ahead], back_in,
                               *rest), tensors=tensors)
