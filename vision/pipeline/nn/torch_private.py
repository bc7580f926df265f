"""Names of torch without a promise that ``vision.pipeline`` uses; here and only here.

Their contract is tested in ``tests/pipeline/test_nn_torch_private.py``: a torch that changes one of
them fails there, and not in the middle of a training.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch

from vision.common.core.errors import VisionError
from vision.pipeline.core.tasks import Action, Table, looped, v_shaped

try:
    from torch.distributed.pipelining import schedules
    from torch.distributed.pipelining.schedules import _Action as TorchAction
    from torch.distributed.pipelining.schedules import _ComputationType as Kind
except ImportError as error:
    raise ImportError(f'written for torch 2.13, found {torch.__version__}: update '
                      'vision/pipeline/nn/torch_private.py and its contract test') from error

_GENERATORS = {'interleaved-zero-bubble': schedules.ScheduleInterleavedZeroBubble,
               'zbv': schedules.ScheduleZBVZeroBubble,
               'dualpipev': schedules.ScheduleDualPipeV}
TORCH_SCHEDULES = tuple(_GENERATORS)


def to_torch(table: Table) -> dict[int, list[TorchAction]]:
    """The rows of a table as torch's runtime takes them, by rank."""
    return {rank: [TorchAction(stage, Kind(kind), mb) for stage, kind, mb in row]
            for rank, row in enumerate(table.rows)}


def torch_table(name: str, num_ranks: int, num_chunks: int, num_microbatches: int) -> Table:
    """Compute actions of one of torch's own schedules, made without ranks.

    Args:
        name: 'interleaved-zero-bubble', 'zbv' or 'dualpipev'. The last one's pairs of F and B
            that run at once on a GPU stand one after the other.

    Raises:
        VisionError: VIS-CONFIG-1510 for a name or sizes that torch has no schedule of.
    """
    why = _why_not(name, num_ranks, num_chunks, num_microbatches)
    if why:
        raise VisionError(
            'VIS-CONFIG-1510', f'schedule {name!r} for {num_ranks} ranks, {num_chunks} chunks a '
            f'rank, {num_microbatches} micro-batches', why=why,
            do=f'change the sizes, or take another schedule: {", ".join(TORCH_SCHEDULES)} '
            'are those of torch')
    placement = v_shaped(num_ranks) if name != 'interleaved-zero-bubble' else \
        looped(num_ranks, num_chunks)
    order = _generate(_GENERATORS[name], len(placement), num_ranks, num_chunks, num_microbatches)
    rows = tuple(tuple(_flat(order[rank])) for rank in range(num_ranks))
    return Table(name, placement, num_microbatches, rows)


def _why_not(name: str, num_ranks: int, num_chunks: int, num_microbatches: int) -> str:
    if name not in _GENERATORS:
        return f'allowed are {", ".join(_GENERATORS)}'
    if min(num_ranks, num_chunks, num_microbatches) < 1:
        return 'each number must be at least 1'
    if name == 'interleaved-zero-bubble':
        num_rounds = max(1, num_microbatches // num_ranks)
        return '' if num_microbatches % num_rounds == 0 else \
            f'{num_microbatches} micro-batches cannot be dealt to {num_rounds} equal rounds'
    if num_chunks != 2:
        return 'it is V-shaped: two chunks a rank'
    if name == 'dualpipev' and num_microbatches < 2 * num_ranks:
        return f'it needs at least as many micro-batches as stages, {2 * num_ranks}'
    return ''


def _generate(schedule: type, num_stages: int, num_ranks: int, num_chunks: int,
              num_microbatches: int) -> dict[int, list[TorchAction | None]]:
    """torch's order, without its lowering: that is done by ``core``, and takes a process group."""
    class Generator(schedule):
        def _prepare_schedule_with_comms(self, actions, format='compute_only') -> None:
            pass

    stages = [SimpleNamespace(num_stages=num_stages, group_size=num_ranks, group_rank=0,
                              submod=None) for _ in range(num_chunks)]
    return Generator(stages, num_microbatches).pipeline_order


def _flat(row: list[TorchAction | None]) -> list[Action]:
    found = []
    for action in row:
        for part in (action.sub_actions or (action,)) if action else ():
            found.append(Action(part.stage_index, part.computation_type.value,
                                part.microbatch_index))
    return found
