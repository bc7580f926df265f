"""A config on a cluster: how long a step takes, whether it fits, and what stands behind it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vision.common.core.amounts import format_bytes, parse_budget
from vision.common.core.errors import VisionError
from vision.memory.core.plan import Link, Plan
from vision.pipeline.core.cut import cut
from vision.pipeline.core.tasks import Costs
from vision.simulator.core.class_rows import with_class_rows
from vision.simulator.core.cluster import Cluster
from vision.simulator.core.compile import Settings, compile_strategy
from vision.simulator.core.engine import run
from vision.simulator.core.graph import ModuleGraph, larger_batch
from vision.simulator.core.memory import Allocator, Verdict
from vision.simulator.core.memory_plan import MemoryOptions, with_memory_plan
from vision.simulator.core.outcome import Outcome
from vision.simulator.core.priced import ClusterPricing
from vision.simulator.core.pricing import DEFAULT_INTERVAL, Prices
from vision.simulator.core.program import Program
from vision.simulator.core.stage_parameters import Grid
from vision.simulator.core.stages import (
    Stages,
    piece_flops,
    stage_costs,
    step_of_stages,
)
from vision.simulator.mm.configs import Configured

NUM_TOP_COSTS = 10
Plans = dict[MemoryOptions, tuple[ModuleGraph, Plan]]


@dataclass(frozen=True)
class Predicted:
    """One step of all ranks.

    Args:
        num_ranks: of the run; the program may have fewer that stand for all.
        samples: of all ranks in a step.
        step_seconds: with what a step costs outside of its model; ``interval`` is its half width
            as a share.
        flops: of model and backward pass, of all ranks, without what is done again.
        costs: seconds by (module, operator) on a rank.
    """

    outcome: Outcome
    num_ranks: int
    samples: int
    step_seconds: float
    interval: float
    flops: float
    peak_flops: float
    verdict: Verdict
    costs: Counter
    notes: dict[str, Any]
    assumed: tuple[str, ...]
    text: str = ''

    @property
    def samples_per_second(self) -> float:
        """Rate of all ranks together."""
        return self.samples / self.step_seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: share of the peak of all devices, 0 to 1, without what is done
        again."""
        return self.flops / (self.step_seconds * self.peak_flops * self.num_ranks)

    def dearest(self) -> list[tuple[tuple[str, str], float]]:
        """((module, operator), seconds), layers that differ in a number taken together."""
        together: Counter[tuple[str, str]] = Counter()
        for (module, name), seconds in self.costs.items():
            together[re.sub(r'\b\d+\b', '*', module), name] += seconds
        return together.most_common(NUM_TOP_COSTS)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; seconds and bytes."""
        outcome = self.outcome
        top = self.dearest()
        low, high = (self.step_seconds * (1 + sign * self.interval) for sign in (-1, 1))
        return dict(
            step_seconds=self.step_seconds, interval_seconds=[low, high],
            samples_per_step=self.samples, samples_per_second=self.samples_per_second,
            mfu=self.mfu, num_ranks=self.num_ranks,
            exposed_communication_seconds=max(outcome.exposed), bubble=outcome.bubble,
            memory=dict(state=self.verdict.state, needed_bytes=self.verdict.needed_bytes,
                        capacity_bytes=self.verdict.capacity_bytes, margin=self.verdict.margin,
                        rank=self.verdict.peak.rank, categories=self.verdict.peak.categories,
                        largest=[list(each) for each in self.verdict.peak.culprits],
                        peak_bytes_by_rank=[outcome.peak(rank).num_bytes for rank in range(
                            outcome.program.num_ranks)]),
            top_costs=[dict(module=module, operator=name, seconds=seconds)
                       for (module, name), seconds in top],
            sources=self.notes, assumed=list(self.assumed), strategy=self.text)


def predict(configured: Configured, cluster: Cluster, *, tf32: bool = False,
            plans: Plans | None = None) -> Predicted:
    """Compile, price and run one step.

    Args:
        plans: of activations, where several strategies of one graph are predicted: what is there
            is not planned again.

    Raises:
        VisionError: of the strategy (1620 to 1625), of the cluster (1633: it has too few devices),
            of a ZeroPPStrategy (1636 its memory, 1637 its cut; 1503, 1529 nothing fits).
    """
    pricing = ClusterPricing(Prices(cluster, tf32=tf32))
    if configured.pipeline:
        program, ranks, shares = _pipeline(configured, pricing)
        micro = int(configured.pipeline['num_microbatches'])
    else:
        settings = replace(configured.settings, slowdown=cluster.overheads.slowdown)
        graph = _planned(configured, pricing, {} if plans is None else plans)
        if configured.class_rows:
            graph = with_class_rows(graph, configured.class_rows, configured.tree.num_ranks or 1)
        program = compile_strategy(graph, configured.tree, pricing, settings)
        ranks = shares = program.replicas
        micro = settings.num_microbatches
    available = cluster.num_nodes * cluster.gpus_per_node
    if ranks > available:
        raise VisionError('VIS-CONFIG-1633', f'{ranks} ranks on {cluster.name}, which has '
                          f'{available} devices', where='cluster',
                          why=f'{cluster.num_nodes} nodes of {cluster.gpus_per_node}',
                          do='fewer --gpus, or more nodes in the file')
    outcome = run(program)
    over = cluster.overheads
    allocator = Allocator(fixed_bytes=round(over.context_bytes),
                          fragmentation=over.fragmentation)
    seconds = (outcome.makespan + over.step) * pricing.prices.waiting(ranks)
    graph = configured.graph
    return Predicted(
        outcome, ranks, graph.batch_size * micro * shares, seconds, DEFAULT_INTERVAL,
        graph.flops() * micro * shares, _peak(graph, pricing.prices),
        outcome.verdict(round(cluster.device.memory_bytes), allocator), pricing.costs,
        pricing.prices.notes.to_dict(), tuple(configured.notes))


def _planned(configured: Configured, pricing: ClusterPricing, plans: Plans) -> ModuleGraph:
    """The graph under the config's budget of activations, if it has one."""
    options, prices = configured.memory, pricing.prices
    if options is None:
        return configured.graph
    link = Link(1.0, 1.0, overlaps=True)  # not used
    if options.actions != 'recompute':
        host = prices.cluster.link('host')
        link = Link(host.rate_per_device, host.rate_per_device, overlaps=True)
    if options not in plans:
        plans[options] = with_memory_plan(configured.graph, options, prices.device_seconds, link)
    graph, plan = plans[options]
    if not plan.fits:
        prices.notes.say('assumed', 'no plan found is within the budget of activations: '
                         f'{format_bytes(plan.peak_bytes)} is the least')
    return graph


