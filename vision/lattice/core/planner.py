"""Which frames between two keyframes are propagated, in which order, and which are interpolated.

Scale-Time Lattice (arXiv:1804.05472): stage by stage, the middle of each open span is filled from
both of its ends; what is still empty after the last stage is interpolated linearly between its
filled neighbours. Pure integers: no boxes, no networks.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """Fill frame ``mid`` from frames ``left`` and ``right``; stage 0 is the coarsest."""

    stage: int
    left: int
    mid: int
    right: int


@dataclass(frozen=True)
class Fill:
    """Interpolate ``frame`` between its nearest filled frames ``before`` and ``after``."""

    frame: int
    before: int
    after: int


@dataclass(frozen=True)
class IntervalPlan:
    """How every frame strictly between keyframes ``left`` and ``right`` comes about.

    Args:
        nodes: frames to propagate, coarse first, left to right within a stage.
        fills: the remaining frames in order.
    """

    left: int
    right: int
    nodes: tuple[Node, ...]
    fills: tuple[Fill, ...]

    @property
    def knots(self) -> tuple[int, ...]:
        """The keyframes and the propagated frames, in order."""
        return tuple(sorted([self.left, self.right, *(node.mid for node in self.nodes)]))


def plan_midpoints(left: int, right: int, *, num_stages: int) -> list[tuple[int, int, int]]:
    """(left, mid, right) frames to propagate, coarse first; at most 2**num_stages - 1 of them.

    The middle is rounded down. A span without a frame inside is left alone, so that odd and
    short intervals need no special case (our choice: tails of a video have any length).

    Raises:
        ValueError: right <= left, or num_stages < 0.
    """
    return [(node.left, node.mid, node.right) for node in _nodes(left, right, num_stages)]


def plan_interval(left: int, right: int, *, num_stages: int) -> IntervalPlan:
    """The whole plan of one interval; errors as ``plan_midpoints``.

    Each frame strictly inside stands exactly once, in a node or in a fill.
    """
    nodes = _nodes(left, right, num_stages)
    knots = sorted([left, right, *(node.mid for node in nodes)])
    fills = [Fill(frame, before, after) for before, after in zip(knots, knots[1:], strict=False)
             for frame in range(before + 1, after)]
    return IntervalPlan(left, right, tuple(nodes), tuple(fills))


def _nodes(left: int, right: int, num_stages: int) -> list[Node]:
    if right <= left:
        raise ValueError(f'the right keyframe must come after the left one, got {left}..{right}')
    if num_stages < 0:
        raise ValueError(f'num_stages must be >= 0, got {num_stages}')
    nodes, spans = [], [(left, right)]
    for stage in range(num_stages):
        spans = [(a, b) for a, b in spans if b - a >= 2]
        level = [Node(stage, a, (a + b) // 2, b) for a, b in spans]
        nodes += level
        spans = [half for node in level
                 for half in ((node.left, node.mid), (node.mid, node.right))]
    return nodes
