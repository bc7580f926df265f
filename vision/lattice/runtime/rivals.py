"""What a user would do instead of the lattice, in the same engine or beside it.

They are here to be measured (``benchmarks/lattice_tradeoff.py``), each in its best form that
we know. Hold and straight lines need nothing of this file: they are ``build_engine(method=
'linear')`` in mode ``causal`` and ``buffered``.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from vision.common.core.errors import VisionError
from vision.lattice.core.byte_track import ByteTracker
from vision.lattice.core.engine import DEFAULT_CUT_DETECTOR, Detector, EngineStats, LatticeEngine
from vision.lattice.core.filling import FilledInterval, Filler, Span, inner_boxes, inside_frame
from vision.lattice.core.interval import GreyFrame, NodeFiller, Propagated, Refined
from vision.lattice.core.keyframes import UniformKeyframes, check_gap
from vision.lattice.core.linker import NO_ROW, TrackLinker
from vision.lattice.core.matching import match_at_middle
from vision.lattice.core.merge import Side
from vision.lattice.core.structures import FrameBoxes, FrameResult
from vision.lattice.runtime.flow import CUT_LONG_SIDE, shrunk_grey

LONG_SIDE = 320  # px of the grey frames of both flows
# Of a box that one keyframe alone knows, as in ``NodeFiller``.
UNPAIRED_FACTOR = 0.8


def build_rival(name: str, detector: Detector, gap_frames: int) -> LatticeEngine | ByteTrackEngine:
    """A new engine with a detection every ``gap_frames`` frames.

    Args:
        name: a key of ``FILLERS``, ``bytetrack`` or ``bytetrack-offline``.
    """
    if name in FILLERS:
        return LatticeEngine(detector, FILLERS[name](gap_frames), UniformKeyframes(gap_frames),
                             cut_detector=cut_on_small)
    return ByteTrackEngine(detector, gap_frames, is_offline=name == 'bytetrack-offline')


def cut_on_small(before: np.ndarray, after: np.ndarray) -> bool:
    """The engine's cut test on two grey frames (h, w) uint8, shrunk to about the size at which
    ours looks for cuts: on those of the rivals it would take longer than their flow."""
    factor = max(1, round(max(before.shape) / CUT_LONG_SIDE))
    height, width = (max(1, side // factor) for side in before.shape)
    return DEFAULT_CUT_DETECTOR(*(cv2.resize(
        grey[:height * factor, :width * factor], (width, height), interpolation=cv2.INTER_AREA)
        for grey in (before, after)))


class SparseFlowNetworks:
    """Sparse Lucas-Kanade flow in the place of the paper's temporal network, no spatial one.

    36 points of each box go from frame to frame; those that come back to where they were (within
    ``MAX_RETURN`` px, at each step) move the box by their median shift and scale it by the median
    growth of their distances from their middle. The mark that the lattice had to beat.
    """

    GRID = 6
    MARGIN = 0.12  # share of the side that stays free of points
    MAX_RETURN = 1.0
    MIN_POINTS = 4
    LOST_VISIBILITY = 0.3
    MAX_GROWTH = 1.25
    LUCAS_KANADE = dict(winSize=(13, 13), maxLevel=3, criteria=(
        cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 10, 0.03))

    def grey(self, image_bgr: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 BGR -> (h, w) uint8, the longer side near ``LONG_SIDE`` px."""
        return shrunk_grey(image_bgr, LONG_SIDE)[0]

    def propagate(self, boxes: FrameBoxes, greys: np.ndarray, *, frame_size: tuple[int, int],
                  stage: int) -> Propagated:
        """See ``vision.lattice.core.interval.Networks``; greys (n + 1, h, w) uint8."""
        scale = np.array([greys.shape[2] / frame_size[1], greys.shape[1] / frame_size[0]])
        small = boxes.boxes_xyxy.astype(np.float64) * np.tile(scale, 2)
        steps = np.linspace(self.MARGIN, 1 - self.MARGIN, self.GRID)
        grid = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
        start = small[:, None, :2] + grid * (small[:, None, 2:] - small[:, None, :2])
        end, is_good = self._followed(start.reshape(-1, 2).astype(np.float32), greys)
        end, is_good = end.reshape(start.shape), is_good.reshape(start.shape[:2])
        visibility = np.where(is_good.sum(axis=1) < self.MIN_POINTS, self.LOST_VISIBILITY, 1.0)
        for row in np.flatnonzero(visibility == 1.0):
            small[row] = self._moved(small[row], start[row, is_good[row]],
                                     end[row, is_good[row]])
        return Propagated(small / np.tile(scale, 2), visibility)

    def refine(self, boxes: FrameBoxes, image_bgr: np.ndarray, *, stage: int) -> Refined:
        """The N boxes as they are, with belief 1 of shape (N,): there is no spatial network."""
        return Refined(boxes.boxes_xyxy, np.ones(len(boxes)))

    def _followed(self, points: np.ndarray, greys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(P, 2) on the last frame, and (P,) whether each step led there and back."""
        is_good = np.ones(len(points), bool)
        for before, after in zip(greys[:-1], greys[1:], strict=True):
            moved, ahead, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None,
                                                       **self.LUCAS_KANADE)
            back, behind, _ = cv2.calcOpticalFlowPyrLK(after, before, moved, None,
                                                       **self.LUCAS_KANADE)
            off = np.abs(back - points).max(axis=1)
            is_good &= (ahead[:, 0] > 0) & (behind[:, 0] > 0) & (off < self.MAX_RETURN)
            points = moved
        return points, is_good

    def _moved(self, box: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        distances = [np.linalg.norm(points - np.median(points, axis=0), axis=1)
                     for points in (start, end)]
        growth = np.median(distances[1] / np.maximum(distances[0], 1e-3))
        half = (box[2:] - box[:2]) / 2 * np.clip(growth, 1 / self.MAX_GROWTH, self.MAX_GROWTH)
        centre = (box[:2] + box[2:]) / 2 + np.median(end - start, axis=0)
        return np.concatenate([centre - half, centre + half])


def sparse_flow_filler(gap_frames: int) -> NodeFiller:
    """Sparse flow from both keyframes to their middle, then lines; three middle frames where
    keyframes are far apart. Of the merges and stages this was best on PETS09-S2L1 and the DAVIS
    training sequences."""
    return NodeFiller(SparseFlowNetworks(), num_stages=1 if gap_frames <= 8 else 2,
                      merge='median', min_score=0.2)


class DenseFlowFiller:
    """``vision.lattice.core.filling.Filler`` by dense flow: DIS (arXiv:1603.03590), ultrafast.

    A box goes with the median flow inside it; between two keyframes the boxes carried from both
    are blended in time, so that each is exact on its own keyframe.
    """

    def prepare(self, image_bgr: np.ndarray) -> GreyFrame:
        """A frame (H, W, 3) uint8 BGR made grey, the longer side near ``LONG_SIDE`` px."""
        return GreyFrame(shrunk_grey(image_bgr, LONG_SIDE)[0])

    def carry(self, left: FrameBoxes, prepared: GreyFrame, frame_size: tuple[int, int],
              drift: None = None) -> DenseFlowCarrier:
        """Start from the boxes of a keyframe of size (H, W); drift is of no use here."""
        return DenseFlowCarrier(left, prepared, frame_size)

    def bridge(self, carrier: DenseFlowCarrier, right: FrameBoxes, span: Span) -> BlendBridge:
        """Carry the right boxes back over the whole interval, to blend them with the left ones."""
        back = DenseFlowCarrier(right, span.prepared[-1], span.frame_size)
        for prepared in span.prepared[-2::-1]:
            back.step(prepared)
        return BlendBridge(carrier.boxes, right, np.stack(carrier.path),
                           np.stack(back.path[::-1]), span)


class DenseFlowCarrier:
    """Boxes of a keyframe on dense flow, in either direction; ``path`` has (N, 4) a frame, px of
    the original frame."""

    MAX_SAMPLES = 16  # along each side of a box: the median of more pixels is the same

    def __init__(self, boxes: FrameBoxes, prepared: GreyFrame,
                 frame_size: tuple[int, int]) -> None:
        self.boxes = boxes
        self.path = [boxes.boxes_xyxy.astype(np.float64)]
        height, width = prepared.grey.shape
        self._scale = np.tile([width / frame_size[1], height / frame_size[0]], 2)
        self._grey = prepared.grey
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def step(self, prepared: GreyFrame) -> None:
        """Move each box by the median flow inside it to the next frame."""
        small = self.path[-1] * self._scale
        if len(small):
            flow = self._flow.calc(self._grey, prepared.grey, None)
            small += np.tile([self._median(flow, box) for box in small], 2)
        self.path.append(small / self._scale)
        self._grey = prepared.grey

    def latest(self) -> FrameBoxes:
        """The keyframe's boxes as they lie on the newest frame."""
        return self.boxes.replace(boxes_xyxy=self.path[-1])

    def _median(self, flow: np.ndarray, box: np.ndarray) -> np.ndarray:
        """(2,) median flow in a box; zero for one that left the picture."""
        height, width = flow.shape[:2]
        left, top = np.clip(np.floor(box[:2]), 0, (width, height)).astype(int)
        right, bottom = np.clip(np.ceil(box[2:]), 0, (width, height)).astype(int)
        if right <= left or bottom <= top:
            return np.zeros(2)
        step_y, step_x = (max(1, side // self.MAX_SAMPLES) for side in (bottom - top,
                                                                        right - left))
        return np.median(flow[top:bottom:step_y, left:right:step_x].reshape(-1, 2), axis=0)


class BlendBridge:
    """Boxes carried from both keyframes, blended in time. See ``filling.Bridge``.

    Args:
        from_left, from_right: (F, N, 4) and (F, M, 4), in the order of the frames.
    """

    def __init__(self, left: FrameBoxes, right: FrameBoxes, from_left: np.ndarray,
                 from_right: np.ndarray, span: Span) -> None:
        self._left, self._right, self._span = left, right, span
        self._from_left, self._from_right = from_left, from_right

    def easiness(self, size_cap: float) -> float:
        """This rival is measured on uniform grids alone.

        Raises:
            VisionError: VIS-CONFIG-110, always.
        """
        raise VisionError('VIS-CONFIG-110', 'adaptive keyframes over dense flow',
                          where='keyframes', why='this rival has no measure of easiness',
                          do="use dict(type='UniformKeyframes', gap_frames=...)")

    def fill(self, linker: TrackLinker) -> FilledInterval:
        """Boxes of the inner frames; the right boxes get their ids from the linker here."""
        middle = self._span.gap_frames // 2
        pairs = match_at_middle(self._left, self._right, *(
            Side(path[middle], np.ones(path.shape[1]), np.ones(path.shape[1], bool))
            for path in (self._from_left, self._from_right)))
        rows, right = linker.link(self._left, self._right, pairs)
        is_left, is_right = rows.left_index != NO_ROW, rows.right_index != NO_ROW
        share = self._span.shares[1:-1, None]
        towards = np.where(is_left & is_right, share, np.where(is_left, 0.0, 1.0))[..., None]
        boxes = ((1 - towards) * _picked(self._from_left[1:-1], rows.left_index)
                 + towards * _picked(self._from_right[1:-1], rows.right_index))
        scores = ((1 - share) * _picked(self._left.scores[None], rows.left_index)
                  + share * _picked(self._right.scores[None], rows.right_index))
        scores = scores * np.where(rows.is_paired, 1.0, UNPAIRED_FACTOR)
        inner = inner_boxes(rows, boxes, scores, np.ones(scores.shape, bool),
                            self._span.frame_size)
        return FilledInterval(inner, [True] * len(inner), right)


def _picked(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(F, N, ...) -> (F, R, ...) by row; zeros where the index is NO_ROW."""
    picked = np.zeros((len(table), len(index), *table.shape[2:]))
    picked[:, index != NO_ROW] = table[:, index[index != NO_ROW]]
    return picked


class ByteTrackEngine:
    """ByteTrack over sparse detections, with the calls of ``LatticeEngine``.

    Args:
        gap_frames: frames from one detection to the next.
        is_offline: objects that two detections in a row know go straight between them, as
            ByteTrack's own interpolation does, and the last frame is detected, too; otherwise
            tracks go on with their speed and every frame is finished at once.
    """

    def __init__(self, detector: Detector, gap_frames: int, *, is_offline: bool) -> None:
        self._detector, self._gap, self._is_offline = detector, check_gap(gap_frames), is_offline
        self._tracker = ByteTracker()
        self._num_frames = self._num_keyframes = 0
        self._since: list[FrameResult] = []  # offline: from the last detection on
        self._image: np.ndarray | None = None

    @property
    def stats(self) -> EngineStats:
        """Frames and keyframes so far; this engine looks for no cuts."""
        return EngineStats(self._num_frames, self._num_keyframes, 0, 0)

    def push(self, image_bgr: np.ndarray, frame_id: int) -> list[FrameResult]:
        """Results that are finished by this frame (H, W, 3) uint8 BGR: its own, or offline, on a
        keyframe, all since the last one."""
        is_keyframe = self._num_frames % self._gap == 0
        if self._num_frames:
            self._tracker.predict()
        self._num_frames += 1
        self._image = image_bgr
        if is_keyframe:
            return self._keyframe(frame_id)
        boxes = inside_frame(self._tracker.boxes(), image_bgr.shape[:2])
        result = FrameResult(frame_id, boxes, 'interpolated')
        if not self._is_offline:
            return [result]
        self._since.append(result)
        return []

    def flush(self) -> list[FrameResult]:
        """End of the video; another one needs another engine."""
        if len(self._since) < 2:
            return []
        return self._keyframe(self._since.pop().frame_id)

    def _keyframe(self, frame_id: int) -> list[FrameResult]:
        self._num_keyframes += 1
        boxes = inside_frame(self._detector.detect(self._image), self._image.shape[:2])
        result = FrameResult(frame_id, self._tracker.update(boxes), 'detected', is_keyframe=True)
        before, self._since = self._since, [result]
        return [*_straightened(before, result), result] if self._is_offline else [result]


def _straightened(since: list[FrameResult], right: FrameResult) -> list[FrameResult]:
    """The frames after a detection, with boxes that ``right`` knows on lines towards it."""
    results = []
    for result in since[1:]:
        share = (result.frame_id - since[0].frame_id) / (right.frame_id - since[0].frame_id)
        results.append(FrameResult(result.frame_id, _on_lines(
            result.boxes, since[0].boxes, right.boxes, share), 'interpolated'))
    return results


def _on_lines(boxes: FrameBoxes, left: FrameBoxes, right: FrameBoxes, share: float) -> FrameBoxes:
    """Boxes whose id is on both sides, put on the straight line; scores are linear, too."""
    place = [dict(zip(side.track_ids.tolist(), range(len(side)), strict=True))
             for side in (left, right)]
    ids = boxes.track_ids.tolist()
    rows = [row for row, i in enumerate(ids) if i in place[0] and i in place[1]]
    ends = [[where[ids[row]] for row in rows] for where in place]
    moved, scores = boxes.boxes_xyxy.copy(), boxes.scores.copy()
    moved[rows] = (1 - share) * left.boxes_xyxy[ends[0]] + share * right.boxes_xyxy[ends[1]]
    scores[rows] = (1 - share) * left.scores[ends[0]] + share * right.scores[ends[1]]
    return boxes.replace(boxes_xyxy=moved, scores=scores)


FILLERS: dict[str, Callable[[int], Filler]] = {
    'lk': sparse_flow_filler, 'dis': lambda gap_frames: DenseFlowFiller()}
RIVALS = (*FILLERS, 'bytetrack', 'bytetrack-offline')
