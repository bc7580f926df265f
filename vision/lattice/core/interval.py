"""Fills the frames between two keyframes by straight lines and, stage by stage, by the nodes of
the Scale-Time Lattice paper (arXiv:1804.05472)."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vision.common.core.errors import VisionError
from vision.lattice.core.easiness import interval_easiness
from vision.lattice.core.filling import FilledInterval, Span, inner_boxes
from vision.lattice.core.interpolate import Knot, between, interpolate_frames
from vision.lattice.core.linker import NO_ROW, IntervalRows, TrackLinker
from vision.lattice.core.matching import match_at_middle, match_boxes
from vision.lattice.core.merge import Meeting, Side, get_merge
from vision.lattice.core.planner import Node, plan_interval
from vision.lattice.core.structures import FrameBoxes

# An object seen at one keyframe only is worth this much of its score between the keyframes.
UNPAIRED_FACTOR = 0.8


@dataclass(frozen=True, eq=False)
class Propagated:
    """Boxes moved to another frame. Shapes: boxes_xyxy (N, 4); visibility (N,) in [0, 1]."""

    boxes_xyxy: np.ndarray
    visibility: np.ndarray


@dataclass(frozen=True, eq=False)
class Refined:
    """Boxes corrected on their frame.

    Shapes: boxes_xyxy (N, 4); confidence (N,) in [0, 1]; class_scores (N, C) in [0, 1] over the
        detector's classes, None when the network does not classify.
    """

    boxes_xyxy: np.ndarray
    confidence: np.ndarray
    class_scores: np.ndarray | None = None


class Networks(Protocol):
    """What the lattice needs from the detector and the two small networks.

    Boxes are x1 y1 x2 y2 in original pixels; rows keep their order and number; ``stage`` counts
    from 0, the coarsest.
    """

    def detect(self, image_bgr: np.ndarray) -> FrameBoxes:
        """Full detection on one frame (H, W, 3) uint8."""

    def grey(self, image_bgr: np.ndarray) -> np.ndarray:
        """A frame (H, W, 3) uint8 BGR -> the small grey one (h, w) on which motion is measured,
        float32 in [0, 1]."""

    def propagate(self, boxes: FrameBoxes, greys: np.ndarray, *, frame_size: tuple[int, int],
                  stage: int) -> Propagated:
        """Boxes moved from the first to the last of greys (n + 1, h, w); frame_size is (H, W).

        For the right end of a span the caller hands over the frames in reversed order.
        """

    def refine(self, boxes: FrameBoxes, image_bgr: np.ndarray, *, stage: int) -> Refined:
        """Boxes corrected on the frame (H, W, 3) uint8 BGR on which they lie."""


@dataclass(frozen=True, eq=False)
class GreyFrame:
    """A frame as this filler needs it: ``grey`` (h, w) float32 in [0, 1], or uint8 where no
    network looks at it."""

    grey: np.ndarray


class NodeFiller:
    """``vision.lattice.core.filling.Filler`` of the paper: middle frames first, then lines.

    Objects are rows: boxes of both keyframes are paired, and a row keeps its class, its track id
    and its place in every array of the interval, whatever ``num_stages`` is.

    Scores: a paired object has the mean of its two keyframe scores weighted by closeness in time;
    one that only one keyframe saw is held (or propagated) over the whole interval and fades
    linearly to 0 at the keyframe that did not see it, times ``UNPAIRED_FACTOR``. Our choice: its
    boxes rank below those that two keyframes vouch for, yet true ones near their keyframe are
    not lost. On propagated frames the score of an unpaired object is also multiplied by what
    the networks believe of it, visibility x confidence (both 1 when they were not trained).
    Where refinement classifies, a propagated box has the geometric mean of that score and of what
    refinement gives to its class (our choice: two opinions, neither of which can overrule a clear
    no of the other), and the frames around it follow by interpolation.

    Args:
        num_stages: 0 interpolates linearly between the keyframes, n >= 1 fills up to 2**n - 1
            frames by propagation and refinement first.
        merge: name of a function of ``merge.MERGES``.
        min_score: objects whose best score is lower are not worth the networks; they are
            interpolated as with num_stages=0. One that is sure at one keyframe and weak at the
            other is propagated from both.

    Attributes:
        num_propagations: calls of ``propagate`` (one direction each) since the filler was made.
        num_refinements: calls of ``refine``.

    Raises:
        VisionError: ``VIS-CONFIG-101`` num_stages, ``VIS-CONFIG-104`` merge.
    """

    def __init__(self, networks: Networks, *, num_stages: int, merge: str,
                 min_score: float) -> None:
        if not isinstance(num_stages, int) or num_stages < 0:
            raise VisionError('VIS-CONFIG-101', f'num_stages={num_stages!r}', where='num_stages',
                              why='the number of stages is a whole number, at least 0',
                              do='use 0 for linear interpolation, 1 or 2 for the lattice')
        self.networks = networks
        self.num_stages = num_stages
        self.merge = get_merge(merge)
        self.min_score = min_score
        self.num_propagations = 0
        self.num_refinements = 0

    def prepare(self, image_bgr: np.ndarray) -> GreyFrame:
        """A frame (H, W, 3) uint8 BGR as the networks want it: grey, at the size they work at."""
        return GreyFrame(self.networks.grey(image_bgr))

    def carry(self, left: FrameBoxes, prepared: GreyFrame, frame_size: tuple[int, int],
              drift: None = None) -> NodeCarrier:
        """Start from the boxes of a keyframe of size (H, W); drift is of no use here."""
        return NodeCarrier(self, left, prepared, frame_size)

    def bridge(self, carrier: NodeCarrier, right: FrameBoxes, span: Span) -> NodeBridge:
        """Two keyframes with the frames between them; the carrier's own boxes are not used."""
        return NodeBridge(self, carrier.left, right, span)

    def solve(self, left: FrameBoxes, right: FrameBoxes, span: Span,
              linker: TrackLinker) -> FilledInterval:
        """Boxes of the inner frames of the span; left comes with ids, right gets them here."""
        gap = span.gap_frames
        plan = plan_interval(0, gap, num_stages=self.num_stages)
        ends = self._propagate_keyframes(left, right, span, plan.nodes[0]) if plan.nodes else None
        pairs = match_at_middle(left, right, *ends) if ends else match_boxes(left, right)
        rows, right = linker.link(left, right, pairs)
        knots = {0: _keyframe_knot(left, rows.left_index),
                 gap: _keyframe_knot(right, rows.right_index)}
        for node in plan.nodes:
            if node is plan.nodes[0]:
                sides = ends[0].take(rows.left_index), ends[1].take(rows.right_index)
            else:
                sides = Side.empty(len(rows)), Side.empty(len(rows))
            self._propagate_rows(rows, knots, span, node, sides)
            knots[node.mid] = self._fill_node(rows, knots, span, node, sides)
        inner = _frames_of(rows, knots, span)
        return FilledInterval(inner, [frame in knots for frame in range(1, gap)], right)

    def _propagate_keyframes(self, left: FrameBoxes, right: FrameBoxes, span: Span,
                             node: Node) -> tuple[Side, Side]:
        """Both keyframes' boxes on the first middle frame, before anything is paired."""
        sides = Side.empty(len(left)), Side.empty(len(right))
        for boxes, start, side in zip((left, right), (node.left, node.right), sides, strict=True):
            self._propagate(boxes, boxes.scores >= self.min_score, span, start, node, side)
        return sides

    def _propagate_rows(self, rows: IntervalRows, knots: dict[int, Knot], span: Span, node: Node,
                        sides: tuple[Side, Side]) -> None:
        """Fill in what the sides lack: a row is propagated from every end that knows it, as soon
        as one keyframe is sure of it. At the first node those are boxes that were too weak to be
        propagated before their partner was known."""
        best = np.max([knots[frame].scores for frame in (0, span.gap_frames)], axis=0)
        for start, side in zip((node.left, node.right), sides, strict=True):
            is_wanted = knots[start].is_known & (best >= self.min_score) & ~side.is_known
            self._propagate(_as_boxes(rows, knots[start]), is_wanted, span, start, node, side)

    def _propagate(self, boxes: FrameBoxes, is_wanted: np.ndarray, span: Span, start: int,
                   node: Node, side: Side) -> None:
        """The wanted rows of ``boxes`` on frame ``node.mid``, written into ``side``."""
        if not is_wanted.any():
            return
        self.num_propagations += 1
        moved = self.networks.propagate(
            boxes.select(is_wanted), _greys_towards(span, start, node.mid),
            frame_size=span.frame_size, stage=node.stage)
        side.boxes_xyxy[is_wanted] = _checked(moved.boxes_xyxy, 'propagate', is_wanted.sum())
        side.visibility[is_wanted] = moved.visibility
        side.is_known[is_wanted] = True

    def _fill_node(self, rows: IntervalRows, knots: dict[int, Knot], span: Span, node: Node,
                   sides: tuple[Side, Side]) -> Knot:
        left, right = sides
        before, after = knots[node.left], knots[node.right]
        before_s, middle_s, after_s = span.times_s[[node.left, node.mid, node.right]]
        right_weight = (middle_s - before_s) / (after_s - before_s)
        linear = between(before, after, right_weight)
        boxes, is_known = self.merge(Meeting(left, right, linear, 1 - right_weight,
                                             before.scores, after.scores, rows.labels))
        scores = linear.scores.copy()
        is_wanted = (left.is_known | right.is_known) & is_known
        if is_wanted.any():
            self.num_refinements += 1
            merged = _as_boxes(rows, Knot(boxes, is_known, linear.scores)).select(is_wanted)
            refined = self.networks.refine(merged, span.images[node.mid], stage=node.stage)
            boxes[is_wanted] = _checked(refined.boxes_xyxy, 'refine', is_wanted.sum())
            visibility = np.maximum(left.visibility, right.visibility)[is_wanted]
            belief = np.where(rows.is_paired[is_wanted], 1.0, visibility * refined.confidence)
            scores[is_wanted] = _with_opinion(scores[is_wanted] * belief, refined, merged.labels)
        return Knot(boxes, is_known, scores)


