"""Class rows in host memory, for more classes than the accelerator holds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from vision.faces.nn.store.device_store import ClassStore
from vision.faces.nn.store.side_stream import on_stream

Fetched = tuple[Tensor, dict[str, Tensor], Tensor]


class HostStore(ClassStore):
    """A ``ClassStore`` whose rows and optimizer state stay in host memory.

    Active rows travel to ``device`` in ``pull`` and back in ``push``; the arithmetic is done
    there. One thread moves rows while the device and the main thread work: it fetches rows known
    beforehand (the head asks for all that the labels decide, before the backbone's forward pass)
    and writes back what a step changed. It does one thing after the other, in the order in which
    it was asked, and whoever else reads rows waits for what is to be written: results never
    depend on it.

    On an accelerator its copies go through page-locked memory and a stream of their own.

    Args:
        rows: (n, d) float32 or float64 in host memory.
        options: of ``ClassStore``; ``device`` is where the arithmetic is done.
    """

    fetches_ahead = True

    def __init__(self, rows: Tensor, optimizer, **options) -> None:
        assert rows.device.type == 'cpu'
        super().__init__(rows, optimizer, **options)
        self._pool = ThreadPoolExecutor(1, 'class-rows')
        self._stream = torch.cuda.Stream(self.device) if self.device.type == 'cuda' else None
        self._coming: tuple[Tensor, Future[Fetched]] | None = None
        self._is_fresh: Tensor | None = None  # of the coming rows: not pushed since
        self._written: Future[None] | None = None  # the last of what is to be written

    def prefetch(self, rows: Tensor) -> None:
        """Begin to fetch rows in a thread, for all pulls until the next call.

        Args:
            rows: (M,) int64 local ids, ascending, each once. Those among them that a push
                changes meanwhile are read again when they are pulled.

        Raises:
            VisionError: VIS-INPUT-1022, other ids.
        """
        if fault := self._fault_of_rows(rows):
            raise fault
        rows = rows.cpu()
        self._is_fresh = torch.ones(len(rows), dtype=torch.bool)
        self._coming = rows, self._submit(super()._fetch, rows)

    def snapshot(self, dtype: torch.dtype = torch.float16) -> Tensor:
        """(n, d) copy of all rows as of now, in host memory; waits for what is to be written."""
        self._settle()
        return super().snapshot(dtype)

    def state_dict(self) -> dict:
        """As ``ClassStore.state_dict``; waits for what is to be written."""
        self._settle()
        return super().state_dict()

    def load_ranges(self, states: list[dict], *, takes_tensors: bool = False) -> None:
        """As ``ClassStore.load_ranges``; what was fetched for the old rows is dropped."""
        self._forget()
        super().load_ranges(states, takes_tensors=takes_tensors)

    def _fetch(self, rows: Tensor | slice, names: tuple[str, ...] | None = None) -> Fetched:
        self._settle()
        if isinstance(rows, slice):
            return super()._fetch(rows, names)
        rows = rows.cpu()
        if self._coming is None or not len(self._coming[0]):
            return super()._fetch(rows, names)
        coming, future = self._coming
        position = torch.searchsorted(coming, rows).clamp(max=len(coming) - 1)
        is_here = (coming[position] == rows) & self._is_fresh[position]
        hit, miss = is_here.nonzero()[:, 0], (~is_here).nonzero()[:, 0]
        place = [index.to(self.device) for index in (position[hit], hit, miss)]
        weights, state, last = super()._fetch(rows[miss], names)
        ready = future.result()
        if self._stream is not None:  # its memory is that of another stream
            for tensor in (ready[0], *ready[1].values(), ready[2]):
                tensor.record_stream(torch.cuda.current_stream(self.device))
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

    def _write(self, rows: Tensor | slice, weights: Tensor, state: dict[str, Tensor],
               num_steps: int | None = None) -> None:
        if isinstance(rows, slice):
            self._forget()  # all rows are about to be written
            super()._write(rows, weights.cpu(),
                           {name: value.cpu() for name, value in state.items()})
            return
        self._settle()
        rows = rows.cpu()
        if self._coming is not None:
            stale = torch.isin(self._coming[0], rows, assume_unique=True)
            self._is_fresh &= stale.logical_not_()
        self._written = self._submit(self._write_back, rows, weights, state,
                                     self._missed.num_steps)

    def _write_back(self, rows: Tensor, weights: Tensor, state: dict[str, Tensor],
                    num_steps: int) -> None:
        names = list(state)
        weights, *values = self._to_host([weights, *state.values()])
        super()._write(rows, weights, dict(zip(names, values, strict=True)), num_steps)

    def _to_host(self, tensors: list[Tensor]) -> list[Tensor]:
        if self._stream is None:
            return tensors
        staged = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                  for tensor in tensors]
        for target, tensor in zip(staged, tensors, strict=True):
            target.copy_(tensor, non_blocking=True)
        self._stream.synchronize()
        return staged

    def _submit(self, work: Callable, *args) -> Future:
        """Have the thread do it after all that it was given before, on its own stream."""
        work = partial(work, *args)
        return self._pool.submit(
            work if self._stream is None else on_stream(self._stream, work))

    def _settle(self) -> None:
        """Wait until everything is written."""
        if self._written is not None:
            self._written.result()
            self._written = None

    def _forget(self) -> None:
        self._settle()
        if self._coming is not None:
            self._coming[1].result()
        self._coming = self._is_fresh = None


def _joined(ready: Tensor, read: Tensor, position: Tensor, hit: Tensor, miss: Tensor) -> Tensor:
    """Rows ``position`` of ``ready`` at the places ``hit``, ``read`` at the places ``miss``."""
    result = read.new_empty(len(hit) + len(miss), *read.shape[1:])
    return result.index_copy_(0, hit, ready[position]).index_copy_(0, miss, read)
