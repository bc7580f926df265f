"""Class rows in host memory, for more classes than the accelerator holds."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from vision.faces.nn.store.class_store import ClassStore

Fetched = tuple[Tensor, dict[str, Tensor], Tensor]


class HostStore(ClassStore):
    """A ``ClassStore`` whose rows and optimizer state stay in host memory.

    Active rows travel to ``device`` in ``pull`` and back in ``push``; the arithmetic is done
    there. Rows known beforehand can be fetched while the device works: the head does so with
    all that the labels decide, before the backbone's forward pass. Results never depend on it.
    """

    fetches_ahead = True

    def __init__(self, rows: Tensor, optimizer, **options) -> None:
        assert rows.device.type == 'cpu'
        super().__init__(rows, optimizer, **options)
        self._pool = ThreadPoolExecutor(1, 'class-rows')
        self._coming: tuple[Tensor, Future[Fetched]] | None = None
        self._is_fresh: Tensor | None = None  # of the coming rows: not pushed since

    def prefetch(self, rows: Tensor) -> None:
        """Begin to fetch rows in a thread, for all pulls until the next call.

        Args:
            rows: (M,) int64 local ids, ascending, each once. Those among them that a push
                changes meanwhile are read again when they are pulled.
        Raises:
            VisionError: VIS-INPUT-1022, other ids.
        """
        self._check_rows(rows)
        self._forget()
        rows = rows.cpu()
        self._is_fresh = torch.ones(len(rows), dtype=torch.bool)
        self._coming = rows, self._pool.submit(super()._fetch, rows)

    def load_ranges(self, states: list[dict]) -> None:
        self._forget()
        super().load_ranges(states)

    def _fetch(self, rows: Tensor | slice) -> Fetched:
        if isinstance(rows, slice):
            return super()._fetch(rows)
        rows = rows.cpu()
        if self._coming is None or not len(self._coming[0]):
            return super()._fetch(rows)
        coming, future = self._coming
        position = torch.searchsorted(coming, rows).clamp(max=len(coming) - 1)
        is_here = (coming[position] == rows) & self._is_fresh[position]
        hit, miss = is_here.nonzero()[:, 0], (~is_here).nonzero()[:, 0]
        place = [index.to(self.device) for index in (position[hit], hit, miss)]
        weights, state, last = super()._fetch(rows[miss])
        ready = future.result()
        return (_joined(ready[0], weights, *place),
                {name: _joined(ready[1][name], value, *place) for name, value in state.items()},
                _joined(ready[2], last, *place))

    def _gather(self, tensor: Tensor, rows: Tensor | slice) -> Tensor:
        if self.device.type == 'cpu':
            return super()._gather(tensor, rows)
        if isinstance(rows, slice):
            return tensor[rows].to(self.device)
        # From page-locked memory the copy does not hold up the host.
        staged = torch.empty(len(rows), *tensor.shape[1:], dtype=tensor.dtype, pin_memory=True)
        torch.index_select(tensor, 0, rows, out=staged)
        return staged.to(self.device, non_blocking=True)

    def _write(self, rows: Tensor | slice, weights: Tensor, state: dict[str, Tensor]) -> None:
        if isinstance(rows, slice):
            self._forget()  # all rows are about to be written
        else:
            rows = rows.cpu()
            self._drop_stale(rows)
        super()._write(rows, weights.cpu(), {name: value.cpu() for name, value in state.items()})

    def _drop_stale(self, rows: Tensor) -> None:
        if self._coming is not None:
            coming, future = self._coming
            future.result()  # the thread must not read what is being written
            self._is_fresh &= torch.isin(coming, rows, assume_unique=True).logical_not_()

    def _forget(self) -> None:
        if self._coming is not None:
            self._coming[1].result()
        self._coming = self._is_fresh = None


def _joined(ready: Tensor, read: Tensor, position: Tensor, hit: Tensor, miss: Tensor) -> Tensor:
    """Rows ``position`` of ``ready`` at the places ``hit``, ``read`` at the places ``miss``."""
    result = read.new_empty(len(hit) + len(miss), *read.shape[1:])
    return result.index_copy_(0, hit, ready[position]).index_copy_(0, miss, read)