class NodeCarrier:
    """Boxes of a keyframe carried without looking ahead: they stand, or, where there are stages,
    the temporal network moves them in one step over the frames so far (our choice: the paper
    always looks ahead)."""

    def __init__(self, filler: NodeFiller, left: FrameBoxes, prepared: GreyFrame,
                 frame_size: tuple[int, int]) -> None:
        self.left = left
        self._filler, self._frame_size, self._greys = filler, frame_size, [prepared.grey]

    def step(self, prepared: GreyFrame) -> None:
        """The next frame; its motion counts from now on."""
        self._greys.append(prepared.grey)

    def until(self, num_steps: int) -> NodeCarrier:
        """A carrier as it was after so many steps, to read ``latest`` from."""
        earlier = copy(self)
        earlier._greys = self._greys[:num_steps + 1]
        return earlier

    def latest(self) -> FrameBoxes:
        """The keyframe's boxes, moved to the newest frame by one propagation where there are
        stages and their score is high enough."""
        is_wanted = self.left.scores >= self._filler.min_score
        if not self._filler.num_stages or not is_wanted.any() or len(self._greys) < 2:
            return self.left
        self._filler.num_propagations += 1
        moved = self._filler.networks.propagate(
            self.left.select(is_wanted), np.stack(self._greys), frame_size=self._frame_size,
            stage=0)
        boxes = self.left.boxes_xyxy.copy()
        boxes[is_wanted] = _checked(moved.boxes_xyxy, 'propagate', is_wanted.sum())
        return self.left.replace(boxes_xyxy=boxes)


