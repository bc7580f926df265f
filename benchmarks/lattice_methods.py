"""The methods that lattice_tradeoff.py compares: each one a row, built by name."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vision.common.core.boxes import iou_matrix
from vision.common.core.errors import VisionError
from vision.lattice.core.cocovid import CocoFrame
from vision.lattice.core.engine import LatticeEngine
from vision.lattice.core.filling import Filler
from vision.lattice.core.keyframes import (
    AdaptiveKeyframes,
    Interval,
    KeyframePolicy,
    UniformKeyframes,
)
from vision.lattice.core.structures import FrameBoxes, FrameResult
from vision.lattice.runtime.methods import build_engine
from vision.lattice.runtime.rivals import RIVALS, build_rival, cut_on_small

# Name: what it is. adaptive and random come by a threshold, the others by name.
METHODS = {
    'detect': 'the detector on every frame',
    'shipped': 'the lattice with its default keyframes',
    'flow': 'the lattice, a keyframe every T frames',
    'flow-causal': 'the same without look-ahead, the grid alone',
    'adaptive': 'the lattice, more keyframes where it is hard',
    'random': 'as many, drawn by lot',
    'hold': 'boxes of the last keyframe stand',
    'linear': 'straight lines between linked keyframe boxes',
    'lk': 'sparse flow to one middle frame, or three above T = 8, then lines',
    'dis': 'dense flow (DIS) from both keyframes, blended',
    'bytetrack': 'ByteTrack on the keyframes, its prediction between them',
    'bytetrack-offline': 'the same, straight lines between them',
    'paper': 'the networks of the paper',
    'oracle': 'perfect positions, links of linear',
}
BY_THRESHOLD = ('adaptive', 'random')
CAUSAL = ('hold', 'flow-causal')  # every frame is finished at once
UNTIMED = ('oracle', 'random')  # bounds and controls: nobody would run them
WITHOUT_GAP = ('detect', 'shipped')


@dataclass(frozen=True)
class Setting:
    """One row: method, frames between keyframes (0: the method's own), threshold of adaptive
    keyframes, side of the detector's input in px (None: as given)."""

    method: str
    gap: int = 0
    threshold: float | None = None
    input_size: int | None = None

    @property
    def name(self) -> str:
        if self.method in WITHOUT_GAP:
            size = '' if self.input_size is None else f'-in{self.input_size}'
            return ('t1' if self.method == 'detect' else 'default') + size
        return f't{self.gap}' + ('' if self.threshold is None else f'-e{self.threshold:g}')


def choose_settings(methods: Sequence[str], gaps: Sequence[int], *,
                    thresholds: Sequence[float] = (),
                    input_sizes: Sequence[int] = ()) -> list[Setting]:
    """Rows in the order of the methods; a gap of 1 is ``detect``. Thresholds add ``adaptive`` and
    ``random`` after ``flow``.

    Raises:
        VisionError: VIS-CONFIG-107 unknown method.
    """
    for method in methods:
        if method not in METHODS or method in BY_THRESHOLD:
            raise VisionError('VIS-CONFIG-107', f'method={method!r} is not known',
                              where='--methods', why='the methods are ' + ', '.join(
                                  name for name in METHODS if name not in BY_THRESHOLD),
                              do='use these; --adaptive THR adds rows of adaptive keyframes')
    settings = []
    for method in methods:
        if method in WITHOUT_GAP:
            settings.append(Setting(method))
            sizes = input_sizes if method in ('detect', 'shipped') else ()
            settings += [Setting(method, input_size=size) for size in sizes]
            continue
        settings += [Setting(method, gap) for gap in gaps]
        if method == 'flow':
            settings += [Setting(name, gap, threshold) for gap in gaps for threshold in thresholds
                         for name in BY_THRESHOLD]
    return list(dict.fromkeys(settings))


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
        self._policy.start_segment()

    def split(self, interval: Interval) -> bool:
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
    halves: list[_Part] = dataclasses.field(default_factory=list)


def build(setting: Setting, detector, *, paper: Callable[[], Filler] | None = None,
          policy: KeyframePolicy | None = None):
    """A new engine of a row.

    Args:
        paper: makes the filler of the paper's networks.
        policy: of ``adaptive`` and ``random``.
    """
    method = setting.method
    if method in RIVALS:
        return build_rival(method, detector, setting.gap)
    if method == 'paper':
        return LatticeEngine(detector, paper(), UniformKeyframes(setting.gap),
                             cut_detector=cut_on_small)
    if method.startswith('shipped'):
        return build_engine(detector, mode='causal' if method in CAUSAL else 'buffered')
    kind = {'detect': 'detect', 'hold': 'linear', 'linear': 'linear', 'oracle': 'linear'}
    return build_engine(detector, method=kind.get(method, 'flow'),
                        keyframes=policy or setting.gap or 1,
                        mode='causal' if method in CAUSAL else 'buffered')


def adaptive_policy(setting: Setting) -> WatchedKeyframes:
    return WatchedKeyframes(AdaptiveKeyframes(setting.gap, setting.threshold))


def run(engine, images: Sequence[np.ndarray]) -> list[FrameResult]:
    """The result of each frame, in order."""
    results = []
    for frame_id, image in enumerate(images):
        results += engine.push(image, frame_id)
    results += engine.flush()
    assert [result.frame_id for result in results] == list(range(len(images)))
    return results


def true_positions(results: list[FrameResult], frames: Sequence[CocoFrame]) -> list[FrameResult]:
    """What perfect positions would give from the same keyframes, links and scores.

    Between two keyframes, every box of a track that lay on an object (IoU above 0.5) at either
    of them is put on that object, or dropped where the object is not there; class and score stay
    those of the keyframes. A box whose track lay on nothing stays.
    """
    keyframes = [result.frame_id for result in results if result.is_keyframe]
    objects = {result.frame_id: tracked_objects(result.boxes, frames[result.frame_id])
               for result in results if result.is_keyframe}
    moved = []
    for result in results:
        if not result.is_keyframe:
            right = bisect.bisect(keyframes, result.frame_id)
            known = objects[keyframes[right]] | objects[keyframes[right - 1]]
            result = dataclasses.replace(result, boxes=put_on_objects(
                result.boxes, known, frames[result.frame_id]))
        moved.append(result)
    return moved


def tracked_objects(boxes: FrameBoxes, frame: CocoFrame) -> dict[int, int]:
    """Track id -> instance id of the object on which its box lies."""
    if not len(boxes) or not len(frame.instance_ids):
        return {}
    iou = iou_matrix(boxes.boxes_xyxy, frame.boxes_xyxy)
    return {int(track): int(frame.instance_ids[row.argmax()])
            for track, row in zip(boxes.track_ids, iou, strict=True) if row.max() > 0.5}


def put_on_objects(boxes: FrameBoxes, known: dict[int, int], frame: CocoFrame) -> FrameBoxes:
    place = {int(i): box for i, box in zip(frame.instance_ids, frame.boxes_xyxy, strict=True)}
    moved, is_there = boxes.boxes_xyxy.copy(), np.ones(len(boxes), bool)
    for row, track in enumerate(boxes.track_ids.tolist()):
        if track in known:
            is_there[row] = known[track] in place
            moved[row] = place.get(known[track], moved[row])
    return boxes.replace(boxes_xyxy=moved).select(is_there)
