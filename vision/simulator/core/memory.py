"""What buffers take over time, by rank, and whether a device has room for it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from vision.common.core.amounts import format_bytes
from vision.simulator.core.program import CATEGORIES, Buffer, Program

# CUDA's caching allocator of torch gives out multiples of this (kMinBlockSize).
BLOCK_BYTES = 512
# Of what a device has; below it a prediction does not tell on which side it is (our choice: the
# error that we allow ourselves).
TIGHT = 0.05
NUM_CULPRITS = 10


@dataclass(frozen=True)
class Allocator:
    """What memory takes beyond its buffers.

    Args:
        block_bytes: each buffer is rounded up to a multiple; 1 counts tensors alone.
        fixed_bytes: of the device's context, its libraries and their communication buffers.
        fragmentation: share of what is in use that is reserved on top of it, 0.05 for a twentieth.
    """

    block_bytes: int = BLOCK_BYTES
    fixed_bytes: float = 0
    fragmentation: float = 0.0

    def __post_init__(self) -> None:
        assert self.block_bytes >= 1 and self.fixed_bytes >= 0 and self.fragmentation >= 0, self

    def rounded(self, num_bytes: int) -> int:
        """Memory that a buffer of ``num_bytes`` takes."""
        return -(-num_bytes // self.block_bytes) * self.block_bytes

    def reserved(self, in_use: int) -> int:
        """Memory that the device must have for this much in use: fragmentation and the fixed part
        on top."""
        return round(self.fixed_bytes + (1 + self.fragmentation) * in_use)


TENSORS = Allocator(block_bytes=1)
BLOCKS = Allocator()


@dataclass(frozen=True)
class Lifetime:
    """Of a buffer. ``begin`` is None if it is there from the start, ``end`` if it stays."""

    name: str
    buffer: Buffer
    begin: float | None
    end: float | None

    def is_there(self, moment: float) -> bool:
        """Whether the buffer is there: from its begin on; at the moment of its end no longer."""
        return (self.begin is None or self.begin <= moment) and \
            (self.end is None or moment < self.end)


@dataclass(frozen=True)
class Curve:
    """Memory of a rank: from ``moments[k]`` on it is ``total[k]`` bytes, of which
    ``categories[name][k]``. It begins at 0."""

    moments: tuple[float, ...]
    total: tuple[int, ...]
    categories: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Peak:
    """The highest moment of a rank, the first of several.

    ``num_bytes`` of rounded buffers, by category, and the largest of them: (name, bytes,
    category).
    """

    rank: int
    moment: float
    num_bytes: int
    categories: dict[str, int]
    culprits: tuple[tuple[str, int, str], ...]


@dataclass(frozen=True)
class Verdict:
    """Does it fit? ``state`` is 'fits', 'tight' (less than 5 % is left) or 'out of memory'.

    Args:
        peak: of the rank that needs most.
        needed_bytes: reserved there; margin: share of ``capacity_bytes`` that is left, negative
            where it does not fit.
    """

    state: str
    peak: Peak
    needed_bytes: int
    capacity_bytes: int
    margin: float

    def __str__(self) -> str:
        top = ', '.join(f'{name} {format_bytes(size)}' for name, size, _ in self.peak.culprits[:3])
        return (f'{self.state}: rank {self.peak.rank} needs {format_bytes(self.needed_bytes)} of '
                f'{format_bytes(self.capacity_bytes)} at {self.peak.moment:.4g} s; largest: {top}')


def lifetimes(program: Program, starts: Sequence[float], ends: Sequence[float]
              ) -> list[list[Lifetime]]:
    """Buffers by rank. One that several nodes end goes with the last of them; one that several
    begin comes with the first."""
    begins: dict[str, float] = {}
    goes: dict[str, float] = {}
    for node, start, end in zip(program.nodes, starts, ends, strict=True):
        for name in node.begins:
            begins[name] = min(begins.get(name, start), start)
        for name in node.ends:
            goes[name] = max(goes.get(name, end), end)
    unknown = (begins.keys() | goes.keys()) - program.buffers.keys()
    assert not unknown, f'nodes name buffers that the program has not: {sorted(unknown)[:3]}'
    found: list[list[Lifetime]] = [[] for _ in range(program.num_ranks)]
    for name, buffer in program.buffers.items():
        begin, end = begins.get(name), goes.get(name)
        assert begin is None or end is None or begin <= end, f'{name} ends before it begins'
        assert buffer.category in CATEGORIES, (name, buffer.category)
        found[buffer.rank].append(Lifetime(name, buffer, begin, end))
    return found


def curve(lives: Sequence[Lifetime], allocator: Allocator = TENSORS) -> Curve:
    """Memory over time. What goes and what comes at the same moment take turns: first goes what
    has ended."""
    changes: dict[float, Counter[str]] = defaultdict(Counter)
    changes[0.0]
    for life in lives:
        size, category = allocator.rounded(life.buffer.num_bytes), life.buffer.category
        changes[life.begin or 0.0][category] += size
        if life.end is not None:
            changes[life.end][category] -= size
    moments = sorted(changes)
    used = [name for name in CATEGORIES if any(life.buffer.category == name for life in lives)]
    categories = {name: tuple(accumulate(changes[moment][name] for moment in moments))
                  for name in used}
    total = tuple(accumulate(sum(changes[moment].values()) for moment in moments))
    return Curve(tuple(moments), total, categories)


def peak(rank: int, lives: Sequence[Lifetime], allocator: Allocator = BLOCKS) -> Peak:
    """The highest moment of a rank, the first of several, with the largest buffers of
    that moment."""
    over = curve(lives, allocator)
    num_bytes = max(over.total)
    at = over.total.index(num_bytes)
    moment = over.moments[at]
    sizes = [(life.name, allocator.rounded(life.buffer.num_bytes), life.buffer.category)
             for life in lives if life.is_there(moment)]
    sizes.sort(key=lambda each: (-each[1], each[0]))
    return Peak(rank, moment, num_bytes, {name: own[at] for name, own in over.categories.items()},
                tuple(sizes[:NUM_CULPRITS]))


def verdict(peaks: Sequence[Peak], capacity_bytes: int, allocator: Allocator = BLOCKS
            ) -> Verdict:
    """Of the rank that needs most.

    Args:
        peaks: by rank, of the same allocator.
        capacity_bytes: of a device, all of it.
    """
    highest = max(peaks, key=lambda each: each.num_bytes)
    needed = allocator.reserved(highest.num_bytes)
    margin = 1 - needed / capacity_bytes
    state = 'out of memory' if margin < 0 else 'tight' if margin < TIGHT else 'fits'
    return Verdict(state, highest, needed, capacity_bytes, margin)
