"""Cells for class rows: hierarchical k-means, and assignment that looks only nearby.

Assigning C rows to n centroids costs C n d. Two things bring that down, both ours: centroids are
trained in two levels (sqrt(n) coarse cells, each divided alone), and a row that already has a cell
looks for a better one among that cell's nearest neighbours only, at ``NUM_NEAR / n`` of the cost
and with nearly the same cells. Few such rounds over all rows mend the two-level start.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

NUM_NEAR = 128  # cells looked at per row; 48 cost 2 points of recall at 1024 lists, all gained 1
ROWS_PER_CENTROID = 64  # of the training sample; more made no better lists
_CHUNK = 1 << 14
Kmeans = Callable[[Tensor, int, int], Tensor]


def train_centroids(rows: Tensor, num: int, *, is_cosine: bool, seed: int,
                    kmeans: Kmeans) -> tuple[Tensor, Tensor]:
    """Two-level k-means.

    Args:
        rows: (C, d).
        num: centroids to make, <= C.
        kmeans: kmeans(rows (N, d) float32, k, seed) -> (k, d).
    Returns:
        (centroids (num, d), a near cell (C,) of each row: a start for ``assign_near``).
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = min(len(rows), ROWS_PER_CENTROID * num)
    sample = rows if wanted == len(rows) else \
        rows[torch.randint(len(rows), (wanted,), generator=generator).unique()]
    sample = prepared(sample, is_cosine)
    num_coarse = max(1, int(num**0.5))
    if num_coarse < 4 or len(sample) < 4 * num:
        centroids = kmeans(sample, num, seed)
        return centroids, assign_rows(rows, centroids, is_cosine=is_cosine)
    coarse = kmeans(sample, num_coarse, seed)
    cells = assign_rows(sample, coarse, is_cosine=is_cosine)
    shares = _shares(cells.bincount(minlength=num_coarse), num)
    parts = [kmeans(sample[cells == cell], share, seed + 1 + cell) if share
             else sample[:0] for cell, share in enumerate(shares.tolist())]
    starts = functional.pad(shares.cumsum(0), (1, 0))
    centroids = torch.cat(parts)
    return centroids, _assign_in_cells(rows, coarse, centroids, starts, is_cosine)


def assign_rows(rows: Tensor, centroids: Tensor, *, is_cosine: bool) -> Tensor:
    """(C,) int64 nearest centroid of each row, among all."""
    return torch.cat([_best(prepared(part, is_cosine), centroids, is_cosine)
                      for part in rows.split(_CHUNK)])


def assign_near(rows: Tensor, previous: Tensor, centroids: Tensor, *, is_cosine: bool,
                num_near: int = NUM_NEAR) -> Tensor:
    """(C,) int64 nearest centroid among the ``num_near`` neighbours of each row's old one."""
    num_near = min(num_near, len(centroids))
    near = torch.cat([_scores(part, centroids, is_cosine).topk(num_near).indices
                      for part in centroids.split(1 << 10)])
    lengths = previous.bincount(minlength=len(centroids)).tolist()
    order, result = previous.argsort(), torch.empty_like(previous)
    for cell, ids in enumerate(order.split(lengths)):
        if len(ids):
            own = prepared(rows.index_select(0, ids), is_cosine)
            best = _best(own, centroids.index_select(0, near[cell]), is_cosine)
            result[ids] = near[cell][best]
    return result


def update_centroids(rows: Tensor, assignment: Tensor, centroids: Tensor, *,
                     is_cosine: bool) -> Tensor:
    """(n, d) means of the assigned rows, unit length for cosines; an empty cell stays."""
    sums = torch.zeros_like(centroids)
    for part, cells in zip(rows.split(_CHUNK), assignment.split(_CHUNK), strict=True):
        sums.index_add_(0, cells, prepared(part, is_cosine))
    counts = assignment.bincount(minlength=len(centroids))[:, None]
    means = functional.normalize(sums) if is_cosine else sums / counts.clamp(min=1)
    return torch.where(counts > 0, means, centroids)


def prepared(rows: Tensor, is_cosine: bool) -> Tensor:
    rows = rows.float()
    return functional.normalize(rows) if is_cosine else rows


def _scores(rows: Tensor, centroids: Tensor, is_cosine: bool) -> Tensor:
    """Larger is nearer: inner product, less half the squared length unless all are unit."""
    products = rows @ centroids.T
    return products if is_cosine else products.sub_((centroids * centroids).sum(1) / 2)


def _best(rows: Tensor, centroids: Tensor, is_cosine: bool) -> Tensor:
    return _scores(rows, centroids, is_cosine).argmax(1)


def _shares(sizes: Tensor, num: int) -> Tensor:
    """Centroids for each coarse cell by its size: none above its rows, ``num`` together."""
    exact = sizes * (num / sizes.sum())
    shares = torch.minimum(exact.floor().long(), sizes).clamp_(min=0)
    shares = torch.maximum(shares, (sizes > 0).long())
    while (missing := num - int(shares.sum())) != 0:
        room = (sizes - shares) if missing > 0 else (shares - 1).clamp(min=0)
        gap = torch.where(room > 0, (exact - shares) * (1 if missing > 0 else -1), -torch.inf)
        chosen = gap.argsort(descending=True)[:min(abs(missing), int((room > 0).sum()))]
        shares[chosen] += 1 if missing > 0 else -1
    return shares


def _assign_in_cells(rows: Tensor, coarse: Tensor, centroids: Tensor, starts: Tensor,
                     is_cosine: bool) -> Tensor:
    """Nearest centroid of each row among those of its coarse cell."""
    cells = assign_rows(rows, coarse, is_cosine=is_cosine)
    # A cell without centroids had no row in the sample: its rows go to the nearest of all.
    result = torch.empty(len(rows), dtype=torch.int64)
    for cell in range(len(coarse)):
        ids = (cells == cell).nonzero().squeeze(1)
        start, end = (0, len(centroids)) if starts[cell] == starts[cell + 1] else \
            starts[cell:cell + 2].tolist()
        for part in ids.split(_CHUNK):
            own = prepared(rows.index_select(0, part), is_cosine)
            result[part] = start + _best(own, centroids[start:end], is_cosine)
    return result
