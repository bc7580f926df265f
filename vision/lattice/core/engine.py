"""Frames in, boxes of every frame out: the buffered Scale-Time Lattice (arXiv:1804.05472).

``LatticeEngine`` decides keyframes and keeps the frames of the open interval; ``interval`` fills
it. One engine serves every method: per-frame detection is ``UniformKeyframes(1)``, keyframes with
linear interpolation is ``num_stages=0``, the lattice is ``num_stages >= 1``. Pushing a whole video
and flushing is the offline mode: the boxes are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vision.common.core.errors import VisionError
from vision.lattice.core.interval import (
    IntervalSolver,
    Networks,
    Propagated,
    Refined,
    Span,
)
from vision.lattice.core.keyframes import Interval, KeyframePolicy
from vision.lattice.core.linker import TrackLinker
from vision.lattice.core.scene_cut import SceneCutDetector
from vision.lattice.core.structures import FrameBoxes, FrameResult

__all__ = ['EngineStats', 'LatticeEngine', 'Networks', 'Propagated', 'Refined']

# A cut test: (grey before, grey after), both (h, w) in [0, 1] -> is there a cut between them?
CutDetector = Callable[[np.ndarray, np.ndarray], bool]
DEFAULT_CUT_DETECTOR = SceneCutDetector()  # holds no state: shared by all engines


@dataclass(frozen=True)
class EngineStats:
    """Counts since the engine was made.

    Args:
        num_frames: frames pushed.
        num_keyframes: frames on which the detector ran.
        num_propagations: calls of ``propagate`` (one direction each).
        num_refinements: calls of ``refine``.
        num_cuts: segments begun after a scene cut or a change of the frame size.
    """

    num_frames: int
    num_keyframes: int
    num_propagations: int
    num_refinements: int
    num_cuts: int

    @property
    def keyframe_rate(self) -> float:
        """Keyframes per frame; 0 before the first frame."""
        return self.num_keyframes / max(self.num_frames, 1)


@dataclass(frozen=True, eq=False)
class _Frame:
    frame_id: int
    image: np.ndarray
    grey: np.ndarray


class LatticeEngine:
    """Video detection with the detector on keyframes only.

    Args:
        networks: detector, grey frames, propagation, refinement.
        policy: where keyframes are (``keyframes``); not to be shared between engines.
        num_stages: propagation stages per interval, 0 for linear interpolation only.
        merge: how two propagations become one box, a name of ``merge.MERGES``.
        cut_detector: says whether a cut lies between two grey frames; None for videos without
            cuts. On both sides of a cut there is a keyframe, nothing is linked or filled across.
        min_score: weaker objects are interpolated instead of propagated.

    At most ``policy.gap_frames + 1`` frames are held. Images are kept by reference until their
    interval is done: do not write into an array that was pushed.
    """

    def __init__(self, networks: Networks, policy: KeyframePolicy, *, num_stages: int = 2,
                 merge: str = 'median', cut_detector: CutDetector | None = DEFAULT_CUT_DETECTOR,
                 min_score: float = 0.05) -> None:
        if not isinstance(num_stages, int) or num_stages < 0:
            raise VisionError('VIS-CONFIG-101', f'num_stages={num_stages!r}', where='num_stages',
                              why='the number of stages is a whole number, at least 0',
                              do='use 0 for linear interpolation, 1 or 2 for the lattice')
        self._networks = networks
        self._policy = policy
        self._cut_detector = cut_detector
        self._solver = IntervalSolver(networks, num_stages=num_stages, merge=merge,
                                      min_score=min_score)
        self._linker = TrackLinker()
        self._num_frames = self._num_keyframes = self._num_cuts = 0
        self._frames: list[_Frame] = []  # from the last keyframe to the newest frame
        self._left = FrameBoxes.empty()  # boxes of the last keyframe

    @property
    def stats(self) -> EngineStats:
        return EngineStats(self._num_frames, self._num_keyframes, self._solver.num_propagations,
                           self._solver.num_refinements, self._num_cuts)

    @property
    def num_buffered_frames(self) -> int:
        """Frames held now, the last keyframe included."""
        return len(self._frames)

    def push(self, image_bgr: np.ndarray, frame_id: int) -> list[FrameResult]:
        """Take the next frame; give the results of the frames that it finishes, in order.

        A frame of another size begins a new scene, as after a cut.

        Args:
            image_bgr: (H, W, 3) uint8.
            frame_id: one more than that of the frame before; the first may be any.
        Raises:
            VisionError: ``VIS-INPUT-102`` frame_id, ``VIS-INPUT-103`` image.
        """
        self._check(image_bgr, frame_id)
        frame = _Frame(frame_id, image_bgr, self._networks.grey(image_bgr))
        self._num_frames += 1
        results = []
        if self._frames and self._is_cut(self._frames[-1], frame):
            results += self._close_segment()
            self._num_cuts += 1
        if not self._frames:
            return [*results, self._start_segment(frame)]
        self._frames.append(frame)
        if len(self._frames) > self._policy.gap_frames:
            results += self._close_interval()
        return results

    def flush(self) -> list[FrameResult]:
        """End of the video: results of the frames still held (the last one is a keyframe).

        The engine is then ready for another video; counts and the policy's state go on.
        """
        results = self._close_segment()
        self._linker.reset()
        return results

    def _check(self, image_bgr: np.ndarray, frame_id: int) -> None:
        shape, dtype = getattr(image_bgr, 'shape', None), getattr(image_bgr, 'dtype', None)
        if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise VisionError('VIS-INPUT-103', f'an image of shape {shape} and type {dtype}',
                              where=f'frame {frame_id}', why='frames are (H, W, 3) uint8, BGR',
                              do='convert the frame before pushing it')
        if self._frames and frame_id != self._frames[-1].frame_id + 1:
            raise VisionError('VIS-INPUT-102', f'frame {frame_id} after frame '
                              f'{self._frames[-1].frame_id}', where=f'frame {frame_id}',
                              why='frames of a video come in order and without gaps',
                              do='call flush() before another video, or number the frames '
                                 'that are really pushed')

    def _is_cut(self, before: _Frame, after: _Frame) -> bool:
        if before.image.shape != after.image.shape:
            return True
        return self._cut_detector is not None and self._cut_detector(before.grey, after.grey)

    def _detect(self, frame: _Frame) -> FrameBoxes:
        self._num_keyframes += 1
        return self._networks.detect(frame.image)

    def _start_segment(self, frame: _Frame) -> FrameResult:
        self._policy.start_segment()
        self._left = self._linker.start(self._detect(frame))
        self._frames = [frame]
        return FrameResult(frame.frame_id, self._left, 'detected', is_keyframe=True)

    def _close_segment(self) -> list[FrameResult]:
        results = self._close_interval() if len(self._frames) > 1 else []
        self._frames, self._left = [], FrameBoxes.empty()
        return results

    def _close_interval(self) -> list[FrameResult]:
        """Make the newest frame a keyframe and finish all frames up to it."""
        right = self._detect(self._frames[-1])
        results = self._solve(self._frames, right, depth=0)
        self._frames = self._frames[-1:]
        return results

    def _solve(self, frames: list[_Frame], right: FrameBoxes, *, depth: int) -> list[FrameResult]:
        """Results after the first of these frames; halves the interval where the policy asks."""
        if self._wants_split(frames, right, depth):
            mid = (len(frames) - 1) // 2
            middle = self._detect(frames[mid])
            return [*self._solve(frames[:mid + 1], middle, depth=depth + 1),
                    *self._solve(frames[mid:], right, depth=depth + 1)]
        span = Span([frame.image for frame in frames], [frame.grey for frame in frames])
        filled = self._solver.solve(self._left, right, span, self._linker)
        self._left = filled.right
        results = [FrameResult(frame.frame_id, boxes,
                               'propagated' if is_propagated else 'interpolated')
                   for frame, boxes, is_propagated in
                   zip(frames[1:-1], filled.inner, filled.is_propagated, strict=True)]
        return [*results, FrameResult(frames[-1].frame_id, self._left, 'detected',
                                      is_keyframe=True)]

    def _wants_split(self, frames: list[_Frame], right: FrameBoxes, depth: int) -> bool:
        if depth and depth >= self._policy.max_depth:
            return False
        interval = Interval(self._left, right, [frame.grey for frame in frames],
                            frames[-1].image.shape[:2])
        return self._policy.split(interval) and interval.gap_frames >= 2
