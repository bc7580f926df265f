"""Which stage of a pipeline has which parameters, on which ranks, and what they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vision.simulator.core.compile import OPTIMIZERS, Settings
from vision.simulator.core.graph import ModuleGraph, Parameter, is_inside
from vision.simulator.core.stage_nodes import Reduced, Tie


@dataclass(frozen=True)
class Grid:
    """Ranks of stages, and what they share.

    Args:
        rank_of: pipeline rank of each stage.
        num_shares: parts of the batch, over which ``zero`` shards: 1 states of the optimizer, 2
            and gradients, 3 and parameters; 0 nothing.
        num_parts: ranks over which features are split.
        stages: ranks of the run by stage, those with parts of the same features next to each
            other; None as ``ZeroPPStrategy`` numbers them.
        batch_of: parts of the batch by parameter; None: ``num_shares`` for all.
    """

    rank_of: Sequence[int]
    num_shares: int = 1
    num_parts: int = 1
    zero: int = 3
    stages: Sequence[Sequence[int]] | None = None
    batch_of: Mapping[str, int] | None = None

    @property
    def ranks(self) -> list[Sequence[int]]:
        """Ranks of the run, by stage."""
        size = self.num_shares * self.num_parts
        return list(self.stages or [range(rank * size, (rank + 1) * size)
                                    for rank in self.rank_of])

    @property
    def peers(self) -> list[Sequence[int]]:
        """Of each stage the ranks that have the first part of the features, for all parts of the
        batch."""
        return [each[::self.num_parts] for each in self.ranks]

    @property
    def is_sharded(self) -> bool:
        """Whether parameters are gathered before they are used."""
        return self.num_shares > 1 and self.zero == 3


def held_by_stages(graph: ModuleGraph, names: Sequence[str], stage_of_piece: Sequence[int]
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


def owned_by_stages(held: Sequence[dict[str, Parameter]], rank_of: Sequence[int]
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


def reduced_together(own: Sequence[Parameter], ranks: Sequence[int], grid: Grid
                     ) -> tuple[Reduced, ...]:
    """Gradients of a stage, those together that the same ranks reduce."""
    sizes: dict[int, int] = {}
    for each in own:
        batch = grid.batch_of[each.name] if grid.batch_of else grid.num_shares
        if batch > 1 and each.is_trained:
            sizes[batch] = sizes.get(batch, 0) + each.num_bytes
    return tuple(Reduced(size, tuple(ranks[::len(ranks) // batch]))
                 for batch, size in sorted(sizes.items()))


def bytes_of(parameters: dict[str, Parameter] | Sequence[Parameter],
             element_bytes: int | None = None, *, is_trained: bool = False) -> int:
    """Memory of parameters, as they are or with so many bytes a number; of those trained alone."""
    each_one = parameters.values() if isinstance(parameters, dict) else parameters
    return sum(each.num_elements * (element_bytes or each.element_bytes) for each in each_one
               if each.is_trained or not is_trained)


def static_bytes_of(own: Sequence[Sequence[Parameter]], settings: Settings, grid: Grid
                    ) -> tuple[int, ...]:
    """Of parameters, gradients and states of the optimizer on a rank, by pipeline rank; what is
    scattered (zero=2) is no part of it until it is made."""
    states, num = OPTIMIZERS[settings.optimizer][0], max(grid.rank_of) + 1
    weights, trained = [0] * num, [0] * num
    for rank, each in zip(grid.rank_of, own, strict=True):
        weights[rank] += bytes_of(each)
        trained[rank] += bytes_of(each, is_trained=True)
    if grid.zero == 3:
        return tuple((whole + (1 + states) * each) // grid.num_shares
                     for whole, each in zip(weights, trained, strict=True))
    shares = grid.num_shares if grid.zero else 1
    return tuple(whole + (each if grid.zero < 2 else 0) - (-states * each // shares)
                 for whole, each in zip(weights, trained, strict=True))
