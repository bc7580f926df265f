"""Batches of all ranks on every rank, and gradients back to the rank that owns the sample."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def batch_sizes(labels: Tensor, group: dist.ProcessGroup | None) -> list[int]:
    """Number of labels (B_r,) of each rank."""
    if group is None:
        return [len(labels)]
    sizes = torch.empty(dist.get_world_size(group), dtype=torch.int64, device=labels.device)
    dist.all_gather(list(sizes.split(1)), sizes.new_tensor([len(labels)]), group=group)
    return sizes.tolist()


def gather_batch(features: Tensor, labels: Tensor, group: dist.ProcessGroup | None, *,
                 sizes: list[int] | None = None,
                 gradient_factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Features (B_r, d) and labels (B_r,) of all ranks, in rank order: (B, d) and (B,).

    Ranks may hold different numbers of samples, also none; nothing is padded. Backward, the
    gradients that the ranks found for a sample (each from its own rows) are summed at its owner.

    Args:
        group: None is one process: the arguments come back.
        sizes: what ``batch_sizes`` gave, where it was asked before.
        gradient_factor: factor on the gradient. DistributedDataParallel averages the backbone's
            gradients over ranks while the loss is already a mean over all samples: give the
            number of ranks there.
    """
    if group is None:
        return features, labels
    sizes = sizes or batch_sizes(labels, group)
    return (_GatherRows.apply(features, sizes, group, gradient_factor),
            _gather(labels, sizes, group))


def gather_labels(labels: Tensor, group: dist.ProcessGroup | None, sizes: list[int]) -> Tensor:
    """Labels (B_r,) of all ranks, in rank order: (B,)."""
    return labels if group is None else _gather(labels, sizes, group)


def _gather(tensor: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
    tensor = tensor.detach().contiguous()
    gathered = tensor.new_empty(sum(sizes), *tensor.shape[1:])
    parts = gathered.split(sizes)
    if min(sizes) == max(sizes):
        dist.all_gather(list(parts), tensor, group=group)
        return gathered
    # all_gather wants equal sizes; one broadcast per rank moves the same bytes without padding.
    own = dist.get_rank(group)
    parts[own].copy_(tensor)
    works = [dist.broadcast(part, dist.get_global_rank(group, rank), group=group, async_op=True)
             for rank, part in enumerate(parts) if len(part)]
    for work in works:
        work.wait()
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, sizes: list[int], group, factor: float) -> Tensor:
        ctx.sizes, ctx.group, ctx.factor = sizes, group, factor
        return _gather(features, sizes, group)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient, group=ctx.group)
        own = gradient.split(ctx.sizes)[dist.get_rank(ctx.group)]
        return own * ctx.factor, None, None, None
