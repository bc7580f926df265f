"""Inverted lists as tensors on any device, searched without waiting for it.

FAISS' GPU indexes answer from codes of their own and hand results to the host. Here a search is a
few operators of fixed shapes on live rows that lie beside the lists, so that the host can run
ahead of the device and scores are exact.

Legend: C rows, d dimensions, n lists, B queries, L places of a list, k results.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vision.faces.core.select.faults import damaged_index, rows_not_finite, too_few_rows
from vision.faces.nn.index.kmeans import (
    assign,
    assign_near,
    lists_for,
    prepared,
    update_centroids,
)

MOST_OVER_MEAN = 2  # places of a list over the mean length; longer lists are cut in pieces
_SAMPLE_PER_LIST = 40  # rows that the first k-means sees
_ITERATIONS = 8


class DeviceLists:
    """K-means cells of unit rows, behind the interface that ``IndexUpkeep`` knows.

    All lists have as many places, twice the mean; what is longer is cut in pieces that are
    searched as lists of their own, so that memory is at most three int32 a row however uneven the
    cells are. Rows themselves are not kept. On a GPU, where sums are made in any order, two builds
    may differ in the last bits of their centroids.

    Args:
        centroids: (n, d) float32 of unit length, on the device of the rows.
        assignment: (C,) whole numbers, list of each row.
    """

    can_update = False
    keeps_lists = True

    def __init__(self, centroids: Tensor, assignment: Tensor) -> None:
        self.centroids, self.num_rows = centroids, len(assignment)
        self._assignment = assignment.int()
        lengths = assignment.long().bincount(minlength=len(centroids))
        places = max(1, -(-MOST_OVER_MEAN * self.num_rows // len(centroids)))
        pieces = (lengths + places - 1) // places
        order = assignment.argsort(stable=True)
        own, starts = assignment[order].long(), lengths.cumsum(0) - lengths
        position = torch.arange(self.num_rows, device=order.device) - starts[own]
        piece = (pieces.cumsum(0) - pieces)[own] + position // places
        self._lists = torch.full((int(pieces.sum()), places), -1, dtype=torch.int32,
                                 device=order.device)
        self._lists[piece, position % places] = order.int()
        self._of_piece = centroids.repeat_interleave(pieces, 0)
        self._imbalance = float(lengths.double().square().sum() * len(centroids)
                                / max(1, self.num_rows) ** 2)

    @classmethod
    def build(cls, rows: Tensor, *, num_lists: int = 0, seed: int = 0) -> DeviceLists:
        """K-means from nothing, on the device of the rows.

        Args:
            rows: (C, d) of any floating type and length; not kept.
            num_lists: 0: 4 sqrt(C) as a power of two.

        Raises:
            VisionError: VIS-CONFIG-1044, fewer rows than lists; VIS-RUN-1047, rows that are not
                finite.
        """
        num_lists = num_lists or lists_for(len(rows))
        if len(rows) < num_lists:
            raise too_few_rows(len(rows), num_lists)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(rows), generator=generator)[:_SAMPLE_PER_LIST * num_lists]
        sample = prepared(_checked(rows)[drawn.to(rows.device)], True)
        centroids = sample[:num_lists].clone()
        for _ in range(_ITERATIONS):
            centroids = update_centroids(sample, assign(sample, centroids, is_cosine=True),
                                         centroids, is_cosine=True)
        return cls(centroids, assign(rows, centroids, is_cosine=True))

    def propose_scored(self, queries: Tensor, rows: Tensor | Callable[[Tensor], Tensor], *,
                       nprobe: int, num: int) -> tuple[Tensor, Tensor]:
        """The best rows of the lists nearest to each query, by their live rows.

        Nothing waits for the device, and shapes depend on the arguments only. One list of each
        query is scored at a time: B * L rows are gathered, whatever ``nprobe``.

        Args:
            queries: (B, d) of unit length.
            rows: (C, d) live unit rows, or a function that gives those of ids (N,).
            nprobe: lists searched for each query; all when there are fewer.

        Returns:
            ids (B, num) int64, best first; -1 where the lists hold no more.
            scores (B, num) float32 inner products; -inf there.
        """
        gather = rows if callable(rows) else partial(torch.index_select, rows, 0)
        nprobe = min(nprobe, len(self._lists))
        near = (queries @ self._of_piece.T).topk(nprobe, dim=1).indices
        scores = queries.new_full((len(queries), num), -torch.inf)
        ids = torch.full_like(near[:, :1], -1).expand(-1, num)
        for probe in range(nprobe):
            found = self._lists.index_select(0, near[:, probe]).long()
            live = gather(found.clamp(min=0).flatten()).view(*found.shape, queries.shape[1])
            score = torch.bmm(live, queries[:, :, None]).squeeze(2)
            score = score.masked_fill(found < 0, -torch.inf)
            scores, best = torch.cat([scores, score], 1).topk(num, dim=1)
            ids = torch.cat([ids, found], 1).gather(1, best)
        return ids, scores

    def renewal(self, rows: Tensor, *, num_iterations: int = 0, previous: Tensor | None = None
                ) -> Callable[[], DeviceLists]:
        """Work, for any thread, that gives new lists of rows (C, d); ``num_iterations`` and
        ``previous`` (C,) as in ``ClassIndex.renewal``."""
        previous = self._assignment if previous is None else previous
        return partial(_renewed, self.centroids, rows, previous.long(), num_iterations)

    def assignment(self) -> Tensor:
        """(C,) int64 list of each row."""
        return self._assignment.long()

    def imbalance(self) -> float:
        """1: all lists are equally long; 3 means searches cost three times as much as then."""
        return self._imbalance

    @property
    def num_bytes(self) -> int:
        """Memory of lists, assignment and centroids, on the device."""
        return sum(tensor.nbytes for tensor in (self._lists, self._assignment, self._of_piece,
                                                self.centroids))

    def state_dict(self) -> dict:
        """Centroids (n, d) on the host, for lists that are filled again from the rows."""
        return dict(kind='device', dim=self.centroids.shape[1], centroids=self.centroids.cpu())

    def lists_state(self) -> dict:
        """List of each row, (C,) int32 on the host, for ``restore_lists`` as ``lists`` of its
        state."""
        return dict(assignment=self._assignment.cpu())


def restore_lists(state: dict, rows: Tensor | None, device: torch.device | str) -> DeviceLists:
    """The lists of a checkpoint, or over these rows where it has only centroids.

    Args:
        state: what ``state_dict`` gave, perhaps with ``lists`` from ``lists_state``.
        rows: (C, d) class rows; None where ``lists`` are there.

    Raises:
        VisionError: VIS-CKPT-1054, they are damaged.
    """
    centroids, lists = state.get('centroids'), state.get('lists')
    assignment = None if lists is None else lists.get('assignment')
    fault = ''
    if not isinstance(centroids, Tensor) or centroids.dtype != torch.float32 \
            or centroids.ndim != 2 or not len(centroids) or not centroids.isfinite().all():
        fault = 'its centroids are no finite float32 rows'
    elif assignment is None and rows is None:
        fault = 'it has neither lists nor rows'
    elif assignment is not None and (
            not isinstance(assignment, Tensor) or assignment.dtype != torch.int32
            or assignment.ndim != 1 or len(assignment) and not
            0 <= int(assignment.min()) <= int(assignment.max()) < len(centroids)):
        fault = f'its lists do not fit {len(centroids)} centroids'
    if fault:
        raise damaged_index(fault)
    centroids = centroids.to(device)
    if assignment is None:
        assignment = assign(_checked(rows).to(device), centroids, is_cosine=True)
    return DeviceLists(centroids, assignment.to(device))


def _renewed(centroids: Tensor, rows: Tensor, previous: Tensor, num_iterations: int
             ) -> DeviceLists:
    rows = _checked(rows.to(centroids.device))  # of a checkpoint, they are on the host
    assignment = assign_near(rows, previous, centroids, is_cosine=True)
    for _ in range(num_iterations):
        centroids = update_centroids(rows, assignment, centroids, is_cosine=True)
        assignment = assign_near(rows, assignment, centroids, is_cosine=True)
    return DeviceLists(centroids, assignment)


def _checked(rows: Tensor) -> Tensor:
    if not bool(rows.sum(dtype=torch.float64).isfinite()):
        raise rows_not_finite()
    return rows
