"""A model in stages of a pipeline: what each stage costs, so that an action table can be timed.

The table is the one that ``vision.pipeline`` runs. Operators that are in none of its pieces, such
as the loss, go with the piece before them. What stages do beside the tasks of their table is
written by ``stage_nodes``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from vision.common.core.errors import VisionError
from vision.pipeline.core.tasks import Costs, Table
from vision.simulator.core.compile import Pricing, Settings
from vision.simulator.core.from_actions import from_actions
from vision.simulator.core.graph import (
    AGAIN,
    FORWARD,
    INPUT_GRAD,
    WEIGHT_GRAD,
    ModuleGraph,
    Op,
    is_inside,
)
from vision.simulator.core.mixed import split_mixed
from vision.simulator.core.program import Program
from vision.simulator.core.rewrite import (
    first_backward,
    offloaded_tensors,
    with_recompute,
    with_tensors,
)
from vision.simulator.core.stage_nodes import (
    Reduced,
    Tie,
    with_offloads,
    with_optimizer,
    with_reductions,
    with_remade,
    with_ties,
)
from vision.simulator.core.stage_parameters import (
    Grid,
    bytes_of,
    held_by_stages,
    owned_by_stages,
    reduced_together,
    static_bytes_of,
)
from vision.simulator.core.strategy import Spread, StrategyTree, stage_of
from vision.simulator.core.tensor_parallel import split_features


@dataclass(frozen=True)
class Stages:
    """What the stages of a model cost, and what an action table does not ask for. Bytes are those
    of one rank, by stage.

    Args:
        costs: seconds and bytes of tasks.
        trained: gradients; of a parameter that several stages of a pipeline rank hold, at the
            first of these alone.
        reduced: of them (bytes, ranks with other parts of the batch), as far as there are any
            and no task of the table reduces them.
        remade: activations that are made again for a micro-batch's backward pass, at its highest
            moment (recompute).
        remade_inputs, remade_weights: of them, where the pass is in two: those that only the
            gradient of the input needs, at their highest moment, and those that stay until the
            gradients of the weights are made.
        moved: of a micro-batch's activations, those that go to host memory (offload).
        ties: parameters that stages of several pipeline ranks hold.
    """

    costs: Costs
    trained: tuple[int, ...]
    reduced: tuple[tuple[Reduced, ...], ...]
    remade: tuple[int, ...]
    remade_inputs: tuple[int, ...]
    remade_weights: tuple[int, ...]
    moved: tuple[int, ...]
    ties: tuple[Tie, ...]


class Messages(NamedTuple):
    """``entering``: bytes that each stage takes from the one before it; seconds of a message."""

    entering: Sequence[int]
    seconds: float


def piece_of_ops(graph: ModuleGraph, names: Sequence[str]) -> list[int]:
    """For each operator the number of its piece; of one outside of all, its neighbour's: the one
    before it forward, the one after it backward."""
    own = [next((n for n, name in enumerate(names) if is_inside(op.module, name)), None)
           for op in graph.ops]
    start = first_backward(graph.ops)
    at = 0
    for index in range(start):
        at = own[index] = at if own[index] is None else own[index]
    last = next((piece for piece in own[start:] if piece is not None), at)
    for index in range(start, len(own)):
        last = own[index] = last if own[index] is None else own[index]
    return own


def stage_costs(graph: ModuleGraph, names: Sequence[str], ranges: Sequence[tuple[int, int]],
                grid: Grid, pricing: Pricing, settings: Settings, *,
                moved: Sequence[Sequence[str]] = (), messages: Messages | None = None) -> Stages:
    """Costs of stages in seconds and bytes.

    Args:
        graph: of one micro-batch, of one rank: its part of the features, with collectives.
        names: of the pieces, in order of execution.
        ranges: pieces (begin, end) of each stage.
        moved: regions, of one stage each, that are offloaded.
        messages: between stages; None: what the piece before makes, sent to the same place.
    """
    graph = with_tensors(graph)
    stage_of_piece = [stage for stage, (a, b) in enumerate(ranges) for _ in range(a, b)]
    stage_of_op = [stage_of_piece[piece] for piece in piece_of_ops(graph, names)]
    held = held_by_stages(graph, names, stage_of_piece)
    own, ties = owned_by_stages(held, grid.rank_of)
    trained = [bytes_of(each, is_trained=True) for each in own]
    gathers = reduces = [0.0] * len(ranges)
    if grid.is_sharded:
        gathered = [bytes_of(each, settings.gathered_bytes) for each in held]
        gathers = [pricing.communicate('all_gather', num_bytes, peers)
                   for num_bytes, peers in zip(gathered, grid.peers, strict=True)]
        reduces = [pricing.communicate('reduce_scatter', num_bytes, peers)
                   for num_bytes, peers in zip(trained, grid.peers, strict=True)]
    entering, latency = messages or _messages(graph, names, ranges, grid, pricing)
    kept, away = _kept(graph, stage_of_op, moved)
    costs = Costs(
        *_task_seconds(graph, stage_of_op, grid, pricing), latency=latency,
        gather=tuple(gathers), reduce=tuple(reduces),
        activation_bytes=tuple(a + b for a, b in zip(kept, entering, strict=True)),
        weight_bytes=tuple(bytes_of(each) if grid.is_sharded else 0 for each in held),
        static_bytes=static_bytes_of(own, settings, grid))
    reduced = tuple(() if grid.is_sharded else reduced_together(each, ranks, grid)
                    for each, ranks in zip(own, grid.ranks, strict=True))
    return Stages(costs, tuple(trained), reduced, *_remade(graph, stage_of_op, len(ranges)), away,
                  ties)


def compile_stages(graph: ModuleGraph, tree: StrategyTree, table: Table, pricing: Pricing,
                   settings: Settings) -> Program:
    """One step of a model whose modules a strategy maps to stages; a rank for each of the
    pipeline's, that stands for all shares of the batch and parts of the features.

    Args:
        table: over as many stages as the strategy has; complete, with UNSHARD where zero=3.
            Otherwise several shares of the batch reduce a stage's gradients once.

    Raises:
        VisionError: VIS-CONFIG-1620 to VIS-CONFIG-1625 of the strategy, VIS-CONFIG-1627 another
            number of stages.
    """
    spread = tree.spread(graph)
    if len(spread.stages) != table.num_stages:
        raise VisionError('VIS-CONFIG-1627', f'{len(spread.stages)} stages for a table of '
                          f'{table.num_stages}', where='strategy', why='each stage of the table '
                          'has ranks of its own', do='map() modules to as many groups of ranks')
    owners, ranges = _pieces(graph, spread)
    pieces = [owners[a:b] for a, b in ranges]
    local, messages = with_tensors(graph), None
    if spread.is_mixed:
        mixed = split_mixed(local, spread, pricing.quote)
        local, messages = mixed.graph, Messages(
            [mixed.entering.get(stage, 0) for stage in range(table.num_stages)], mixed.seconds)
    else:
        local = split_features(local, spread)
    local = with_recompute(local, _regions(spread, pieces, 'is_recomputed'))
    grid = Grid(table.rank_of, spread.dp, spread.tp, spread.zero, spread.stages, {
        each.name: spread.layouts[module.name].batch for module in graph.modules
        for each in module.parameters})
    stages = stage_costs(local, owners, ranges, grid, pricing, settings, messages=messages,
                         moved=_regions(spread, pieces, 'is_offloaded'))
    return step_of_stages(stages, table, grid, pricing, settings)


def step_of_stages(stages: Stages, table: Table, grid: Grid, pricing: Pricing,
                   settings: Settings) -> Program:
    """The program of a step: the tasks of the table, and what stages do beside them."""
    program = with_remade(from_actions(table, stages.costs), stages.remade, stages.remade_inputs,
                          stages.remade_weights)
    program = with_offloads(program, table, stages.moved, pricing)
    program = with_reductions(program, table, stages.reduced, pricing, settings,
                              is_scattered=grid.zero == 2)
    program = with_ties(program, table, stages.ties, grid.ranks, pricing,
                        num_shares=grid.num_shares if grid.zero >= 2 else 1)
    program = with_optimizer(program, table, stages.trained, grid.peers, pricing, settings,
                             zero=grid.zero)
    return replace(program, replicas=grid.num_shares * grid.num_parts)


def _pieces(graph: ModuleGraph, spread: Spread) -> tuple[list[str], list[tuple[int, int]]]:
    """(outermost modules that are mapped, in order of their stages; which of them each has)."""
    def is_below(name: str) -> bool:
        ranks = spread.layouts[name].ranks
        return any(is_inside(name, other.name) and other.name != name for other in graph.modules
                   if spread.layouts[other.name].ranks == ranks)

    owners = sorted((each.name for each in graph.modules
                     if spread.layouts[each.name].ranks and not is_below(each.name)),
                    key=lambda name: stage_of(name, spread))
    ends = [sum(stage_of(each, spread) <= stage for each in owners)
            for stage in range(len(spread.stages))]
    return owners, list(zip([0, *ends], ends, strict=False))


def _regions(spread: Spread, pieces: Sequence[Sequence[str]], verb: str) -> list[list[str]]:
    """Regions that recompute or offload names, cut where a stage ends; ``pieces`` by stage."""
    found = []
    for name in dict.fromkeys(each.kept_region for each in spread.layouts.values()
                              if getattr(each, verb)):
        cut = [[piece for piece in own if is_inside(piece, name)] for own in pieces]
        found += [each for each in cut if each] or [[name]]
    return found


def _kept(graph: ModuleGraph, stage_of_op: Sequence[int], moved: Sequence[Sequence[str]]
          ) -> tuple[list[int], tuple[int, ...]]:
    """Bytes of each stage that a micro-batch keeps from forward to backward on the device, and of
    those that are in host memory meanwhile."""
    start = first_backward(graph.ops)
    gone = {key for op in graph.ops[:start] for key in op.ends}
    away = {key for region in moved for key in offloaded_tensors(graph, region)}
    kept, out = [0] * (max(stage_of_op) + 1), [0] * (max(stage_of_op) + 1)
    for op, stage in zip(graph.ops[:start], stage_of_op, strict=False):
        for key in op.begins:
            if key not in gone:
                (out if key in away else kept)[stage] += graph.tensors[key].num_bytes
    return kept, tuple(out)


def _remade(graph: ModuleGraph, stage_of_op: Sequence[int], num_stages: int
            ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Bytes of what is made again, as ``Stages`` has them. Where nobody followed who reads a
    tensor, the module that lets go of it does: with gradients of weights if it makes any."""
    for_weights = {key for op in graph.ops if op.phase == WEIGHT_GRAD for key in op.reads}
    if not any(op.reads for op in graph.ops):
        has_weights = {op.module for op in graph.ops if op.phase == WEIGHT_GRAD}
        for_weights = {key for op in graph.ops if op.module in has_weights
                       and not op.name.endswith(AGAIN) for key in op.ends}
    owner: dict[int, int] = {}
    now, highest = [0] * num_stages, [0] * num_stages
    now_inputs, highest_inputs, weights = [0] * num_stages, [0] * num_stages, [0] * num_stages
    for op, stage in zip(graph.ops, stage_of_op, strict=True):
        if op.name.endswith(AGAIN):
            owner |= dict.fromkeys(op.begins, stage)
        changes = [(key, 1) for key in op.begins] + [(key, -1) for key in op.ends]
        for key, sign in changes:
            if key not in owner:
                continue
            at, size = owner[key], graph.tensors[key].num_bytes
            now[at] += sign * size
            highest[at] = max(highest[at], now[at])
            if key not in for_weights:
                now_inputs[at] += sign * size
                highest_inputs[at] = max(highest_inputs[at], now_inputs[at])
            elif sign > 0:
                weights[at] += size
    return tuple(highest), tuple(highest_inputs), tuple(weights)


