"""Keyframe policies: on which frames the detector runs.

Every policy has a first grid, a keyframe each ``gap_frames`` frames; when both ends of an
interval are detected, ``split`` says whether its middle frame is detected too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vision.common.core.errors import VisionError
from vision.lattice.core.easiness import SIZE_CAP
from vision.lattice.core.structures import FrameBoxes


@dataclass(frozen=True, eq=False)
class Interval:
    """Two consecutive keyframes as a policy sees them.

    Args:
        left, right: their boxes.
        gap_frames: frames from one to the other.
        measure: gives the easiness, in [0, 1], for a size cap: the filler's own measure of how
            safely its inner frames can be filled.
    """

    left: FrameBoxes
    right: FrameBoxes
    gap_frames: int
    measure: Callable[[float], float]

    def easiness(self, size_cap: float = SIZE_CAP) -> float:
        return self.measure(size_cap)


class KeyframePolicy(Protocol):
    """The choice of keyframes; one object serves one engine.

    Attributes:
        gap_frames: frames from one keyframe of the first grid to the next, >= 1.
        max_depth: how often an interval may be halved; ``split`` is asked at each depth below.
    """

    gap_frames: int
    max_depth: int

    def start_segment(self) -> None:
        """A keyframe without an interval before it: a video begins, or a scene after a cut."""

    def split(self, interval: Interval) -> bool:
        """Whether the middle frame becomes a keyframe.

        Asked once for every interval of the first grid, in order; an interval of gap 1 cannot be
        split and its answer is ignored.
        """


def check_gap(gap_frames: int) -> int:
    """gap_frames itself, refused with ``VIS-CONFIG-105`` unless it is a whole number >= 1."""
    _check_setting(isinstance(gap_frames, int) and gap_frames >= 1, f'gap_frames={gap_frames!r}',
                   'the distance of keyframes is a whole number of frames; 1 detects on each')
    return gap_frames


def _check_setting(is_allowed: bool, what: str, why: str) -> None:
    if not is_allowed:
        raise VisionError('VIS-CONFIG-105', what, where='keyframes', why=why,
                          do='change this setting of the keyframe policy')


class UniformKeyframes:
    """A keyframe every ``gap_frames`` frames; 1 is detection on every frame."""

    max_depth = 0

    def __init__(self, gap_frames: int) -> None:
        self.gap_frames = check_gap(gap_frames)

    def start_segment(self) -> None:
        """Nothing to remember."""

    def split(self, interval: Interval) -> bool:
        return False


class AdaptiveKeyframes:
    """One more keyframe in the middle of each interval whose easiness is below ``threshold``.

    Args:
        gap_frames: the first grid.
        threshold: in [0, 1]; 0 never splits.
        max_depth: how often an interval may be halved (the paper's single pass is 1).
        beta: a box of this share of the frame's size is as easy as can be (``easiness``).
    """

    def __init__(self, gap_frames: int, threshold: float, *, max_depth: int = 1,
                 beta: float = SIZE_CAP) -> None:
        _check_setting(0 <= threshold <= 1, f'threshold={threshold!r}', 'easiness is in [0, 1]')
        _check_setting(isinstance(max_depth, int) and max_depth >= 1, f'max_depth={max_depth!r}',
                       'an interval is halved a whole number of times, at least once')
        _check_setting(beta > 0, f'beta={beta!r}', 'a size is above 0')
        self.gap_frames = check_gap(gap_frames)
        self.threshold = threshold
        self.max_depth = max_depth
        self.beta = beta

    def start_segment(self) -> None:
        """Nothing to remember."""

    def split(self, interval: Interval) -> bool:
        return interval.gap_frames >= 2 and interval.easiness(self.beta) < self.threshold


class RateController:
    """Picks a share of the intervals, the hardest first, so that a keyframe rate is met.

    Our choice. The threshold is a quantile of the last ``WINDOW`` values; which quantile is
    steered by the debt, the keyframes that the rate promised so far less those that were spent.
    Because the debt stays within ``MAX_DEBT`` + 1 keyframes while splitting can still repay it,
    the mean rate is off by at most that over the number of keyframes. It sees only the past, and
    the same intervals always give the same answers.
    """

    WINDOW = 256
    MAX_DEBT = 8.0

    def __init__(self, gap_frames: int, target_keyframe_rate: float) -> None:
        lowest, highest = 1 / gap_frames, min(1.0, 2 / gap_frames)
        _check_setting(lowest <= target_keyframe_rate <= highest,
                       f'target_keyframe_rate={target_keyframe_rate!r}',
                       f'with gap_frames={gap_frames} and one halving the rate can be '
                       f'{lowest:.4f} to {highest:.4f} keyframes per frame')
        self._rate = target_keyframe_rate
        self._share = target_keyframe_rate * gap_frames - 1
        self._values: deque[float] = deque(maxlen=self.WINDOW)
        self._debt = 0.0

    def spend_keyframe(self, num_frames: int) -> None:
        """``num_frames`` more frames have come, and one of them is a keyframe."""
        self._debt += self._rate * num_frames - 1

    def pick(self, value: float) -> bool:
        """Whether to spend one more keyframe on an interval of this easiness."""
        self._values.append(value)
        share = np.clip(self._share + self._debt / (2 * self.MAX_DEBT), 0, 1)
        threshold = np.quantile(self._values, share)
        # Equal values (a still camera, no objects) are told apart by the debt alone.
        is_picked = value < threshold or (value == threshold and self._debt >= 0.5)
        if abs(self._debt) > self.MAX_DEBT:
            is_picked = self._debt > 0
        self._debt -= is_picked
        return bool(is_picked)


class BudgetKeyframes:
    """Splits the hardest intervals so that the mean keyframe rate meets a budget.

    The rate counts all frames and keyframes since the policy was made, over several videos
    too (a new policy starts afresh). The keyframes that beginnings, ends and cuts force count;
    in videos so short that these alone exceed the budget it cannot be met.

    Args:
        gap_frames: the first grid, T.
        target_keyframe_rate: keyframes per frame, from 1 / T to 2 / T.
    """

    max_depth = 1

    def __init__(self, gap_frames: int, target_keyframe_rate: float, *,
                 beta: float = SIZE_CAP) -> None:
        _check_setting(beta > 0, f'beta={beta!r}', 'a size is above 0')
        self.gap_frames = check_gap(gap_frames)
        self.beta = beta
        self._controller = RateController(gap_frames, target_keyframe_rate)

    def start_segment(self) -> None:
        self._controller.spend_keyframe(num_frames=1)

    def split(self, interval: Interval) -> bool:
        self._controller.spend_keyframe(interval.gap_frames)
        return interval.gap_frames >= 2 and self._controller.pick(interval.easiness(self.beta))


class RandomKeyframes:
    """As many keyframes as ``BudgetKeyframes``, on intervals drawn by lot: a control.

    What an adaptive policy gains over this one, it gains by where its keyframes are.

    Args:
        gap_frames, target_keyframe_rate: as ``BudgetKeyframes``.
        seed: of the lots.
    """

    max_depth = 1

    def __init__(self, gap_frames: int, target_keyframe_rate: float, *, seed: int = 0) -> None:
        self.gap_frames = check_gap(gap_frames)
        self._controller = RateController(gap_frames, target_keyframe_rate)
        self._lots = np.random.default_rng(seed)

    def start_segment(self) -> None:
        self._controller.spend_keyframe(num_frames=1)

    def split(self, interval: Interval) -> bool:
        self._controller.spend_keyframe(interval.gap_frames)
        return interval.gap_frames >= 2 and self._controller.pick(self._lots.random())
