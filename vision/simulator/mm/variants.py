"""Strategies of this codebase for one config, tried until the time is over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from vision.common.core.errors import VisionError
from vision.simulator.core.cluster import Cluster
from vision.simulator.core.graph import Module, ModuleGraph, larger_batch
from vision.simulator.core.memory_plan import MemoryOptions
from vision.simulator.core.search import explore, pareto
from vision.simulator.core.strategy import StrategyTree
from vision.simulator.mm.configs import Configured
from vision.simulator.mm.prediction import Plans, Predicted, predict

BUDGETS = (0.6, 0.4)  # of the peak of a step's activations and gradients


@dataclass(frozen=True)
class Variant:
    """A strategy with the text that says it in a config; empty where none can say it."""

    name: str
    configured: Configured
    text: str


@dataclass
class Found:
    """What a search over the strategies of this codebase ended with.

    Args:
        tried: predictions by name.
        refused: why others were not predicted, by name; the end of the time is a reason too.
    """

    tried: dict[str, Predicted] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the fastest that fits; of the smallest if none fits."""
        usable = {name: each for name, each in self.tried.items()
                  if each.verdict.state != 'out of memory'}
        if usable:
            return min(usable, key=lambda each: usable[each].step_seconds)
        return min(self.tried, key=lambda each: self.tried[each].verdict.needed_bytes)

    @property
    def best(self) -> Predicted:
        """The prediction of the chosen strategy."""
        return self.tried[self.name]

    @property
    def front(self) -> set[str]:
        """Names of strategies that no other beats in both seconds of a step and bytes needed."""
        return {name for name, _ in pareto(
            list(self.tried.items()),
            lambda each: (each.step_seconds, each.verdict.needed_bytes))}


def search(configured: Configured, cluster: Cluster, *, budget_seconds: float = 60.0,
           tf32: bool = False) -> Found:
    """Every strategy of this codebase with the config's ranks and samples, until the time is over.

    Tensor parallel is left out: nothing here trains with it. What did not fit into the budget is
    in ``refused``.

    Raises:
        VisionError: VIS-CONFIG-1635, nothing can be simulated; VIS-CONFIG-1638, the config names a
            pipeline.
    """
    if configured.pipeline is not None:
        raise VisionError('VIS-CONFIG-1638', '--search of a config that names a pipeline',
                          where='strategy', why='its batch is that of micro-batches already',
                          do='give the plain config and --gpus N: pipelines are among what is '
                          'tried')
    refused: dict[str, str] = {}
    plans: Plans = {}

    def play(variant: Variant) -> Predicted | None:
        try:
            return replace(predict(variant.configured, cluster, tf32=tf32, plans=plans),
                           text=variant.text)
        except VisionError as error:
            refused[variant.name] = f'{error.code} {error.what}'
            return None

    tour = explore(variants(configured), play, budget_s=budget_seconds,
                   seconds_of=lambda each: each.step_seconds)
    refused |= {variant.name: 'the time of the search was over' for variant in tour.left}
    if not tour.played:
        raise VisionError('VIS-CONFIG-1635', 'no strategy can be simulated', where='--search',
                          why='; '.join(refused.values())[:300],
                          do='choose another number of --gpus')
    return Found({variant.name: result for variant, result in tour.played}, refused)


