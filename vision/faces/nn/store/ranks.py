"""What the ranks that share class rows decide together."""

from __future__ import annotations

import torch
import torch.distributed as dist

from vision.common.core.errors import VisionError


def row_range(num_classes: int, rank: int, world: int) -> tuple[int, int]:
    """Classes start to end of a rank; the first C mod N ranks have one more, as in Partial FC."""
    base, extra = divmod(num_classes, world)
    start = rank * base + min(rank, extra)
    return start, start + base + (rank < extra)


def check_ranks(group: dist.ProcessGroup, device: torch.device | str, **values: int) -> None:
    """Compare whole numbers between all ranks of a group; every rank comes here.

    Raises:
        VisionError: VIS-DIST-1024, on every rank, where one has another number.
    """
    mine = torch.tensor(list(values.values()), device=device)
    low, high = mine.clone(), mine.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN, group=group)
    dist.all_reduce(high, dist.ReduceOp.MAX, group=group)
    unequal = {name: (a, b) for name, a, b in zip(values, low.tolist(), high.tolist(),
                                                  strict=True) if a != b}
    if unequal:
        name, (a, b) = next(iter(unequal.items()))
        raise VisionError('VIS-DIST-1024', f'ranks disagree on {", ".join(unequal)}: {name} '
                          f'is from {a} to {b}', where=f'rank {dist.get_rank(group)}',
                          why='they share the class rows and the data',
                          do='start all processes with the same config and the same data')


def raise_together(fault: VisionError | None, group: dist.ProcessGroup | None,
                   device: torch.device | str) -> None:
    """Raise ``fault`` on every rank if any has one; every rank must come here.

    A rank that raised alone would leave the others waiting for it in the next exchange. One
    number is reduced; the text travels only when there is one.

    Raises:
        VisionError: that of the lowest rank which has one; ``where`` names the rank.
    """
    if group is None:
        if fault is not None:
            raise fault
        return
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    first = torch.tensor(world if fault is None else rank, device=device)
    dist.all_reduce(first, dist.ReduceOp.MIN, group=group)
    first = int(first)
    if first == world:
        return
    told = [None if fault is None else fault.to_dict()]
    dist.broadcast_object_list(told, dist.get_global_rank(group, first), group=group,
                               device=torch.device(device))
    del told[0]['exit_code']
    code, what, where = (told[0].pop(key) for key in ('code', 'what', 'where'))
    raise VisionError(code, what, where=f'rank {first}' + (f', {where}' if where else ''),
                      **told[0]) from fault