def _peak(graph: ModuleGraph, prices: Prices) -> float:
    """Of the dtype that most of the work has."""
    work: Counter[str] = Counter()
    for op in graph.ops:
        work[prices.dtype_of(op)] += op.flops
    return prices.cluster.device.flops[max(work, key=work.get)]


def _pipeline(configured: Configured, pricing: ClusterPricing) -> tuple[Program, int, int]:
    """(program, ranks of the run, shares of the data)."""
    from vision.pipeline.mm.plan import ONE_CHUNK, V_SHAPED, Planner
    options, graph, names = configured.pipeline, configured.graph, configured.stages
    pp, dp = int(options['pp']), int(options.get('dp', 1))
    schedule, unit = options.get('schedule', 'auto'), options.get('unit', 'auto')
    if schedule == 'auto' and unit != 'auto':
        schedule = 'zeropp'
    chunks = options.get('chunks') or (
        1 if schedule in ONE_CHUNK else 4 if dp > 1 and schedule not in V_SHAPED else 2)
    planner = Planner(schedule, pp, chunks, int(options['num_microbatches']), unit,
                      _budget(options.get('memory')), int(options.get('active', 2)),
                      options.get('reduce_grad', 'per_unit'), is_sharded=dp > 1)
    ranges = _ranges(options.get('cut', 'counted'), graph, names, pp * chunks)
    settings: Settings = configured.settings

    def stages_of(rank_of: tuple[int, ...], prices: ClusterPricing) -> Stages:
        return stage_costs(graph, names, ranges, Grid(rank_of, dp), prices, settings)

    def costs_of(rank_of: tuple[int, ...]) -> Costs:
        # What the planner tries is not in the list of what is dear.
        return stages_of(rank_of, ClusterPricing(pricing.prices)).costs

    table = planner.make(costs_of)[0]
    program = step_of_stages(stages_of(table.rank_of, pricing), table, Grid(table.rank_of, dp),
                             pricing, settings)
    return program, pp * dp, dp


