"""How a model is spread over ranks, said on names of its modules.

After the strategy tree of Proteus (Duan et al., arXiv:2306.02267): it mirrors the nesting of the
modules, and what a module does not say it inherits. Layouts of single tensors are not written, as
they are there; ZeRO, recompute and offload have verbs of their own instead (our choice).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from vision.common.core.errors import VisionError
from vision.simulator.core.graph import Module, ModuleGraph

BATCH, SEQUENCE, OUT, IN, HEADS = 'batch', 'sequence', 'out', 'in', 'heads'
DIMS = (BATCH, SEQUENCE, OUT, IN, HEADS)


@dataclass(frozen=True)
class Layout:
    """Of one module, everything inherited that it does not say itself.

    Args:
        batch: parts of the batch, each with data of its own (data parallel).
        sequence: parts of the sequence, where tensors are not split by features.
        dim, parts: of the features: 'out' or 'in' of a linear layer, 'heads' of all inside a
            module that begins and ends with whole features.
        ranks: that have it; None for all.
        zero: what is sharded over the parts of the batch: 1 optimizer states, 2 and gradients, 3
            and parameters.
        is_recomputed, is_offloaded: what it keeps for backward is made again, is in host memory.
        unit: module whose parameters are gathered together with its own (zero=3).
        region: module that said 'heads', or that recomputes or offloads.
    """

    batch: int = 1
    sequence: int = 1
    dim: str = ''
    parts: int = 1
    ranks: tuple[int, ...] | None = None
    zero: int = 0
    is_recomputed: bool = False
    is_offloaded: bool = False
    unit: str = ''
    region: str = ''
    kept_region: str = ''


@dataclass(frozen=True)
class Spread:
    """A strategy worked out for one model.

    Args:
        layouts: by module name.
        dp, tp: parts of the batch, and of features or sequence; their product is the size of a
            stage.
        stages: ranks of each pipeline stage, in order of the model.
        zero: 0 to 3.
        units: modules that are gathered as one (zero=3), in order of first use, '' last.
        is_mixed: modules differ in parts of the batch or of the features; ``dp`` is the most, and
            what a module leaves over of a stage's ranks does the same as others.
    """

    layouts: dict[str, Layout]
    dp: int
    tp: int
    stages: tuple[tuple[int, ...], ...]
    zero: int
    units: tuple[str, ...]
    is_mixed: bool = False

    def sharing(self, stage: int, batch: int) -> tuple[int, ...]:
        """Ranks of a stage that have the same part of a module's parameters as its first rank,
        for each of ``batch`` parts of the batch."""
        ranks = self.stages[stage]
        return ranks[::len(ranks) // batch]

    @property
    def num_ranks(self) -> int:
        """Ranks of all stages."""
        return self.dp * self.tp * len(self.stages)


@dataclass
class StrategyTree:
    """Verbs take a dotted module name, '' for the model, or a pattern ('layers.*'; a star stands
    for one part of a name). Later ones win over earlier ones on the same module.

    Args:
        num_ranks: of the run; None: as many as the verbs need.
    Example::

        tree = StrategyTree(16).split('', 'batch', 4).shard('', zero=3)
        tree.split('layers.*.attention', 'heads', 4).split('layers.*.mlp.up', 'out', 4)
        tree.split('layers.*.mlp.down', 'in', 4).recompute('layers.*')

    Modules may differ. Eight parts of the batch, and a classifier with all of it on each rank and
    an eighth of its outputs::

        tree = StrategyTree(8).split('', 'batch', 8)
        tree.split('head', 'batch', 1).split('head.fc', 'out', 8)
    """

    num_ranks: int | None = None
    rules: list[tuple[str, dict]] = field(default_factory=list)

    def split(self, name: str, dim: str, parts: int) -> StrategyTree:
        """Cut the work along a dimension: 'batch' of the model, or of a module that has it in
        other parts; 'out' or 'in' features of a linear layer; 'heads' of a module as a whole, such
        as attention or an MLP; 'sequence' of what lies between those.

        Raises:
            VisionError: VIS-CONFIG-1621, no such dimension, or no whole number of parts from 1 on.
        """
        if dim not in DIMS:
            raise _senseless(f'split({name!r}, {dim!r}): no such dimension',
                             do=f'one of {", ".join(DIMS)}')
        if not isinstance(parts, int) or isinstance(parts, bool) or parts < 1:
            raise _senseless(f'split({name!r}, {dim!r}, {parts!r})',
                             do='give a whole number of parts from 1 on')
        if dim in (BATCH, SEQUENCE):
            return self._add(name, {dim: parts})
        return self._add(name, dict(dim=dim, parts=parts, region=...))

    def map(self, name: str, ranks: Sequence[int]) -> StrategyTree:
        """Put a module on these ranks; modules on other ranks are other stages of a pipeline."""
        return self._add(name, dict(ranks=tuple(ranks)))

    def shard(self, name: str, *, zero: int) -> StrategyTree:
        """Over the parts of the batch: 1 states of the optimizer, 2 and gradients, 3 and
        parameters, which are gathered module by module as the verb names them.

        Raises:
            VisionError: VIS-CONFIG-1621, ``zero`` is not 1, 2 or 3.
        """
        if zero not in (1, 2, 3):
            raise _senseless(f'shard({name!r}, zero={zero!r})', do='zero is 1, 2 or 3')
        return self._add(name, dict(zero=zero, unit=...))

    def recompute(self, name: str) -> StrategyTree:
        """Keep the module's inputs alone, and run its forward again before its backward."""
        return self._add(name, dict(is_recomputed=True, is_offloaded=False, kept_region=...))

    def offload(self, name: str) -> StrategyTree:
        """Have in host memory what the module keeps from forward to backward."""
        return self._add(name, dict(is_offloaded=True, is_recomputed=False, kept_region=...))

    def _add(self, name: str, values: dict) -> StrategyTree:
        self.rules.append((name, values))
        return self

    def spread(self, graph: ModuleGraph) -> Spread:
        """The layout of every module.

        Raises:
            VisionError: VIS-CONFIG-1620, VIS-CONFIG-1623, VIS-CONFIG-1624, VIS-CONFIG-1625
                something does not divide, VIS-CONFIG-1621 verbs that do not go together,
                VIS-CONFIG-1622 a name that is no module's.
        """
        for pattern, _ in self.rules:
            if not any(_matches(each.name, pattern) for each in graph.modules):
                names = ', '.join(each.name for each in graph.modules[:6] if each.name)
                raise VisionError('VIS-CONFIG-1622', f'the model has no module {pattern!r}',
                                  where='strategy', why=f'modules are called {names}, ...',
                                  do='name one as model.named_modules() does, or a pattern')
        layouts: dict[str, Layout] = {}
        for module in sorted(graph.modules, key=lambda each: each.name.count('.') + bool(
                each.name)):
            layout = _parent(module.name, layouts)
            for pattern, values in self.rules:
                if _matches(module.name, pattern):
                    layout = replace(layout, **{key: module.name if value is ... else value
                                                for key, value in values.items()})
            layouts[module.name] = layout
        return _checked(graph, layouts, self.num_ranks)


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split('.'), pattern.split('.')
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _parent(name: str, layouts: dict[str, Layout]) -> Layout:
    while name:
        name = name.rpartition('.')[0]
        if name in layouts:
            return layouts[name]
    return layouts.get('', Layout()) if name in layouts else Layout()


