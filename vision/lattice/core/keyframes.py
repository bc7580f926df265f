"""Keyframe policies: on which frames the detector runs.

Every policy has a first grid, a keyframe each ``gap_frames`` frames; when both ends of an
interval are detected, ``split`` says whether its middle frame is detected too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

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
        """In [0, 1], measured now; a box as large as ``size_cap`` of the frame is as easy as can
        be."""
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
        """Never: the first grid is all."""
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
        """Whether the easiness is below the threshold; an interval of gap 1 has no middle
        frame."""
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
        self._values: deque[float] = deque(maxlen=self.WINDOW)
        self._debt = 0.0
        self.aim(gap_frames, target_keyframe_rate)

    def aim(self, gap_frames: int, target_keyframe_rate: float) -> None:
        """Meet another rate from now on, on intervals of another length."""
        self._rate = target_keyframe_rate
        self._share = target_keyframe_rate * gap_frames - 1

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


class CostController:
    """The keyframe rate that measured costs allow, so that a mean cost per frame is met.

    Our choice. The rate is (target - the rest of a frame's cost) / cost of a detection, both as
    running means over about ``HORIZON`` frames; what was spent too much or too little so far is
    won back over as many frames. So the mean holds also where the costs change on the way, and
    where a detection costs less than it takes because it runs beside other work.
    """

    HORIZON = 100.0
    NUM_DETECTIONS = 10.0  # of the running mean of a detection's cost

    def __init__(self, lowest_rate: float, target_ms: float) -> None:
        _check_setting(target_ms > 0, f'a target of {target_ms!r} ms a frame', 'a cost is above 0')
        self.target_ms, self.lowest_rate = target_ms, lowest_rate
        self.rate = min(1.0, 1.5 * lowest_rate)  # until something was measured
        self.num_frames = self.num_lowest = self.num_highest = 0
        self.spent_ms = self._debt_ms = 0.0
        self._detection_ms: float | None = None
        # Sums that fade out: frames, their milliseconds, those of the detections among them.
        self._weight = self._frame_ms = self._detections_ms = 0.0

    @property
    def mean_ms(self) -> float:
        """Milliseconds per frame so far, 0 before the first."""
        return self.spent_ms / max(self.num_frames, 1)

    def observe_detection(self, ms: float) -> None:
        """A detection took so long."""
        mean = ms if self._detection_ms is None else self._detection_ms
        self._detection_ms = mean + (ms - mean) / self.NUM_DETECTIONS
        self._detections_ms += ms

    def observe_frame(self, ms: float) -> None:
        """A frame took so long, with what was detected for it; ``rate`` is set for the
        next ones."""
        keep = 1 - 1 / self.HORIZON
        self._weight = keep * self._weight + 1
        self._frame_ms = keep * self._frame_ms + ms
        self._detections_ms *= keep
        self.num_frames += 1
        self.spent_ms += ms
        # More than this cannot be won back within the horizon: a target out of reach for a while
        # shall not weigh on all that comes after it.
        limit = self.HORIZON * self.target_ms
        self._debt_ms = float(np.clip(self._debt_ms + self.target_ms - ms, -limit, limit))
        if self._detection_ms is None:
            return
        rest_ms = max(self._frame_ms - self._detections_ms, 0.0) / self._weight
        affordable_ms = self.target_ms + self._debt_ms / self.HORIZON - rest_ms
        wanted = affordable_ms / max(self._detection_ms, 1e-6)
        self.rate = float(np.clip(wanted, self.lowest_rate, 1.0))
        self.num_lowest += wanted < self.lowest_rate
        self.num_highest += wanted > 1


class BudgetKeyframes:
    """Splits the hardest intervals so that the mean keyframe rate, or cost, meets a budget.

    A rate counts all frames and keyframes since the policy was made, over several videos
    too (a new policy starts afresh). The keyframes that beginnings, ends and cuts force count;
    in videos so short that these alone exceed the budget it cannot be met.

    A cost is what ``observe_frame`` is told of each frame (``StreamSession`` does it) and what
    detections take: give the engine ``timed(detector)``. The first grid then follows the rate, a
    keyframe each ``gap_frames`` frames or more; a target that no rate in between can meet is met
    as nearly as it can be, and ``account`` says so.

    Args:
        gap_frames: the first grid, T; with a cost the widest one.
        target_keyframe_rate: keyframes per frame, from 1 / T to 2 / T.
        target_ms: milliseconds per frame, instead.
        target_fps: frames per second, instead.
    """

    max_depth = 1

    def __init__(self, gap_frames: int, target_keyframe_rate: float | None = None, *,
                 target_ms: float | None = None, target_fps: float | None = None,
                 beta: float = SIZE_CAP) -> None:
        targets = dict(target_keyframe_rate=target_keyframe_rate, target_ms=target_ms,
                       target_fps=target_fps)
        given = [name for name, value in targets.items() if value is not None]
        _check_setting(len(given) == 1, f'{" and ".join(given) or "no target"}',
                       f'a budget has one of {", ".join(targets)}')
        _check_setting(targets[given[0]] > 0, f'{given[0]}={targets[given[0]]!r}',
                       'a target is above 0')
        _check_setting(beta > 0, f'beta={beta!r}', 'a size is above 0')
        self.beta = beta
        self._widest_gap, self._target = check_gap(gap_frames), (given[0], targets[given[0]])
        self._num_frames = self._num_keyframes = 0
        self._cost: CostController | None = None
        if target_keyframe_rate is None:
            self._cost = CostController(1 / gap_frames, target_ms or 1e3 / target_fps)
            target_keyframe_rate = self._cost.rate
        self._rates = RateController(gap_frames, target_keyframe_rate)

    @property
    def gap_frames(self) -> int:
        """Half of the intervals of this grid are halved to meet the rate: the hard ones."""
        if self._cost is None:
            return self._widest_gap
        return max(1, min(self._widest_gap, int(1.5 / self._cost.rate)))

    def timed(self, detector: Any, clock: Callable[[], float] = time.perf_counter
              ) -> TimedDetector:
        """The same detector; the milliseconds of its calls are observed.

        Args:
            clock: seconds.
        """
        return TimedDetector(detector, self.observe_detection, clock)

    def observe_detection(self, ms: float) -> None:
        """One detection took so many milliseconds, in whichever thread."""
        if self._cost is not None:
            self._cost.observe_detection(ms)

    def observe_frame(self, ms: float) -> None:
        """One frame took so many milliseconds in all, detections included."""
        if self._cost is not None:
            self._cost.observe_frame(ms)

    def start_segment(self) -> None:
        """One frame, which is a keyframe whatever the budget says, is spent."""
        self._spend(num_frames=1)

    def split(self, interval: Interval) -> bool:
        """Whether this interval is among the hardest that the budget pays for. Its frames, and the
        keyframe at its end, count as spent either way."""
        if self._cost is not None:
            self._rates.aim(interval.gap_frames, self._cost.rate)
        self._spend(interval.gap_frames)
        is_split = interval.gap_frames >= 2 and self._rates.pick(interval.easiness(self.beta))
        self._num_keyframes += is_split
        return is_split

    def _spend(self, num_frames: int) -> None:
        self._rates.spend_keyframe(num_frames)
        self._num_frames += num_frames
        self._num_keyframes += 1

    def account(self) -> str:
        """One line: what was asked for, what came, and why it is not the same."""
        name, target = self._target
        if self._cost is None:
            rate = self._num_keyframes / max(self._num_frames, 1)
            return f'{rate:.1%} keyframes of {target:.1%} asked for'
        cost = self._cost
        came, asked = f'{cost.mean_ms:.2f} ms', f'{target:g} ms'
        if name == 'target_fps':
            came, asked = f'{1e3 / max(cost.mean_ms, 1e-6):.1f} fps', f'{target:g} fps'
        line, half = f'{came} of {asked} asked for', cost.num_frames / 2
        if cost.num_lowest > half:
            line += f'; a keyframe each {self._widest_gap} frames is the least'
        elif cost.num_highest > half:
            line += '; a keyframe on each frame is the most'
        return line


class TimedDetector:
    """A detector whose calls are timed.

    Args:
        observe: called with the milliseconds of each call.
        clock: seconds.
    """

    def __init__(self, detector: Any, observe: Callable[[float], None],
                 clock: Callable[[], float]) -> None:
        self._detector, self._observe, self._clock = detector, observe, clock

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the detector's classes, in label order."""
        return self._detector.classes

    def detect(self, image_bgr: np.ndarray) -> FrameBoxes:
        """The detector's boxes on a frame (H, W, 3) uint8 BGR; ``observe`` is told how long they
        took."""
        start = self._clock()
        boxes = self._detector.detect(image_bgr)
        self._observe((self._clock() - start) * 1e3)
        return boxes


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
        """One frame, which is a keyframe in any case, is spent."""
        self._controller.spend_keyframe(num_frames=1)

    def split(self, interval: Interval) -> bool:
        """Whether the lot falls on this interval."""
        self._controller.spend_keyframe(interval.gap_frames)
        return interval.gap_frames >= 2 and self._controller.pick(self._lots.random())
