"""A model in stages of a pipeline: what each stage costs, so that an action table can be timed.

The table is the one that ``vision.pipeline`` runs. Operators that are in none of its pieces, such
as the loss, go with the piece before them. What stages do beside the tasks of their table is
written by ``stage_nodes``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vision.common.core.errors import VisionError
from vision.pipeline.core.tasks import Costs, Table
from vision.simulator.core.compile import OPTIMIZERS, Pricing, Settings
from vision.simulator.core.from_actions import from_actions
from vision.simulator.core.graph import (
    AGAIN,
    FORWARD,
    INPUT_GRAD,
    WEIGHT_GRAD,
    ModuleGraph,
    Op,
    Parameter,
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
                rank_of: Sequence[int], pricing: Pricing, settings: Settings, *,
                num_shares: int = 1, num_parts: int = 1, zero: int = 3,
                ranks: Sequence[Sequence[int]] | None = None,
                moved: Sequence[Sequence[str]] = (), batch_of: Mapping[str, int] | None = None,
                entering: Sequence[int] | None = None, latency: float | None = None) -> Stages:
    """Costs of stages in seconds and bytes.

    What a region makes again counts as backward: with I if the pass is in two, as the gradient of
    the input comes first; the first stage has all of its backward in W (torch's pipelining).

    Args:
        graph: of one micro-batch.
        names: of the pieces, in order of execution.
        ranges: pieces (begin, end) of each stage.
        rank_of: pipeline rank of each stage.
        num_shares: parts of the batch, over which ``zero`` shards: 1 states of the optimizer, 2
            and gradients, 3 and parameters; 0 nothing.
        num_parts: ranks over which features are split; the graph is one rank's, with collectives.
        ranks: of the run by stage, those with parts of the same features next to each other; None
            as ``ZeroPPStrategy`` numbers them.
        moved: regions, of one stage each, that are offloaded.
        batch_of: parts of the batch by parameter; None: ``num_shares`` for all.
        entering, latency: bytes that each stage takes from the one before it, and seconds of a
            message between two; None: what the piece before makes, sent to the same place.
    """
    graph = with_tensors(graph)
    size = num_shares * num_parts
    ranks = ranks or [range(rank * size, (rank + 1) * size) for rank in rank_of]
    stage_of_piece = [stage for stage, (a, b) in enumerate(ranges) for _ in range(a, b)]
    stage_of_op = [stage_of_piece[piece] for piece in piece_of_ops(graph, names)]
    num = len(ranges)
    ops: dict[tuple[int, str], list[Op]] = {}
    for op, stage in zip(graph.ops, stage_of_op, strict=True):
        phase = AGAIN if op.name.endswith(AGAIN) else op.phase
        ops.setdefault((stage, phase), []).append(op)

    def times(phase: str) -> list[float]:
        return [_seconds(ops.get((stage, phase), []), pricing, ranks[stage][:num_parts])
                for stage in range(num)]

    forward, again = times(FORWARD), times(AGAIN)
    inputs, weight = times(INPUT_GRAD), times(WEIGHT_GRAD)
    inputs = [one + two for one, two in zip(inputs, again, strict=True)]
    weight[0], inputs[0] = weight[0] + inputs[0], 0.0  # torch does all of it at once
    held = _held(graph, names, stage_of_piece)
    own, ties = _owned(held, rank_of)
    is_sharded = num_shares > 1 and zero == 3
    peers = [each[::num_parts] for each in ranks]
    trained = [_bytes(each, is_trained=True) for each in own]
    gathers = [pricing.communicate('all_gather', _bytes(each, settings.gathered_bytes), group)
               if is_sharded else 0.0 for each, group in zip(held, peers, strict=True)]
    reduces = [pricing.communicate('reduce_scatter', num_bytes, group) if is_sharded else 0.0
               for num_bytes, group in zip(trained, peers, strict=True)]
    if entering is None:
        entering = [0, *(_boundary_bytes(graph, names, end) for _, end in ranges[:-1])]
    if latency is None:
        latency = max((pricing.communicate('p2p', entering[stage], (ranks[stage - 1][0],
                                                                    ranks[stage][0]))
                       for stage in range(1, num) if rank_of[stage - 1] != rank_of[stage]),
                      default=0.0)
    kept, away = _kept(graph, stage_of_op, moved)
    costs = Costs(
        tuple(forward), tuple(inputs), tuple(weight), latency=latency, gather=tuple(gathers),
        reduce=tuple(reduces),
        activation_bytes=tuple(a + b for a, b in zip(kept, entering, strict=True)),
        weight_bytes=tuple(map(_bytes, held)) if is_sharded else (0,) * num,
        static_bytes=_static_bytes(own, rank_of, settings, num_shares, zero))
    reduced = tuple(() if is_sharded else _reduced(each, group, batch_of, num_shares)
                    for each, group in zip(own, ranks, strict=True))
    return Stages(costs, tuple(trained), reduced, *_remade(graph, stage_of_op, num), away, ties)


def compile_stages(graph: ModuleGraph, tree: StrategyTree, table: Table, pricing: Pricing,
                   settings: Settings) -> Program:
    """One step of a model whose modules a strategy maps to stages; a rank for each of the
    pipeline's, that stands for all shares of the batch and parts of the features.

    Args:
        table: over as many stages as the strategy has; complete, with UNSHARD where zero=3.
            Otherwise several shares of the batch reduce a stage's gradients once.
    Raises:
        VisionError: VIS-CONFIG-1620 to 1622 of the strategy, 1621 another number of stages.
    """
    spread = tree.spread(graph)
    if len(spread.stages) != table.num_stages:
        raise VisionError('VIS-CONFIG-1621', f'{len(spread.stages)} stages for a table of '
                          f'{table.num_stages}', where='strategy', why='each stage of the table '
                          'has ranks of its own', do='map() modules to as many groups of ranks')
    owners = [module.name for module in graph.modules if spread.layouts[module.name].ranks
              and not any(is_inside(module.name, other.name) and other.name != module.name
                          for other in graph.modules if spread.layouts[other.name].ranks
                          == spread.layouts[module.name].ranks)]
    owners.sort(key=lambda each: stage_of(each, spread))
    ends = [sum(stage_of(each, spread) <= stage for each in owners)
            for stage in range(table.num_stages)]
    ranges = list(zip([0, *ends], ends, strict=False))
    pieces = [owners[a:b] for a, b in ranges]
    local, more = with_tensors(graph), {}
    if spread.is_mixed:
        mixed = split_mixed(local, spread, pricing.quote)
        local = mixed.graph
        more = dict(latency=mixed.seconds, entering=[mixed.entering.get(stage, 0) for stage
                                                     in range(table.num_stages)],
                    batch_of={each.name: spread.layouts[module.name].batch
                              for module in graph.modules for each in module.parameters})
    else:
        local = split_features(local, spread)
    local = with_recompute(local, _regions(spread, pieces, 'is_recomputed'))
    stages = stage_costs(local, owners, ranges, table.rank_of, pricing, settings,
                         num_shares=spread.dp, num_parts=spread.tp, zero=spread.zero,
                         ranks=spread.stages, moved=_regions(spread, pieces, 'is_offloaded'),
                         **more)
    return step_of_stages(stages, table, pricing, settings, spread.stages, num_shares=spread.dp,
                          num_parts=spread.tp, zero=spread.zero)


def step_of_stages(stages: Stages, table: Table, pricing: Pricing, settings: Settings,
                   ranks: Sequence[Sequence[int]], *, num_shares: int = 1, num_parts: int = 1,
                   zero: int = 3) -> Program:
    """The program of a step: the tasks of the table, and what stages do beside them. Arguments as
    of ``stage_costs``."""
    program = with_remade(from_actions(table, stages.costs), stages.remade, stages.remade_inputs,
                          stages.remade_weights)
    program = with_offloads(program, table, stages.moved, pricing)
    peers = [each[::num_parts] for each in ranks]
    program = with_reductions(program, table, stages.reduced, pricing, settings,
                              is_scattered=zero == 2)
    shares = num_shares if zero >= 2 else 1
    program = with_ties(program, table, stages.ties, ranks, pricing, num_shares=shares)
    return with_optimizer(program, table, stages.trained, peers, pricing, settings,
                          num_shares=num_shares, num_parts=num_parts, zero=zero)


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
    """Bytes of what is made again, as ``Stages`` has them. The last module that reads such a
    tensor lets go of it: if it makes gradients of weights, that is with them."""
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


def _seconds(ops: Sequence[Op], pricing: Pricing, parts: Sequence[int]) -> float:
    """Of operators and of the collectives between them, which nothing hides inside a stage."""
    compute = [op for op in ops if op.kind != 'collective']
    waits = sum(pricing.communicate(op.name.removesuffix(AGAIN), op.bytes_moved,
                                    op.ranks or parts) for op in ops if op.kind == 'collective')
    return (pricing.compute(compute) if compute else 0.0) + waits


def piece_flops(graph: ModuleGraph, names: Sequence[str]) -> list[float]:
    """Of the forward pass, as stages are cut by them."""
    flops = [0.0] * len(names)
    for op, piece in zip(graph.ops, piece_of_ops(graph, names), strict=True):
        is_first = op.phase == FORWARD and not op.name.endswith(AGAIN)
        flops[piece] += op.flops if is_first else 0.0
    return flops


def _held(graph: ModuleGraph, names: Sequence[str], stage_of_piece: Sequence[int]
          ) -> list[dict[str, Parameter]]:
    """Parameters that the modules of each stage use, by name; a tied one in each of its stages."""
    held: list[dict[str, Parameter]] = [{} for _ in range(max(stage_of_piece) + 1)]

    def stage_of_module(name: str) -> int | None:
        return next((stage for stage, piece in zip(stage_of_piece, names, strict=True)
                     if is_inside(name, piece)), None)

    for module in graph.modules:
        for each in module.parameters:
            stages = [stage_of_module(name) for name in (module.name, *each.shared_with)]
            assert stages[0] is not None, f'{module.name} is in no piece'
            for stage in stages:
                if stage is not None:
                    held[stage][each.name] = each
    return held


def _owned(held: Sequence[dict[str, Parameter]], rank_of: Sequence[int]
           ) -> tuple[list[list[Parameter]], tuple[Tie, ...]]:
    """Parameters of each stage that no earlier stage of its pipeline rank has, and the ties
    between ranks. Stages of one rank are one process, which has a tied tensor once."""
    own: list[list[Parameter]] = []
    holders: dict[str, list[int]] = {}
    sizes: dict[str, Parameter] = {}
    for stage, each in enumerate(held):
        own.append([])
        for name, parameter in each.items():
            if rank_of[stage] not in (rank_of[other] for other in holders.get(name, ())):
                own[stage].append(parameter)
                holders.setdefault(name, []).append(stage)
                sizes[name] = parameter
    ties = tuple(Tie(name, sizes[name].num_bytes, tuple(stages))
                 for name, stages in holders.items()
                 if len(stages) > 1 and sizes[name].is_trained)
    return own, ties


def _reduced(own: Sequence[Parameter], ranks: Sequence[int], batch_of: Mapping[str, int] | None,
             num_shares: int) -> tuple[Reduced, ...]:
    """Gradients of a stage, those together that the same ranks reduce."""
    sizes: dict[int, int] = {}
    for each in own:
        batch = batch_of[each.name] if batch_of else num_shares
        if batch > 1 and each.is_trained:
            sizes[batch] = sizes.get(batch, 0) + each.num_bytes
    return tuple(Reduced(size, tuple(ranks[::len(ranks) // batch]))
                 for batch, size in sorted(sizes.items()))


def _bytes(parameters: dict[str, Parameter] | Sequence[Parameter],
           element_bytes: int | None = None, *, is_trained: bool = False) -> int:
    """Of parameters, as they are or with so many bytes a number; of those trained alone."""
    each_one = parameters.values() if isinstance(parameters, dict) else parameters
    return sum(each.num_elements * (element_bytes or each.element_bytes) for each in each_one
               if each.is_trained or not is_trained)


def _static_bytes(own: Sequence[Sequence[Parameter]], rank_of: Sequence[int], settings: Settings,
                  num_shares: int, zero: int) -> tuple[int, ...]:
    """Of parameters, gradients and states of the optimizer on a rank, by pipeline rank; what is
    scattered (zero=2) is no part of it until it is made."""
    states = OPTIMIZERS[settings.optimizer][0]
    weights, trained = [0] * (max(rank_of) + 1), [0] * (max(rank_of) + 1)
    for rank, each in zip(rank_of, own, strict=True):
        weights[rank] += _bytes(each)
        trained[rank] += _bytes(each, is_trained=True)
    if zero == 3:
        return tuple((whole + (1 + states) * each) // num_shares
                     for whole, each in zip(weights, trained, strict=True))
    shares = num_shares if zero else 1
    return tuple(whole + (each if zero < 2 else 0) - (-states * each // shares)
                 for whole, each in zip(weights, trained, strict=True))


def _boundary_bytes(graph: ModuleGraph, names: Sequence[str], end: int) -> int:
    """Of what the piece before ``end`` sends on; of its last operator if nobody said it."""
    name = names[end - 1]
    made = [op.output_bytes for op in graph.ops[:first_backward(graph.ops)]
            if is_inside(op.module, name)]
    return graph.module(name).output_bytes or (made[-1] if made else 0)