def _checked(graph: ModuleGraph, layouts: dict[str, Layout], num_ranks: int | None) -> Spread:
    def one(what: str, values: set) -> int:
        if len(values) > 1:
            raise _senseless(f'{what} differs between modules: {sorted(values)}',
                             why='ranks form one grid of stages, shares of the batch and parts of '
                             'the features', do=f'give one {what}')
        return next(iter(values), 1)

    used = [layouts[each.name] for each in graph.modules]
    zero = one('zero', {layouts[module.name].zero for module in graph.modules
                        if module.parameters})
    batches = {each.batch for each in used}
    degrees = {each.parts for each in used if each.parts > 1}
    is_mixed = len(batches) > 1 or len(degrees) > 1
    if is_mixed:
        dp, tp = _mixed_degrees(used, zero)
    else:
        dp = next(iter(batches), 1)
        tp = one('number of parts of features and sequence',
                 degrees | {each.sequence for each in used if each.sequence > 1})
    for module in graph.modules:
        _refuse_uneven(module, layouts[module.name])
        _refuse_uneven_ties(module, graph, layouts)
    stages = _stages(graph, layouts, dp * tp)
    needed = dp * tp * len(stages)
    if num_ranks not in (None, needed):
        raise VisionError('VIS-CONFIG-1620', f'{dp} parts of the batch, {tp} of the features and '
                          f'{len(stages)} stages need {needed} ranks, there are {num_ranks}',
                          where='strategy', do='choose parts whose product is the number of ranks')
    if zero and dp == 1:
        raise _senseless(f'zero={zero} with one part of the batch',
                         why='there is nobody to share with',
                         do="add split('', 'batch', N), or leave shard() out")
    names = {layouts[each.name].unit for each in graph.modules}
    units = [each.name for each in graph.modules if each.name in names and each.name]
    return Spread(layouts, dp, tp, stages, zero, (*units, '') if zero == 3 else (), is_mixed)


