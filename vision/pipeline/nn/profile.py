"""What the actions of a pipeline cost on this machine, for the search of a schedule."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vision.common.nn.torch_private import reduce_scatter_single
from vision.pipeline.core.tasks import Costs, F, I, W
from vision.pipeline.nn.runtime import PipelineRuntime
from vision.pipeline.nn.torch_private import gathered_bytes, is_sharded, reduced_bytes

_NUM_TRIES = 5


def measured_costs(runtime: PipelineRuntime, *, group: dist.ProcessGroup | None,
                   dp_group: dist.ProcessGroup | None = None,
                   optimizer: torch.optim.Optimizer | None = None) -> Costs:
    """Costs in seconds and bytes, the same bits on every rank; all ranks call it.

    Times of F, I and W are medians over the micro-batches of the last step, so run a few steps
    before. Where that table has B, I and W are half of it each (our choice: the two products of a
    layer's backward have as many operations), and in stage 0, and wherever no input needs a
    gradient, W is all of it, as torch does it. F of the last stage includes the loss. Latency is
    that of the largest transfer between neighbours, half of a round trip, on the slowest pair.
    Activations are what autograd saves in F, with its inputs and outputs and without parameters,
    counted by storage while shapes are learned. The first data-parallel copy speaks for all.

    Args:
        group: of the pipeline's ranks.
        dp_group: of the ranks over which chunks are sharded; gather and reduce are timed on it.
        optimizer: its state is part of ``static_bytes``.
    """
    own = {stage.stage_index: _of_stage(runtime, stage) for stage in runtime.stages}
    for chunk_costs, stage in zip(own.values(), runtime.stages, strict=True):
        chunk_costs.update(_collective_times(stage.submod, dp_group, runtime.device))
    largest = max(costs['sent_bytes'] for costs in own.values())
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, (own, largest, _static_bytes(runtime, optimizer)),
                           group=group)
    latency = _latency(max(sent for _, sent, _ in everyone), group, runtime.device)
    latencies: list[Any] = [None] * len(everyone)
    dist.all_gather_object(latencies, latency, group=group)
    by_stage = {stage: costs for own, _, _ in everyone for stage, costs in own.items()}

    def column(key: str) -> tuple:
        return tuple(by_stage[stage][key] for stage in sorted(by_stage))

    told = [Costs(column(F), column(I), column(W), latency=max(latencies),
                  gather=column('gather'), reduce=column('reduce'),
                  activation_bytes=column('activation_bytes'),
                  weight_bytes=column('weight_bytes'),
                  static_bytes=tuple(static for _, _, static in everyone))]
    if dp_group is not None:
        dist.broadcast_object_list(told, group=dp_group, group_src=0)
    return told[0]


def _of_stage(runtime: PipelineRuntime, stage: Any) -> dict[str, Any]:
    times: dict[str, list[float]] = {}
    for action, start, end in runtime.spans.seconds():
        if action.stage == stage.stage_index:
            times.setdefault(action.kind, []).append(end - start)
    assert times, 'no step has run'
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    if I not in medians:
        share = 0.5 if stage.sends_gradient else 0.0
        medians |= {I: share * medians['B'], W: (1 - share) * medians['B']}
    return dict({kind: medians[kind] for kind in (F, I, W)},
                activation_bytes=stage.activation_bytes, sent_bytes=stage.sent_bytes,
                weight_bytes=gathered_bytes(stage.submod))


def _collective_times(chunk: Any, dp_group: dist.ProcessGroup | None,
                      device: torch.device) -> dict[str, float]:
    if dp_group is None or not is_sharded(chunk):
        return dict(gather=0.0, reduce=0.0)

    def gather() -> None:
        for module in chunk.modules():
            if is_sharded(module):
                module.unshard()

    def shard() -> None:
        for module in chunk.modules():
            if is_sharded(module):
                module.reshard()

    num_bytes, dtype = reduced_bytes(chunk)
    num_ranks = dp_group.size()
    size = -(-num_bytes // dtype.itemsize // num_ranks)
    whole = torch.zeros(size * num_ranks, dtype=dtype, device=device)
    part = torch.zeros(size, dtype=dtype, device=device)
    return dict(gather=_median_seconds(gather, device, after=shard),
                reduce=_median_seconds(
                    lambda: reduce_scatter_single(part, whole, group=dp_group), device))


def _median_seconds(work: Callable[[], Any], device: torch.device,
                    after: Callable[[], Any] = lambda: None) -> float:
    found = []
    for _ in range(_NUM_TRIES):
        _synchronize(device)
        start = time.perf_counter()
        work()
        _synchronize(device)
        found.append(time.perf_counter() - start)
        after()
    return statistics.median(found)


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _latency(num_bytes: int, group: dist.ProcessGroup | None, device: torch.device) -> float:
    """Seconds of a transfer between this rank and its neighbours, the slower of the two."""
    rank, num_ranks = dist.get_rank(group), dist.get_world_size(group)
    box = torch.zeros(max(1, num_bytes), dtype=torch.uint8, device=device)
    slowest = 0.0
    for first in range(num_ranks - 1):
        dist.barrier(group=group)
        if rank in (first, first + 1):
            round_trip = _median_seconds(
                lambda: _exchange(box, rank, first, group), device)  # noqa: B023 called here
            slowest = max(slowest, round_trip / 2)
    return slowest


def _exchange(box: Tensor, rank: int, first: int, group: dist.ProcessGroup | None) -> None:
    if rank == first:
        dist.send(box, group=group, group_dst=first + 1)
        dist.recv(box, group=group, group_src=first + 1)
    else:
        dist.recv(box, group=group, group_src=first)
        dist.send(box, group=group, group_dst=first)


def _static_bytes(runtime: PipelineRuntime, optimizer: torch.optim.Optimizer | None) -> int:
    """Of this rank: its parameters or shards of them, as many gradients, buffers, the state."""
    found = 0
    for chunk in runtime.chunks.values():
        for parameter in chunk.parameters():
            found += _local_bytes(parameter) * (1 + parameter.requires_grad)
        found += sum(map(_local_bytes, chunk.buffers()))
    for state in optimizer.state.values() if optimizer else ():
        found += sum(_local_bytes(value) for value in state.values() if isinstance(value, Tensor))
    return found


def _local_bytes(tensor: Tensor) -> int:
    local = tensor.to_local() if hasattr(tensor, 'to_local') else tensor
    return local.numel() * local.element_size()