@dataclass(frozen=True, eq=False)
class NodeBridge:
    """See ``vision.lattice.core.filling.Bridge``."""

    filler: NodeFiller
    left: FrameBoxes
    right: FrameBoxes
    span: Span

    def easiness(self, size_cap: float) -> float:
        """``interval_easiness`` of both keyframes' boxes and the frames between them, in
        [0, 1]."""
        greys = np.stack([prepared.grey for prepared in self.span.prepared])
        if greys.dtype == np.uint8:
            greys = greys / np.float32(255)
        return interval_easiness(self.left, self.right, greys, self.span.frame_size,
                                 size_cap=size_cap)

    def fill(self, linker: TrackLinker) -> FilledInterval:
        """Boxes of the inner frames; the right boxes get their ids from the linker here."""
        return self.filler.solve(self.left, self.right, self.span, linker)


def _with_opinion(scores: np.ndarray, refined: Refined, labels: np.ndarray) -> np.ndarray:
    """(N,) scores with what refinement, where it classifies, gives to the boxes' classes."""
    if refined.class_scores is None:
        return scores
    return np.sqrt(scores * refined.class_scores[np.arange(len(labels)), labels])


def _checked(boxes_xyxy: np.ndarray, name: str, num_rows: int) -> np.ndarray:
    boxes_xyxy = np.asarray(boxes_xyxy, np.float64)
    assert boxes_xyxy.shape == (num_rows, 4), (name, boxes_xyxy.shape, num_rows)
    if not np.isfinite(boxes_xyxy).all():
        raise VisionError('VIS-RUN-106', f'{name} gave boxes that are not finite',
                          why='the weights of this network hold NaN or overflow',
                          do='check the checkpoint; train with a lower learning rate')
    return boxes_xyxy


def _keyframe_knot(boxes: FrameBoxes, index: np.ndarray) -> Knot:
    is_known = index != NO_ROW
    table, scores = np.zeros((len(index), 4)), np.zeros(len(index))
    table[is_known] = boxes.boxes_xyxy[index[is_known]]
    scores[is_known] = boxes.scores[index[is_known]]
    return Knot(table, is_known, scores)


def _as_boxes(rows: IntervalRows, knot: Knot) -> FrameBoxes:
    return FrameBoxes(knot.boxes_xyxy, knot.scores, rows.labels, rows.track_ids)


def _frames_of(rows: IntervalRows, knots: dict[int, Knot], span: Span) -> list[FrameBoxes]:
    """Boxes of each inner frame, scores as ``NodeFiller`` says."""
    frames = np.arange(1, span.gap_frames)
    if not len(frames):
        return []
    table = interpolate_frames(knots, frames, span.times_s)
    scores = table.scores * np.where(rows.is_paired, 1.0, UNPAIRED_FACTOR)
    return inner_boxes(rows, table.boxes_xyxy, scores, table.is_known, span.frame_size)


def _greys_towards(span: Span, start: int, end: int) -> np.ndarray:
    """(|end - start| + 1, h, w) from frame ``start`` to frame ``end``, in either direction."""
    frames = range(start, end + 1) if start < end else range(start, end - 1, -1)
    return np.stack([span.prepared[frame].grey for frame in frames])