def _budget(memory: Any) -> int | None:
    """Bytes of a ZeroPPStrategy's ``memory``."""
    if memory is None:
        return None
    amount = parse_budget(memory)
    if amount.bytes is None:
        raise VisionError('VIS-CONFIG-1636', f'memory={memory!r}', where='strategy.memory',
                          why='a share of a peak that no run has measured is no number of bytes',
                          do="give bytes with a unit, such as '60GB'")
    return amount.bytes


def _ranges(how: Any, graph: ModuleGraph, names: Sequence[str],
            num_stages: int) -> list[tuple[int, int]]:
    """Pieces (begin, end) of each stage, as a ZeroPPStrategy's ``cut`` says."""
    if how in ('counted', 'measured'):  # the second is among the assumptions
        return cut(piece_flops(graph, names), num_stages)
    is_list = isinstance(how, Sequence) and not isinstance(how, str)
    if not is_list or len(how) != num_stages or sum(how) != len(names) or min(how) < 1:
        raise VisionError('VIS-CONFIG-1637', f'cut={how!r} for {len(names)} pieces and '
                          f'{num_stages} stages', where='strategy.cut',
                          do=f"'counted', 'measured', or {num_stages} numbers from 1 on, "
                          f'{len(names)} in all')
    ends = [sum(how[:stage + 1]) for stage in range(num_stages)]
    return list(zip([0, *ends], ends, strict=False))


def largest_batch(configured: Configured, cluster: Cluster, *, limit: int = 65_536,
                  tf32: bool = False) -> tuple[int, Predicted]:
    """(samples of a rank's step, prediction): the most that fits with at least 5 % to spare.

    The graph is grown, not traced again, up to ``limit`` samples. A pipeline keeps its number of
    micro-batches.

    Raises:
        VisionError: VIS-CONFIG-1634 not even one sample fits.
    """
    traced = configured.graph.batch_size or 1

    def at(samples: int) -> Predicted:
        grown = larger_batch(configured.graph, samples / traced)
        changed = replace(configured, graph=grown, batch_size=samples)
        return predict(changed, cluster, tf32=tf32)

    low, high = 0, 1
    best: Predicted | None = None
    while high <= limit:
        trial = at(high)
        if trial.verdict.state != 'fits':
            break
        low, high, best = high, high * 2, trial
    if best is None:
        raise VisionError('VIS-CONFIG-1634', 'not even one sample fits', where='--batch auto',
                          why=f'it takes {format_bytes(trial.verdict.needed_bytes)} of '
                          f'{format_bytes(trial.verdict.capacity_bytes)}',
                          do='shard the model (FSDP2Strategy), recompute, or take other devices')
    while high - low > max(1, low // 64):
        middle = (low + high) // 2
        trial = at(middle)
        if trial.verdict.state == 'fits':
            low, best = middle, trial
        else:
            high = middle
    parts = int(configured.pipeline['num_microbatches']) if configured.pipeline else 1
    return low * parts, best
