"""Copies of storages between the device and host memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from vision.memory.core.host_pool import Block, HostPool
from vision.memory.core.plan import Link
from vision.memory.nn.torch_private import tensor_on, unseen

_TRIAL_BYTES = 64 << 20  # of one copy each way that measures the link (specification, 2.4)
# What a copy takes the host, in times of queueing it alone: its handles, its block and its memory
# are about as much again. An estimate of ours.
_LAUNCHES_PER_COPY = 2


class Transfer:
    """Copies on the thread that computes: what a CPU can do, and the judge of the other kind.

    Args:
        host_bytes: cap of the host pool; None: no cap.
        link: None: measured when it is asked for.
        device: where the storages lie.
    """

    leaving_bytes = 0  # of device memory whose copy is not done

    def __init__(self, device: torch.device, host_bytes: int | None, link: Link | None) -> None:
        self.device = device
        self.pool = HostPool(host_bytes)
        self.arenas: list[torch.Tensor] = []
        self._link = link

    @property
    def link(self) -> Link:
        """Bytes per second each way, whether copies run beside compute, and what one costs the
        host; measured at the first call."""
        if self._link is None:
            with unseen():
                self._link = self._measure()
        return self._link

    def out(self, storage: torch.UntypedStorage) -> Block | None:
        """Copy to the host; None: the cap of the pool is reached."""
        block = self.pool.reserve(storage.nbytes())
        if block is not None:
            with unseen():
                self._copy_out(storage, block)
        return block

    def back(self, block: Block, num_bytes: int) -> tuple[torch.UntypedStorage, Any]:
        """New device memory for the bytes of a block, which is free afterwards, and what to
        ``wait`` for before they are read; None: they are there.

        Call it with the dispatch mode active: the new memory is counted, the copy is not seen.
        """
        storage = torch.empty(num_bytes, dtype=torch.uint8, device=self.device).untyped_storage()
        with unseen():
            arrival = self._copy_back(block, storage)
        self.release(block)
        return storage, arrival

    def wait(self, arrival: Any) -> None:
        """Let what computes from now on come after this arrival."""

    def release(self, block: Block) -> None:
        """Give a block of host memory back to the pool; its bytes are lost."""
        self.pool.release(block)

    def settle(self, *, must_free: float = 0) -> None:
        """Free device memory whose copy to the host is done; ``must_free`` bytes at least, as far
        as so many are leaving."""

    def close(self) -> None:
        """Free all host memory; blocks that are still out are worthless afterwards."""
        self.arenas.clear()
        self.pool = HostPool(self.pool.cap_bytes)

    def _host(self, block: Block) -> torch.Tensor:
        for size in self.pool.arena_sizes[len(self.arenas):]:
            self.arenas.append(self._new_arena(size))
        return self.arenas[block.arena][block.offset:block.offset + block.num_bytes]

    def _new_arena(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def _copy_out(self, storage: torch.UntypedStorage, block: Block) -> None:
        self._copy(self._host(block), as_bytes(storage))

    def _copy_back(self, block: Block, storage: torch.UntypedStorage) -> Any:
        self._copy(as_bytes(storage), self._host(block))

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def _measure(self) -> Link:
        near = torch.empty(_TRIAL_BYTES, dtype=torch.uint8, device=self.device)
        far = self._new_arena(_TRIAL_BYTES)
        return Link(_rate(far, near), _rate(near, far), overlaps=False)


@dataclass
class _Reader:
    """A copy back: it reads the block until ``event``; the memory that it fills stays ours until
    then, or until the compute stream waits for it."""

    event: torch.cuda.Event
    block: Block
    storage: torch.UntypedStorage | None


class CudaTransfer(Transfer):
    """Copies on two side streams beside the computation, through pinned memory.

    Written against faults of others: the compute stream is taken before
    a side stream's context is entered (torchtitan PR 2581); device memory is held in a stash
    until its copy has ended, without ``record_stream`` (TRL 5700: the stash is emptied at the end
    of a step); a host block is reused only after the copy that read it (torchtune 1867).

    The host is ahead of the device by as many operators as the queue holds, and never waits here:
    the allocator gives freed memory to what the compute stream runs later, so it is enough that
    this stream waits for the copy.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._index = self.device.index  # torch finds the current stream of a number in no time
        self.to_host = torch.cuda.Stream(self.device)
        self.to_device = torch.cuda.Stream(self.device)
        self.stash: list[tuple[torch.cuda.Event, torch.UntypedStorage]] = []
        self.written: dict[Block, torch.cuda.Event] = {}  # copies to the host
        self.readers: list[_Reader] = []

    @property
    def leaving_bytes(self) -> int:
        """Device memory held in the stash until its copy to the host has ended."""
        return sum(storage.nbytes() for _, storage in self.stash)

    def out(self, storage: torch.UntypedStorage) -> Block | None:
        """Begin to copy to the host; None: the cap of the pool is reached."""
        self.settle()  # blocks that have been read since can be had again
        return super().out(storage)

    def settle(self, *, must_free: float = 0) -> None:
        """Free device memory whose copy to the host is done, and host blocks whose copy back is.

        For ``must_free`` bytes, the oldest first, the compute stream waits where it must.
        """
        num_gone, freed, awaited = 0, 0, None
        for event, storage in self.stash:  # done in this order
            if awaited is not None or not event.query():
                if freed >= must_free:
                    break
                awaited = event
            num_gone, freed = num_gone + 1, freed + storage.nbytes()
        if awaited is not None:
            torch.cuda.current_stream(self._index).wait_event(awaited)
        self._free([storage for _, storage in self.stash[:num_gone]])
        del self.stash[:num_gone]
        while self.readers and self.readers[0].event.query():
            self.pool.release(self.readers.pop(0).block)

    def wait(self, arrival: torch.cuda.Event) -> None:
        """The compute stream goes on only after this copy back; the host does not wait."""
        torch.cuda.current_stream(self._index).wait_event(arrival)
        last = next((index for index, reader in enumerate(self.readers)
                     if reader.event is arrival), -1)
        for reader in self.readers[:last + 1]:  # copies run in this order
            reader.storage = None

    def release(self, block: Block) -> None:
        """Give the block back to the pool, later if a copy still reads it."""
        self.written.pop(block, None)
        if not any(reader.block is block for reader in self.readers):
            self.pool.release(block)

    def close(self) -> None:
        """Wait for all copies, then free all host memory and what was held for them."""
        torch.cuda.synchronize(self.device)
        self.stash.clear()
        self.readers.clear()
        self.written.clear()
        super().close()

    def _free(self, storages: list[torch.UntypedStorage]) -> None:
        """What the compute stream runs from now on may have this memory."""
        storages.clear()

    def _new_arena(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    @contextmanager
    def _beside(self, stream: torch.cuda.Stream, compute: torch.cuda.Stream) -> Iterator[None]:
        """What is queued inside goes to a side stream; ``compute`` is the current one outside.

        As ``torch.cuda.stream``, which asks twice what kinds of device there are: most of what a
        copy cost the host.
        """
        device = torch.cuda.current_device()
        torch.cuda.set_stream(stream)
        try:
            yield
        finally:
            torch.cuda.set_stream(compute)
            if device != torch.cuda.current_device():
                torch.cuda.set_device(device)

    def _copy_out(self, storage: torch.UntypedStorage, block: Block) -> None:
        compute = torch.cuda.current_stream(self._index)
        made = compute.record_event()
        host = self._host(block)
        with self._beside(self.to_host, compute):
            self.to_host.wait_event(made)
            self._copy(host, as_bytes(storage))
            event = self.to_host.record_event()
        self.written[block] = event
        self.stash.append((event, storage))

    def _copy_back(self, block: Block, storage: torch.UntypedStorage) -> torch.cuda.Event:
        compute = torch.cuda.current_stream(self._index)
        allocated = compute.record_event()
        host = self._host(block)
        with self._beside(self.to_device, compute):
            self.to_device.wait_event(allocated)
            self.to_device.wait_event(self.written[block])
            self._copy(as_bytes(storage), host)
            event = self.to_device.record_event()
        self.readers.append(_Reader(event, block, storage))
        return event

    def _measure(self) -> Link:
        """Both ways at once, as they are where forward ends and backward begins."""
        compute = torch.cuda.current_stream(self._index)
        near = [torch.empty(_TRIAL_BYTES, dtype=torch.uint8, device=self.device)
                for _ in range(2)]
        far = [self._new_arena(_TRIAL_BYTES) for _ in range(2)]
        for _ in range(2):  # the first touches the pages
            torch.cuda.synchronize(self.device)
            start = time.perf_counter()
            spans = [self._timed_copy(self.to_host, compute, far[0], near[0]),
                     self._timed_copy(self.to_device, compute, near[1], far[1])]
            launch_seconds = (time.perf_counter() - start) / 2
            torch.cuda.synchronize(self.device)
        out, into = (1e3 * _TRIAL_BYTES / max(began.elapsed_time(ended), 1e-6)
                     for began, ended in spans)
        return Link(out, into, overlaps=True, host_seconds=_LAUNCHES_PER_COPY * launch_seconds)

    def _timed_copy(self, stream: torch.cuda.Stream, compute: torch.cuda.Stream,
                    target: torch.Tensor, source: torch.Tensor
                    ) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        """Events before and after a copy of bytes (N,) on a side stream."""
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with self._beside(stream, compute):
            began.record(stream)
            self._copy(target, source)
            ended.record(stream)
        return began, ended


def as_bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    """All of a storage as a tensor of bytes, uint8 of shape (N,); no copy."""
    return tensor_on(storage, (torch.uint8, (storage.nbytes(),), (1,), 0))


def _rate(target: torch.Tensor, source: torch.Tensor) -> float:
    """Bytes per second of the second of two copies; the first touches the pages."""
    for _ in range(2):
        start = time.perf_counter()
        target.copy_(source)
        seconds = time.perf_counter() - start
    return source.numel() / max(seconds, 1e-9)
