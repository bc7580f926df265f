"""What a simulated step says: times, who waits for whom, memory, a trace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vision.simulator.core import memory
from vision.simulator.core.memory import (
    BLOCKS,
    TENSORS,
    Allocator,
    Curve,
    Lifetime,
    Peak,
    Verdict,
)
from vision.simulator.core.program import COMPUTE, STREAMS, Program
from vision.simulator.core.trace import chrome_trace


@dataclass(frozen=True)
class Outcome:
    """A program in time: seconds from the start of the step, by node."""

    program: Program
    starts: tuple[float, ...]
    ends: tuple[float, ...]

    @cached_property
    def makespan(self) -> float:
        """Seconds of the whole step, until its last node ends."""
        return max(self.ends, default=0.0)

    @cached_property
    def nodes_of(self) -> tuple[tuple[int, ...], ...]:
        """Nodes that each rank takes part in, by number, in the order of the program."""
        found: list[list[int]] = [[] for _ in range(self.program.num_ranks)]
        for number, node in enumerate(self.program.nodes):
            for rank in node.ranks:
                found[rank].append(number)
        return tuple(map(tuple, found))

    @cached_property
    def busy(self) -> tuple[dict[str, float], ...]:
        """Seconds in which something runs, by rank, of each stream that it uses."""
        return tuple({stream: _length(spans) for stream in STREAMS
                      if (spans := self._spans(rank, (stream,)))}
                     for rank in range(self.program.num_ranks))

    @property
    def bubble(self) -> float:
        """Share of the step in which the rank that computes least does not."""
        return 1 - min(busy.get(COMPUTE, 0.0) for busy in self.busy) / (self.makespan or 1.0)

    @cached_property
    def exposed(self) -> tuple[float, ...]:
        """Seconds in which a rank does not compute while something runs on another of its streams,
        to the end of the step. A collective that waits for other ranks does not run yet: that time
        is neither busy nor exposed."""
        others = [stream for stream in STREAMS if stream != COMPUTE]
        found = []
        for rank in range(self.program.num_ranks):
            compute = self._spans(rank, (COMPUTE,))
            found.append(_length(_union([*compute, *self._spans(rank, others)]))
                         - _length(compute))
        return tuple(found)

    @cached_property
    def lifetimes(self) -> list[list[Lifetime]]:
        """Lifetimes of the buffers, by rank."""
        return memory.lifetimes(self.program, self.starts, self.ends)

    def memory(self, rank: int, allocator: Allocator = TENSORS) -> Curve:
        """Memory of a rank over time; of tensors alone, or as an allocator gives them out."""
        return memory.curve(self.lifetimes[rank], allocator)

    def peak(self, rank: int, allocator: Allocator = BLOCKS) -> Peak:
        """The highest moment, and what takes most then."""
        return memory.peak(rank, self.lifetimes[rank], allocator)

    def verdict(self, capacity_bytes: int, allocator: Allocator = BLOCKS) -> Verdict:
        """Whether devices of this size have room, by the rank that needs most."""
        peaks = [self.peak(rank, allocator) for rank in range(self.program.num_ranks)]
        return memory.verdict(peaks, capacity_bytes, allocator)

    def chrome_trace(self, ranks: Sequence[int] | None = None) -> dict[str, Any]:
        """For ui.perfetto.dev and chrome://tracing; of some ranks alone where there are many."""
        return chrome_trace(self, ranks)

    def _spans(self, rank: int, streams: Iterable[str]) -> list[tuple[float, float]]:
        nodes, streams = self.program.nodes, set(streams)
        return _union((self.starts[number], self.ends[number]) for number in self.nodes_of[rank]
                      if nodes[number].stream in streams
                      and self.ends[number] > self.starts[number])


def _union(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans without overlap that cover the same."""
    found: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


def _length(spans: Iterable[tuple[float, float]]) -> float:
    return sum(end - start for start, end in spans)
