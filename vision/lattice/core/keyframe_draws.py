"""Keyframes drawn by lot, as many as a policy chose: that is what its choice is judged by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from vision.lattice.core.keyframes import Interval, KeyframePolicy


class WatchedKeyframes:
    """A policy, and what it answered: the gaps of the first grid in order, the number of splits.

    The engine walks halves from left to right; a half is asked about as long as it is less than
    ``max_depth`` deep, so the depth of each question is known.
    """

    def __init__(self, policy: KeyframePolicy) -> None:
        self._policy = policy
        self.gap_frames, self.max_depth = policy.gap_frames, policy.max_depth
        self.grid_gaps: list[int] = []
        self.num_splits = 0
        self._depths: list[int] = []  # of the questions to come

    def start_segment(self) -> None:
        """Passed on to the policy."""
        self._policy.start_segment()

    def split(self, interval: Interval) -> bool:
        """The policy's answer, which is noted."""
        depth = self._depths.pop() if self._depths else 0
        if depth == 0:
            self.grid_gaps.append(interval.gap_frames)
        answer = self._policy.split(interval)
        self.num_splits += answer
        if answer and depth + 1 < self.max_depth:
            self._depths += [depth + 1] * 2
        return answer


class DrawnKeyframes:
    """As many splits as a watched policy made on the same video, drawn by lot.

    ``RandomKeyframes`` meets a rate over a long video; on a few intervals the difference of a
    keyframe or two would be read as a gain.
    """

    def __init__(self, watched: WatchedKeyframes, seed: int) -> None:
        self.gap_frames, self.max_depth = watched.gap_frames, watched.max_depth
        self._answers = self._drawn(watched, np.random.default_rng(seed))

    def start_segment(self) -> None:
        """Nothing to remember."""

    def split(self, interval: Interval) -> bool:
        """The next of the answers drawn by lot; never, once they are used up."""
        return next(self._answers, False)

    def _drawn(self, watched: WatchedKeyframes, rng: np.random.Generator) -> Iterator[bool]:
        roots = [_Part(gap, 0) for gap in watched.grid_gaps]
        leaves = [part for part in roots if part.gap >= 2]
        for _ in range(watched.num_splits):
            part = leaves.pop(rng.integers(len(leaves)))
            mid, depth = part.gap // 2, part.depth + 1
            part.halves = [_Part(mid, depth), _Part(part.gap - mid, depth)]
            leaves += [half for half in part.halves if half.gap >= 2 and depth < self.max_depth]
        return iter([answer for root in roots for answer in self._walk(root)])

    def _walk(self, part: _Part) -> Iterator[bool]:
        if part.depth and part.depth >= self.max_depth:
            return
        yield bool(part.halves)
        for half in part.halves:
            yield from self._walk(half)


@dataclass
class _Part:
    gap: int
    depth: int
    halves: list[_Part] = field(default_factory=list)