def _mixed_degrees(layouts: Sequence[Layout], zero: int) -> tuple[int, int]:
    """(most parts of the batch, ranks for each of them) where modules differ."""
    if zero or any(each.sequence > 1 for each in layouts):
        verb = f'shard(zero={zero})' if zero else "split('sequence')"
        raise _senseless(f'{verb}, and modules that differ in their parts of the batch or of the '
                         'features', why='ranks that share would differ from module to module',
                         do='give all modules as many parts, or leave it out')
    degrees = sorted({each.batch * each.parts for each in layouts})
    size, dp = degrees[-1], max(each.batch for each in layouts)
    for degree in (*degrees, dp):
        if size % degree:
            raise VisionError('VIS-CONFIG-1624', f'modules in {degree} parts and others in {size}',
                              where='strategy', why=f'{size} / {degree} leaves {size % degree}; '
                              'a module has an equal number of ranks for each of its parts',
                              do='let the parts of all modules divide those of the most')
    return dp, size // dp


def _refuse_uneven(module: Module, layout: Layout) -> None:
    if layout.parts == 1 or not module.parameters:
        return
    if layout.dim in (OUT, IN) and not any(len(each.shape) == 2 for each in module.parameters):
        raise _senseless(f'{module.type} {module.name!r} is split by {layout.dim!r} features',
                         why='linear layers and embeddings are, which have one matrix',
                         do="name linear layers, or split a module that holds them by 'heads'")
    for each in module.parameters:
        if len(each.shape) == 2:
            # A linear layer's matrix is (out, in), an embedding's (in, out).
            outs, ins = each.shape if module.type != 'Embedding' else each.shape[::-1]
            if layout.dim in (OUT, IN):
                _refuse_size(outs if layout.dim == OUT else ins, layout, each.name)
            if layout.dim == HEADS and all(size % layout.parts for size in each.shape):
                _refuse_size(each.shape[0], layout, each.name)


def cut_axis(module: Module, layout: Layout, shape: Sequence[int]) -> int | None:
    """Along which a module's parameter is divided by its features; None if it is whole on each
    rank: a bias that is added once, behind the sum of partial results."""
    if layout.parts == 1 or len(shape) < 2 and layout.dim != OUT:
        return None
    if layout.dim == HEADS and len(shape) == 2 and shape[0] % layout.parts:
        return 1
    # A linear layer's matrix is (out, in), an embedding's (in, out).
    return int((layout.dim == IN) != (module.type == 'Embedding')) if len(shape) > 1 else 0


def _refuse_uneven_ties(module: Module, graph: ModuleGraph, layouts: dict[str, Layout]) -> None:
    """A rank has one tensor, whoever uses it."""
    for each in module.parameters:
        own = cut_axis(module, layouts[module.name], each.shape)
        for name in each.shared_with:
            other = graph.by_name.get(name)
            if other is not None and cut_axis(other, layouts[name], each.shape) != own:
                raise _senseless(f'{each.name} is cut in one way for {module.name!r} and in '
                                 f'another for {name!r}', why='both use the same tensor',
                                 do="split an embedding by 'in' where its head is split by "
                                 "'out', or none of both")


def _refuse_size(size: int, layout: Layout, name: str) -> None:
    if size % layout.parts:
        divisors = [n for n in range(1, min(size, 64) + 1) if size % n == 0]
        raise VisionError('VIS-CONFIG-1623', f'{layout.parts} parts of {size} features of {name}',
                          where='strategy', why=f'{size} / {layout.parts} leaves '
                          f'{size % layout.parts}', do=f'take one of {divisors}')


def _stages(graph: ModuleGraph, layouts: dict[str, Layout], size: int
            ) -> tuple[tuple[int, ...], ...]:
    tied = {name for each in graph.parameters for name in each.shared_with}
    users = [module for module in graph.modules if module.parameters or module.name in tied]
    stages: list[tuple[int, ...]] = []
    for module in users:
        ranks = layouts[module.name].ranks
        if ranks is None or ranks in stages:
            continue
        if len(ranks) != size:
            raise VisionError('VIS-CONFIG-1625', f'map({module.name!r}) names {len(ranks)} ranks',
                              where='strategy', why=f'each stage has {size}: parts of the batch '
                              'times parts of the features', do=f'name {size} ranks')
        stages.append(ranks)
    if not stages:
        return (tuple(range(size)),)
    everywhere = [rank for ranks in stages for rank in ranks]
    if len(set(everywhere)) != len(everywhere):
        raise _senseless('a rank is in two stages',
                         why='several stages of a rank come from an action table',
                         do='map to ranks that do not overlap, and give a table')
    for module in users:
        if layouts[module.name].ranks is None:
            raise _senseless(f'{module.name!r} is mapped to no rank',
                             do='map every module that has parameters')
    return tuple(stages)


def _senseless(what: str, *, do: str, why: str = '') -> VisionError:
    """VIS-CONFIG-1621: verbs whose arguments mean nothing, or that do not go together."""
    return VisionError('VIS-CONFIG-1621', what, where='strategy', why=why, do=do)


def stage_of(name: str, spread: Spread) -> int:
    """Stage of a module; of one without ranks of its own the stage of the modules around it."""
    ranks = spread.layouts[name].ranks
    return spread.stages.index(ranks) if ranks in spread.stages else 0