def variants(configured: Configured) -> Iterator[Variant]:
    """Whole on each rank, in shards, in stages; those that are likely to be fast first."""
    ranks = configured.tree.num_ranks or 1
    dtype = configured.param_dtype
    blocks = repeated_blocks(configured.graph)
    plain = replace(configured, pipeline=None)
    if ranks == 1:
        alone = Variant('one rank', replace(plain, tree=StrategyTree(1)), '')
        yield alone
        yield from under_budgets(alone)
        return
    tree = StrategyTree(ranks).split('', 'batch', ranks)
    whole = Variant('DDP', replace(plain, tree=tree), _text(dict(type='DDPStrategy'), dtype))
    yield whole
    classes = sorted({module.type for module in blocks})
    tree = StrategyTree(ranks).split('', 'batch', ranks).shard('', zero=3)
    shards = Variant('FSDP2, all at once', replace(plain, tree=tree),
                     _text(dict(type='FSDP2Strategy'), dtype))
    yield shards
    if blocks:
        tree = StrategyTree(ranks).split('', 'batch', ranks).shard('', zero=3)
        for module in blocks:
            tree.shard(module.name, zero=3)
        shards = Variant(f'FSDP2, {", ".join(classes)}', replace(plain, tree=tree),
                         _text(dict(type='FSDP2Strategy', wrap=classes), dtype))
        yield shards
    yield from _pipelines(configured, ranks)
    yield from under_budgets(whole)
    yield from under_budgets(shards)


def under_budgets(variant: Variant) -> Iterator[Variant]:
    """The same with less memory for activations, by recomputation alone and with copies to host
    memory; the config's own budget stays what it is."""
    if variant.configured.memory is not None:
        return
    for ratio in BUDGETS:
        for actions in ('recompute', 'both'):
            options = dict(budget=ratio, actions=actions)
            yield Variant(
                f'{variant.name}, {100 * ratio:.0f} % {actions}',
                replace(variant.configured, memory=MemoryOptions(ratio, actions=actions)),
                f'{variant.text}\nactivation_memory = {options!r}'.lstrip())


def _pipelines(configured: Configured, ranks: int) -> Iterator[Variant]:
    if not configured.stages:
        return
    graph, settings, dtype = configured.graph, configured.settings, configured.param_dtype
    total = configured.batch_size * ranks
    for pp in (size for size in range(2, ranks + 1) if ranks % size == 0):
        dp = ranks // pp
        for micro in (2 * pp, 4 * pp):
            if total // dp % micro:
                continue
            samples = total // dp // micro
            options = dict(type='ZeroPPStrategy', pp=pp, dp=dp, num_microbatches=micro)
            chunks = min(4 if dp > 1 else 2, len(configured.stages) // pp)
            if not chunks:
                continue
            options['chunks'] = chunks
            grown = larger_batch(graph, samples / (graph.batch_size or 1))
            yield Variant(f'ZeroPP pp={pp} dp={dp} M={micro}', replace(
                configured, graph=grown, memory=None, pipeline=options,
                batch_size=total // dp,
                settings=replace(settings, num_microbatches=1)),
                f'{_text(options, dtype)}\ntrain_dataloader = dict(batch_size={total // dp})')


def _text(strategy: dict, dtype: str | None) -> str:
    """Lines of a config; only this runner has strategies. Where nothing is gathered, mixed
    precision is the optimizer wrapper's."""
    is_gathered = strategy['type'] == 'FSDP2Strategy' or strategy.get('dp', 1) > 1
    if dtype and is_gathered:
        strategy = dict(strategy, param_dtype=dtype)
    lines = ["runner_type = 'ExactFlexibleRunner'", f'strategy = {strategy!r}']
    if dtype and not is_gathered:
        lines.append(f"optim_wrapper = dict(type='AmpOptimWrapper', dtype={dtype!r})")
    return '\n'.join(lines)


def repeated_blocks(graph: ModuleGraph) -> list[Module]:
    """Modules of the class, outermost first, that occurs most among siblings and holds most of the
    parameters; none if no class holds half of them."""
    groups: dict[tuple[str, str], list[Module]] = {}
    for module in graph.modules:
        parent = module.name.rpartition('.')[0]
        if module.name and not module.parameters:
            groups.setdefault((parent, module.type), []).append(module)
    sizes: Counter[tuple[str, str]] = Counter()
    for key, members in groups.items():
        if len(members) > 1:
            sizes[key] = sum(each.parameters_bytes for member in members
                             for each in graph.inside(member.name))
    if not sizes:
        return []
    key, size = max(sizes.items(), key=lambda each: (each[1], -each[0][0].count('.')))
    return groups[key] if 2 * size > graph.parameters_bytes else []
