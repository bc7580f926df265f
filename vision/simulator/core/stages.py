"""A model in stages of a pipeline: what each stage costs, so that an action table can be timed.

The table is the one that ``vision.pipeline`` runs. Operators that are in none of its pieces, such
as the loss, go with the piece before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vision.common.core.errors import VisionError
from vision.pipeline.core.tasks import B, Costs, Table, W
from vision.simulator.core.compile import (
    ALL_REDUCE,
    OPTIMIZERS,
    Pricing,
    Settings,
    local_graph,
)
from vision.simulator.core.from_actions import from_actions
from vision.simulator.core.graph import (
    FORWARD,
    INPUT_GRAD,
    OPTIMIZER,
    WEIGHT_GRAD,
    ModuleGraph,
    Op,
    is_inside,
)
from vision.simulator.core.program import GRADIENT, Buffer, Node, Program
from vision.simulator.core.rewrite import first_backward, with_tensors
from vision.simulator.core.strategy import Spread, StrategyTree, stage_of


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
                num_shares: int = 1, num_parts: int = 1) -> Costs:
    """Costs of stages in seconds and bytes, on ranks numbered as ``ZeroPPStrategy`` has them.

    Args:
        graph: of one micro-batch.
        names: of the pieces, in order of execution.
        ranges: pieces (begin, end) of each stage.
        rank_of: pipeline rank of each stage.
        num_shares: ranks over which the parameters of a stage are sharded.
        num_parts: ranks over which features are split; the graph is one rank's, with collectives.
    """
    graph = with_tensors(graph)
    stage_of = [next(s for s, (a, b) in enumerate(ranges) if a <= piece < b)
                for piece in piece_of_ops(graph, names)]
    num = len(ranges)
    ops: dict[tuple[int, str], list[Op]] = {}
    kept = [0] * num
    for op, stage in zip(graph.ops, stage_of, strict=True):
        ops.setdefault((stage, op.phase), []).append(op)
        kept[stage] += op.saved_bytes if op.phase == FORWARD else 0

    def times(phase: str) -> list[float]:
        return [_seconds(ops.get((stage, phase), []), pricing, num_parts)
                for stage in range(num)]

    weights, trained = _weights(graph, names, ranges)
    peers = [tuple(rank * num_shares + share for share in range(num_shares))
             for rank in rank_of]
    is_sharded = num_shares > 1
    gathered, _ = _weights(graph, names, ranges, settings.gathered_bytes)
    gathers = [pricing.communicate('all_gather', size, ranks) if is_sharded else 0.0
               for size, ranks in zip(gathered, peers, strict=True)]
    reduces = [pricing.communicate('reduce_scatter', size, ranks) if is_sharded else 0.0
               for size, ranks in zip(trained, peers, strict=True)]
    forward, inputs, weight = times(FORWARD), times(INPUT_GRAD), times(WEIGHT_GRAD)
    # torch does the first stage's whole backward at once.
    weight[0], inputs[0] = weight[0] + inputs[0], 0.0
    states = OPTIMIZERS[settings.optimizer][0]
    static = [0] * (max(rank_of) + 1)
    for stage, rank in enumerate(rank_of):
        static[rank] += (weights[stage] + (1 + states) * trained[stage]) // num_shares
    boundary = [_boundary_bytes(graph, names, end) for _, end in ranges[:-1]]
    latency = max((pricing.communicate('p2p', size, (0, num_shares)) for size in boundary),
                  default=0.0)
    entering = [0, *boundary]
    return Costs(tuple(forward), tuple(inputs), tuple(weight), latency=latency,
                 gather=tuple(gathers), reduce=tuple(reduces),
                 activation_bytes=tuple(a + b for a, b in zip(kept, entering, strict=True)),
                 weight_bytes=tuple(weights) if is_sharded else (0,) * num,
                 static_bytes=tuple(static))


def compile_stages(graph: ModuleGraph, tree: StrategyTree, table: Table, pricing: Pricing,
                   settings: Settings) -> Program:
    """One step of a model whose modules a strategy maps to stages; a rank for each of the
    pipeline's, that stands for all shares of the batch and parts of the features.

    Args:
        table: over as many stages as the strategy has; complete, with UNSHARD where zero=3.
            Without zero=3 several shares of the batch reduce a stage's gradients once.
    Raises:
        VisionError: VIS-CONFIG-1620 to 1622 of the strategy, 1621 another number of stages; 1623
            recompute or offload, 1624 zero 1 or 2, which stages do not have here.
    """
    spread = tree.spread(graph)
    _refuse_ignored(spread)
    if len(spread.stages) != table.num_stages:
        raise VisionError('VIS-CONFIG-1621', f'{len(spread.stages)} stages for a table of '
                          f'{table.num_stages}', where='strategy', why='each stage of the table '
                          'has ranks of its own', do='map() modules to as many groups of ranks')
    local = local_graph(graph, spread)
    owners = [module for module in local.modules if spread.layouts[module.name].ranks
              and not any(is_inside(module.name, other.name) and other.name != module.name
                          for other in local.modules if spread.layouts[other.name].ranks
                          == spread.layouts[module.name].ranks)]
    owners.sort(key=lambda each: stage_of(each.name, spread))
    ends = [sum(stage_of(each.name, spread) <= stage for each in owners)
            for stage in range(table.num_stages)]
    shares = spread.dp if spread.zero == 3 else 1
    names, ranges = [each.name for each in owners], list(zip([0, *ends], ends, strict=False))
    costs = stage_costs(local, names, ranges, table.rank_of, pricing, settings,
                        num_shares=shares, num_parts=spread.tp)
    program = from_actions(table, costs)
    if spread.dp > 1 and spread.zero == 0:
        trained = _weights(local, names, ranges)[1]
        program = with_all_reduces(program, table, spread, trained, pricing, settings)
    return with_optimizer(program, table, costs, pricing, settings, spread.dp * spread.tp)


def _refuse_ignored(spread: Spread) -> None:
    """What a stage's costs would leave out without a word."""
    for name, layout in spread.layouts.items():
        if layout.is_recomputed or layout.is_offloaded:
            verb = 'recompute' if layout.is_recomputed else 'offload'
            raise VisionError('VIS-CONFIG-1623', f'{verb}({layout.kept_region!r}) in a pipeline',
                              where='strategy', why='a stage is one task forward and one or two '
                              'backward; what it keeps between them is not moved or made again',
                              do=f'leave {verb}() out, or map all modules to the same ranks')
        if spread.zero in (1, 2):
            raise VisionError('VIS-CONFIG-1624', f'zero={spread.zero} on {name or "the model"!r} '
                              'in a pipeline', where='strategy', why='stages have their '
                              'parameters whole, with one all-reduce of gradients, or in shards',
                              do='shard(..., zero=3), or no shard() at all')


