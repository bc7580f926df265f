"""Forward passes through the stages for evaluation: micro-batches of any sizes, no gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from vision.common.core.errors import VisionError
from vision.pipeline.nn.torch_private import refuse_others_than_tensors

# What is told ahead of the tensors of a transfer: their number, then dtype, dimensions and sizes
# of each. 42 tensors with 4 dimensions fit; one more message of 2 KB costs nothing beside them.
_HEADER = 256
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32,
           torch.int16, torch.int8, torch.uint8, torch.bool)


@torch.no_grad()
def forward_only(chunks: Mapping[int, nn.Module], rank_of: Sequence[int],
                 batches: Sequence[Tensor | tuple[Tensor, ...]] | None, *,
                 group: dist.ProcessGroup | None, device: torch.device | str) -> list[Any]:
    """Outputs of the last stage for each micro-batch, on its rank; [] on the others.

    Nothing is learned of shapes and kept: each transfer says what comes. All ranks call it; the
    number of micro-batches may differ between data-parallel copies. Chunks of ``fully_shard``
    are gathered once and sharded at the end. Modules are called in the mode that they are in.

    Args:
        chunks: modules of this rank by stage.
        rank_of: rank of each stage, in the pipeline.
        batches: micro-batches for stage 0, read on its rank alone; any number, of any sizes.
        group: of the pipeline's ranks; None for all.

    Raises:
        VisionError: VIS-CONFIG-1518 for a stage, not the last, that gives something else than
            tensors, VIS-CONFIG-1519 for too many of them.
    """
    rank = dist.get_rank(group)
    told = torch.tensor([len(batches or ())], device=device)
    dist.broadcast(told, group=group, group_src=rank_of[0])
    waiting: dict[tuple[int, int], Any] = {}  # inputs by stage and micro-batch
    if 0 in chunks:
        waiting = {(0, mb): batch for mb, batch in enumerate(batches or ())}
    outputs, sends = {}, []
    _each_sharded(chunks, 'unshard')
    for together in _rounds(rank_of, int(told)):
        made = {}
        for stage, mb in together:
            if rank_of[stage] == rank:
                made[stage] = chunks[stage](*_as_tuple(waiting.pop((stage, mb))))
        for stage, mb in together:
            if stage == len(rank_of) - 1:
                outputs.update({mb: made[stage]} if stage in made else {})
                continue
            source, target = rank_of[stage], rank_of[stage + 1]
            if source == target == rank:
                waiting[stage + 1, mb] = made[stage]
            elif source == rank:
                sends += _send(made[stage], stage, target, group, device)
            elif target == rank:
                waiting[stage + 1, mb] = _receive(source, group, device)
    for work, _ in sends:
        work.wait()
    _each_sharded(chunks, 'reshard')
    return [outputs[mb] for mb in sorted(outputs)]


def _rounds(rank_of: Sequence[int], num_microbatches: int) -> Iterator[list[tuple[int, int]]]:
    """What runs at the same time, the same on every rank: at most one (stage, mb) a rank.

    Of what a rank could run it takes the latest stage. Transfers of a round follow in the order
    of stages. So all ranks meet their transfers in one global order: the first unfinished one
    has both its ends free, and no placement can make ranks wait in a circle, even if a send
    returned only when it is received.
    """
    num_done = [0] * len(rank_of)
    while num_done[-1] < num_microbatches:
        taken: dict[int, int] = {}
        for stage, rank in enumerate(rank_of):
            num_ready = num_done[stage - 1] if stage else num_microbatches
            if num_done[stage] < num_ready:
                taken[rank] = stage
        together = [(stage, num_done[stage]) for stage in sorted(taken.values())]
        yield together
        for stage, _ in together:
            num_done[stage] += 1


def _as_tuple(value: Any) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _send(output: Any, stage: int, target: int, group: dist.ProcessGroup | None,
          device: torch.device | str) -> list[tuple[dist.Work, Tensor]]:
    refuse_others_than_tensors(stage, output)
    tensors = _as_tuple(output)
    header = [len(tensors), *(number for tensor in tensors for number in
                              (_DTYPES.index(tensor.dtype), tensor.dim(), *tensor.shape))]
    if len(header) > _HEADER:
        raise VisionError(
            'VIS-CONFIG-1519', f'stage {stage} gives {len(tensors)} tensors',
            why=f'what is told of them ahead has {_HEADER} numbers, and this needs {len(header)}',
            do='cut the model where fewer tensors pass, or let the chunk join some of them')
    header += [0] * (_HEADER - len(header))
    parts = [torch.tensor(header, device=device), *(tensor.contiguous() for tensor in tensors)]
    return [(dist.isend(part, group=group, group_dst=target), part) for part in parts]


def _receive(source: int, group: dist.ProcessGroup | None,
             device: torch.device | str) -> tuple[Tensor, ...]:
    header = torch.empty(_HEADER, dtype=torch.int64, device=device)
    dist.recv(header, group=group, group_src=source)
    numbers = iter(header.tolist())
    tensors = []
    for _ in range(next(numbers)):
        dtype, num_dims = _DTYPES[next(numbers)], next(numbers)
        shape = [next(numbers) for _ in range(num_dims)]
        tensors.append(torch.empty(shape, dtype=dtype, device=device))
        dist.recv(tensors[-1], group=group, group_src=source)
    return tuple(tensors)


def _each_sharded(chunks: Mapping[int, nn.Module], method: str) -> None:
    for _, chunk in sorted(chunks.items()):
        for module in chunk.modules():
            if isinstance(module, FSDPModule):
                getattr(module, method)()