def _task_seconds(graph: ModuleGraph, stage_of_op: Sequence[int], grid: Grid, pricing: Pricing
                  ) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Of F, I and W by stage. What is made again is done with I if the pass is in two, as the
    gradient of the input comes first; the first stage has all of its backward in W (torch does it
    at once)."""
    ops: dict[tuple[int, str], list[Op]] = {}
    for op, stage in zip(graph.ops, stage_of_op, strict=True):
        phase = AGAIN if op.name.endswith(AGAIN) else op.phase
        ops.setdefault((stage, phase), []).append(op)

    def times(phase: str) -> list[float]:
        return [_seconds(ops.get((stage, phase), []), pricing, ranks[:grid.num_parts])
                for stage, ranks in enumerate(grid.ranks)]

    forward, again = times(FORWARD), times(AGAIN)
    inputs, weight = times(INPUT_GRAD), times(WEIGHT_GRAD)
    inputs = [one + two for one, two in zip(inputs, again, strict=True)]
    weight[0], inputs[0] = weight[0] + inputs[0], 0.0
    return tuple(forward), tuple(inputs), tuple(weight)


def _seconds(ops: Sequence[Op], pricing: Pricing, parts: Sequence[int]) -> float:
    """Of operators and of the collectives between them, which nothing hides inside a stage."""
    compute = [op for op in ops if op.kind != 'collective']
    waits = sum(pricing.communicate(op.name.removesuffix(AGAIN), op.bytes_moved,
                                    op.ranks or parts) for op in ops if op.kind == 'collective')
    return (pricing.compute(compute) if compute else 0.0) + waits


def piece_flops(graph: ModuleGraph, names: Sequence[str]) -> list[float]:
    """FLOPs of each piece's forward pass, by which stages are cut."""
    flops = [0.0] * len(names)
    for op, piece in zip(graph.ops, piece_of_ops(graph, names), strict=True):
        is_first = op.phase == FORWARD and not op.name.endswith(AGAIN)
        flops[piece] += op.flops if is_first else 0.0
    return flops


def _messages(graph: ModuleGraph, names: Sequence[str], ranges: Sequence[tuple[int, int]],
              grid: Grid, pricing: Pricing) -> Messages:
    """What the last piece of each stage makes, between first ranks; stages of one rank send each
    other nothing."""
    entering = [0, *(_boundary_bytes(graph, names, end) for _, end in ranges[:-1])]
    seconds = [pricing.communicate('p2p', entering[stage], (
        grid.ranks[stage - 1][0], grid.ranks[stage][0])) for stage in range(1, len(ranges))
        if grid.rank_of[stage - 1] != grid.rank_of[stage]]
    return Messages(entering, max(seconds, default=0.0))


def _boundary_bytes(graph: ModuleGraph, names: Sequence[str], end: int) -> int:
    """Of what the piece before ``end`` sends on; of its last operator if nobody said it."""
    name = names[end - 1]
    made = [op.output_bytes for op in graph.ops[:first_backward(graph.ops)]
            if is_inside(op.module, name)]
    return graph.module(name).output_bytes or (made[-1] if made else 0)