def with_all_reduces(program: Program, table: Table, spread: Spread, trained: Sequence[int],
                     pricing: Pricing, settings: Settings) -> Program:
    """The program with an all-reduce of each stage's gradients over the shares of the batch,
    behind the stage's last W or B.

    One for all gradients of a stage, not one a bucket, is our choice: a stage's last backward
    task is one node, so that buckets would all begin behind it as well.

    Args:
        trained: bytes of each stage's gradients on a rank.
    """
    nodes, buffers = list(program.nodes), dict(program.buffers)
    last = {node.stage: at for at, node in enumerate(nodes) if node.kind in (B, W)}
    for stage, at in sorted(last.items(), key=lambda each: each[1]):
        rank = table.rank_of[stage]
        # Parts of the features are neighbours in number: every tp-th rank of a stage has the same
        # part for another share of the batch.
        peers = spread.stages[stage][::spread.tp]
        nodes.append(Node(f'gradients of stage {stage}', ALL_REDUCE, (rank,), GRADIENT,
                          pricing.communicate(ALL_REDUCE, trained[stage], peers), after=(at,)))
        if settings.has_bucket_copies:
            buffers[f'buckets of stage {stage}'] = Buffer(rank, trained[stage], 'communication')
    return replace(program, nodes=tuple(nodes), buffers=buffers)


def _seconds(ops: Sequence[Op], pricing: Pricing, num_parts: int) -> float:
    """Of operators and of the collectives between them, which nothing hides inside a stage."""
    compute = [op for op in ops if op.kind != 'collective']
    waits = sum(pricing.communicate(op.name, op.bytes_moved, range(num_parts))
                for op in ops if op.kind == 'collective')
    return (pricing.compute(compute) if compute else 0.0) + waits


def piece_flops(graph: ModuleGraph, names: Sequence[str]) -> list[float]:
    """Of the forward pass, as stages are cut by them."""
    flops = [0.0] * len(names)
    for op, piece in zip(graph.ops, piece_of_ops(graph, names), strict=True):
        flops[piece] += op.flops if op.phase == FORWARD else 0.0
    return flops


def _weights(graph: ModuleGraph, names: Sequence[str], ranges: Sequence[tuple[int, int]],
             element_bytes: int | None = None) -> tuple[list[int], list[int]]:
    """Bytes of parameters of each stage, and of those that are trained; as they are, or with so
    many bytes a number."""
    weights, trained = [0] * len(ranges), [0] * len(ranges)
    for module in graph.modules:
        piece = next((n for n, name in enumerate(names) if is_inside(module.name, name)), None)
        if piece is None:
            assert not module.parameters, f'{module.name} is in no piece'
            continue
        stage = next(s for s, (a, b) in enumerate(ranges) if a <= piece < b)
        for each in module.parameters:
            size = each.num_elements * (element_bytes or each.element_bytes)
            weights[stage] += size
            trained[stage] += size if each.is_trained else 0
    return weights, trained


def _boundary_bytes(graph: ModuleGraph, names: Sequence[str], end: int) -> int:
    """Of what the piece before ``end`` sends on; of its last operator if nobody said it."""
    name = names[end - 1]
    made = [op.output_bytes for op in graph.ops_of(name, FORWARD)]
    return graph.module(name).output_bytes or (made[-1] if made else 0)


def with_optimizer(program: Program, table: Table, costs: Costs, pricing: Pricing,
                   settings: Settings, num_shares: int = 1) -> Program:
    """The program with each rank's optimizer step behind its last task and reduction.

    Args:
        num_shares: ranks of the run for each of the program.
    """
    nodes = list(program.nodes)
    states, moved, _ = OPTIMIZERS[settings.optimizer]
    for rank in range(table.num_ranks):
        mine = [at for at, node in enumerate(nodes) if rank in node.ranks]
        size = costs.static_bytes[rank] / (2 + states)
        op = Op(settings.optimizer, '', 'elementwise', 0.0, moved * size, phase=OPTIMIZER)
        ready = [max((at for at in mine if nodes[at].stream == stream), default=None)
                 for stream in ('compute', GRADIENT)]
        nodes.append(Node('optimizer', 'optimizer', (rank,), seconds=pricing.compute([op]),
                          after=tuple(at for at in ready if at is not None)))
    return replace(program, nodes=tuple(nodes), replicas=num_shares)
