"""Frames in, boxes of every frame out: a detector on keyframes, a filler on the frames between.

``LatticeEngine`` decides keyframes and keeps the frames of the open interval; a filler
(``core/filling``) carries boxes through it. One engine serves every method: per-frame detection is
``UniformKeyframes(1)``, straight lines are ``NodeFiller(num_stages=0)``, the Scale-Time Lattice
of the paper (arXiv:1804.05472) is ``NodeFiller(num_stages=2)``, sparse flow is ``FlowFiller``.
Pushing a whole video and flushing is the offline mode: the boxes are the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from statistics import median
from threading import Lock
from typing import Any, Protocol

import numpy as np

from vision.common.core.errors import VisionError
from vision.lattice.core.filling import Bridge, Carrier, Filler, Span, inside_frame
from vision.lattice.core.keyframes import Interval, KeyframePolicy
from vision.lattice.core.linker import TrackLinker
from vision.lattice.core.scene_cut import SceneCutDetector
from vision.lattice.core.structures import FrameBoxes, FrameResult

__all__ = ['MODES', 'EngineStats', 'LatticeEngine']

# A cut test: (grey before, grey after), both (h, w) -> is there a cut between them?
CutDetector = Callable[[np.ndarray, np.ndarray], bool]
DEFAULT_CUT_DETECTOR = SceneCutDetector()  # holds no state: shared by all engines
MODES = ('buffered', 'causal', 'causal+revise')
# Frames further apart than this, and than so many usual distances, have a hole between them: what
# is seen after it is not what was seen before it (our choice; a time lapse has no holes). Usual is
# the median of the last steps, holes included: one hole leaves it as it is, and a camera that goes
# over to a slower pace is followed after half of them.
HOLE_S, HOLE_IN_STEPS, USUAL_STEPS = 1.0, 5.0, 9


class Detector(Protocol):
    """What the engine asks of a detector: any object with this method."""

    def detect(self, image_bgr: np.ndarray) -> FrameBoxes:
        """Full detection on one frame (H, W, 3) uint8, boxes in its pixels."""


@dataclass(frozen=True)
class EngineStats:
    """Counts since the engine was made.

    Args:
        num_frames: frames pushed.
        num_keyframes: frames on which the detector ran.
        num_cuts: segments begun after a scene cut or a change of the frame size.
        num_holes: segments begun after a hole in time.
    """

    num_frames: int
    num_keyframes: int
    num_cuts: int
    num_holes: int

    @property
    def keyframe_rate(self) -> float:
        """Keyframes per frame; 0 before the first frame."""
        return self.num_keyframes / max(self.num_frames, 1)


@dataclass(frozen=True, eq=False)
class _Frame:
    frame_id: int
    time_s: float
    image: np.ndarray
    prepared: Any


@dataclass(frozen=True, eq=False)
class _Waiting:
    """Frames from one keyframe to the next, whose last one is being detected. A segment begins
    with a single frame."""

    frames: list[_Frame]
    right: Future


class LatticeEngine:
    """Video detection with the detector on keyframes only.

    Args:
        detector: has ``detect(image_bgr) -> FrameBoxes``.
        filler: how boxes get from keyframe to keyframe.
        policy: where keyframes are (``keyframes``); not to be shared between engines.
        mode: ``buffered``: a frame is finished when the next keyframe is detected; ``causal``: no
            look-ahead, a frame is finished at once with the boxes carried to it from the last
            keyframe; ``causal+revise``: both, the first result of a frame between keyframes is
            ``provisional`` and the ``final`` one is that of ``buffered``. In ``causal`` intervals
            are not halved and the last frame of a segment is no keyframe: too late for both.
        cut_detector: says whether a cut lies between two grey frames; None for videos without
            cuts. On both sides of a cut there is a keyframe, nothing is linked or filled across.
        executor: runs the detector while the frames of the next interval are taken (buffered
            mode; the others cannot go on without a keyframe's boxes, and wait); None: the
            detector runs inside ``push``. The results are the same. The detector is never called
            twice at a time, however many workers there are.

    At most 2 ``policy.gap_frames`` + 1 frames are held, with an executor, else half of that.
    Images are kept by reference until their interval is done: do not write into an array that was
    pushed.

    Raises:
        VisionError: VIS-CONFIG-106, another mode.
    """

    def __init__(self, detector: Detector, filler: Filler, policy: KeyframePolicy, *,
                 mode: str = 'buffered',
                 cut_detector: CutDetector | None = DEFAULT_CUT_DETECTOR,
                 executor: Executor | None = None) -> None:
        if mode not in MODES:
            raise VisionError('VIS-CONFIG-106', f'mode={mode!r} is not known', where='mode',
                              why=f'the modes are {", ".join(MODES)}', do='use one of these')
        self._detector, self._filler, self._policy = detector, filler, policy
        self.mode = mode
        self._is_causal, self._revises = mode != 'buffered', mode != 'causal'
        self._cut_detector, self._executor = cut_detector, executor
        self._linker = TrackLinker()
        self._num_frames = self._num_keyframes = self._num_cuts = self._num_holes = 0
        self._steps_s: deque[float] = deque(maxlen=USUAL_STEPS)
        self._detecting = Lock()
        self._frames: list[_Frame] = []  # from the last grid keyframe to the newest frame
        self._waiting: deque[_Waiting] = deque()
        self._left = FrameBoxes.empty()  # boxes of the last keyframe that is done
        self._carrier: Carrier | None = None  # from it, over the frames after it
        self._num_carried = 0

    @property
    def policy(self) -> KeyframePolicy:
        """Where keyframes are; its ``account``, where it has one, says what was spent so far."""
        return self._policy

    @property
    def stats(self) -> EngineStats:
        """Frames, keyframes, cuts and holes so far."""
        return EngineStats(self._num_frames, self._num_keyframes, self._num_cuts, self._num_holes)

    @property
    def num_buffered_frames(self) -> int:
        """Frames held now, the last keyframe included."""
        return len(self._frames) + sum(len(waiting.frames) - 1 for waiting in self._waiting)

    def push(self, image_bgr: np.ndarray, frame_id: int,
             time_s: float | None = None) -> list[FrameResult]:
        """Take the next frame; give the results that it finishes, in the order of the frames.

        A frame of another size begins a new scene, as after a cut; so does one after a hole in
        time (``HOLE_S``).

        Args:
            image_bgr: (H, W, 3) uint8.
            frame_id: one more than that of the frame before; the first may be any.
            time_s: when the frame was taken, greater than that of the frame before; default: the
                frame_id, that is, frames at equal distances and without holes.

        Raises:
            VisionError: ``VIS-INPUT-102`` frame_id or time, ``VIS-INPUT-103`` image.
        """
        has_time = time_s is not None
        frame = _Frame(frame_id, float(time_s if has_time else frame_id), image_bgr, None)
        self._check(frame)
        frame = replace(frame, prepared=self._filler.prepare(image_bgr))
        self._num_frames += 1
        results = []
        if self._frames and self._is_new_scene(self._frames[-1], frame, has_time):
            results += self._close_segment()
        if not self._frames:
            self._frames = [frame]
            self._await([frame])
        else:
            self._frames.append(frame)
            if len(self._frames) > self._policy.gap_frames:
                self._await(self._frames)
                self._frames = [frame]
        can_wait = self._executor is not None and not self._is_causal
        results += self._finish(max_waiting=1 if can_wait else 0)
        if self._is_causal and self._frames[-1] is frame and len(self._frames) > 1:
            results += self._carried_result(frame)
        return results

    def flush(self) -> list[FrameResult]:
        """End of the video: results of the frames still held, of which the last one is a keyframe
        (``causal`` holds none back).

        The engine is then ready for another video; counts and the policy's state go on.
        """
        results = self._close_segment()
        self._linker.reset()
        self._steps_s.clear()
        return results

    def _check(self, frame: _Frame) -> None:
        image = frame.image
        shape, dtype = getattr(image, 'shape', None), getattr(image, 'dtype', None)
        if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise VisionError('VIS-INPUT-103', f'an image of shape {shape} and type {dtype}',
                              where=f'frame {frame.frame_id}',
                              why='frames are (H, W, 3) uint8, BGR',
                              do='convert the frame before pushing it')
        if not self._frames:
            return
        last = self._frames[-1]
        if frame.frame_id != last.frame_id + 1 or not frame.time_s > last.time_s:
            raise VisionError('VIS-INPUT-102', f'frame {frame.frame_id} at {frame.time_s:g} after '
                              f'frame {last.frame_id} at {last.time_s:g}',
                              where=f'frame {frame.frame_id}',
                              why='frames of a video come in order, without gaps in the numbers, '
                                  'and time grows',
                              do='call flush() before another video, or number the frames '
                                 'that are really pushed')

    def _is_new_scene(self, before: _Frame, after: _Frame, has_time: bool) -> bool:
        step_s = after.time_s - before.time_s
        usual_s = median(self._steps_s or [step_s])
        self._steps_s.append(step_s)
        if has_time and step_s > max(HOLE_S, HOLE_IN_STEPS * usual_s):
            self._num_holes += 1
            return True
        is_cut = before.image.shape != after.image.shape or (
            self._cut_detector is not None
            and self._cut_detector(before.prepared.grey, after.prepared.grey))
        self._num_cuts += is_cut
        return is_cut

    def _detect(self, frame: _Frame) -> FrameBoxes:
        with self._detecting:  # an executor may have several workers
            boxes = self._detector.detect(frame.image)
        return inside_frame(boxes, frame.image.shape[:2])

    def _await(self, frames: list[_Frame]) -> None:
        """The last of these frames is a keyframe: begin to detect it."""
        self._waiting.append(_Waiting(frames, self._detection(frames[-1])))

    def _detection(self, keyframe: _Frame) -> Future:
        """Its boxes, some time. All detections go through the executor, where there is one: a
        detector need not bear two threads at once."""
        self._num_keyframes += 1
        if self._executor is not None:
            return self._executor.submit(self._detect, keyframe)
        done = Future()
        done.set_result(self._detect(keyframe))
        return done

    def _finish(self, max_waiting: int) -> list[FrameResult]:
        """Results of what is detected by now; waits until no more than ``max_waiting`` is not."""
        results = []
        while self._waiting and (len(self._waiting) > max_waiting
                                 or self._waiting[0].right.done()):
            if results and max_waiting and self._waiting[0].right.exception():
                return results  # what is done goes out first; the next call raises
            waiting = self._waiting.popleft()
            right = waiting.right.result()
            if len(waiting.frames) == 1:
                self._policy.start_segment()
                results += self._start_segment(waiting.frames[0], right)
            else:
                results += self._solve(waiting.frames, right, depth=0)
        return results

    def _close_segment(self) -> list[FrameResult]:
        # Without revision nobody waits for the last frame: its boxes went out as it came.
        if len(self._frames) > 1 and self._revises:
            self._await(self._frames)
        results = self._finish(max_waiting=0)
        self._frames, self._left, self._carrier = [], FrameBoxes.empty(), None
        return results

    def _start_segment(self, frame: _Frame, boxes: FrameBoxes) -> list[FrameResult]:
        self._begin_at(frame, self._linker.start(boxes))
        return [FrameResult(frame.frame_id, self._left, 'detected', is_keyframe=True)]

    def _begin_at(self, keyframe: _Frame, boxes: FrameBoxes,
                  drift: np.ndarray | None = None) -> None:
        self._left, self._num_carried = boxes, 0
        self._carrier = self._filler.carry(boxes, keyframe.prepared, keyframe.image.shape[:2],
                                           drift)

    def _carry_to(self, frames: list[_Frame]) -> Carrier:
        """The carrier at the last of these frames, which begin at its keyframe."""
        for frame in frames[self._num_carried + 1:]:
            self._carrier.step(frame.prepared)
        self._num_carried = len(frames) - 1
        return self._carrier

    def _carried_result(self, frame: _Frame) -> list[FrameResult]:
        boxes = inside_frame(self._carry_to(self._frames).latest(), frame.image.shape[:2])
        status = 'provisional' if self._revises else 'final'
        return [FrameResult(frame.frame_id, boxes, 'propagated', status=status)]

    def _solve(self, frames: list[_Frame], right: FrameBoxes, *, depth: int) -> list[FrameResult]:
        """Results after the first of these frames; halves the interval where the policy asks."""
        span = Span([frame.image for frame in frames], [frame.prepared for frame in frames],
                    np.array([frame.time_s for frame in frames]), is_filled=self._revises)
        bridge = self._filler.bridge(self._carry_to(frames), right, span)
        if self._wants_split(bridge, right, span, depth):
            mid = (len(frames) - 1) // 2
            middle = self._detection(frames[mid]).result()
            self._carrier, self._num_carried = self._carrier.until(mid), mid
            return [*self._solve(frames[:mid + 1], middle, depth=depth + 1),
                    *self._solve(frames[mid:], right, depth=depth + 1)]
        filled = bridge.fill(self._linker)
        self._begin_at(frames[-1], filled.right, filled.drift)
        inner = []
        if span.is_filled:
            inner = [FrameResult(frame.frame_id, boxes,
                                 'propagated' if is_propagated else 'interpolated')
                     for frame, boxes, is_propagated in
                     zip(frames[1:-1], filled.inner, filled.is_propagated, strict=True)]
        return [*inner, FrameResult(frames[-1].frame_id, self._left, 'detected',
                                    is_keyframe=True)]

    def _wants_split(self, bridge: Bridge, right: FrameBoxes, span: Span, depth: int) -> bool:
        if depth and depth >= self._policy.max_depth or not self._revises:
            return False
        interval = Interval(self._left, right, span.gap_frames, bridge.easiness)
        return self._policy.split(interval) and span.gap_frames >= 2
