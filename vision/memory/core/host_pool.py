"""Bookkeeping of the host memory that swapped activations lie in: who has which bytes."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

ALIGNMENT = 512  # bytes; what torch's CUDA allocator rounds to, so that copies stay aligned
ARENA_BYTES = 64 * 2**20  # our choice: pinning is slow, so it is done in large pieces


@dataclass(frozen=True, slots=True)
class Block:
    """``num_bytes`` at ``offset`` of an arena, as asked for; it occupies whole ALIGNMENTs."""

    arena: int
    offset: int
    num_bytes: int


class HostPool:
    """Blocks in arenas that are made when they are needed and stay.

    Args:
        cap_bytes: most bytes of all arenas together; None: no cap.
        arena_bytes: of an arena; a larger request gets one of its own size, and the last arena
            under a cap may be smaller.
    """

    def __init__(self, cap_bytes: int | None = None, arena_bytes: int = ARENA_BYTES) -> None:
        assert arena_bytes > 0 and (cap_bytes is None or cap_bytes >= 0)
        self.cap_bytes, self.arena_bytes = cap_bytes, _round_up(arena_bytes)
        self.arena_sizes: list[int] = []
        self.used_bytes = self.peak_bytes = 0  # in whole ALIGNMENTs
        self._free: list[list[tuple[int, int]]] = []  # by arena: (offset, size), sorted, apart
        self._taken: set[Block] = set()

    def reserve(self, num_bytes: int) -> Block | None:
        """The first place that is large enough; None: the cap would be passed."""
        assert num_bytes > 0, num_bytes
        size = _round_up(num_bytes)
        arena, index = self._find(size)
        if arena is None:
            if not self._grow(size):
                return None
            arena, index = len(self.arena_sizes) - 1, 0
        free = self._free[arena]
        offset, room = free[index]
        if room > size:
            free[index] = (offset + size, room - size)
        else:
            del free[index]
        self.used_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        block = Block(arena, offset, num_bytes)
        self._taken.add(block)
        return block

    def release(self, block: Block) -> None:
        """Give a block back; its neighbours that are free join it."""
        assert block in self._taken, f'{block} is not taken'
        self._taken.remove(block)
        free, offset, size = self._free[block.arena], block.offset, _round_up(block.num_bytes)
        self.used_bytes -= size
        index = bisect_left(free, (offset, 0))
        if index < len(free) and free[index][0] == offset + size:
            size += free.pop(index)[1]
        if index and sum(free[index - 1]) == offset:
            offset, before = free.pop(index - 1)
            size += before
        insort(free, (offset, size))

    def reset_peak(self) -> None:
        """Let ``peak_bytes`` be of what comes from now on."""
        self.peak_bytes = self.used_bytes

    def _find(self, size: int) -> tuple[int | None, int]:
        for arena, free in enumerate(self._free):
            for index, (_, room) in enumerate(free):
                if room >= size:
                    return arena, index
        return None, 0

    def _grow(self, size: int) -> bool:
        arena = max(size, self.arena_bytes)
        if self.cap_bytes is not None:
            left = (self.cap_bytes - sum(self.arena_sizes)) // ALIGNMENT * ALIGNMENT
            arena = min(arena, left)
            if arena < size:
                return False
        self.arena_sizes.append(arena)
        self._free.append([(0, arena)])
        return True


def _round_up(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
