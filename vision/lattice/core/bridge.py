"""Objects of two keyframes joined by paths of points, and their boxes on the frames between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vision.lattice.core.filling import FilledInterval, inner_boxes
from vision.lattice.core.linker import NO_ROW, IntervalRows, TrackLinker
from vision.lattice.core.matching import (
    CONFIDENT_SCORE,
    match_at_middle,
    match_boxes,
    rows_without,
)
from vision.lattice.core.merge import Side
from vision.lattice.core.paths import Paths, bends, end_weights, follow, mean_bend
from vision.lattice.core.structures import FrameBoxes

# What an object is worth that one keyframe alone saw: this share of its score beside it, half of
# that at the other keyframe, and half again where its points are lost (our choice, on PETS09-S2L1
# and the DAVIS training sequences: with a fade to 0, true objects that a keyframe missed rank
# below noise).
UNPAIRED_FACTOR = 0.8
FAR_SHARE = 0.5
LOST_FACTOR = 0.5
# A pair none of whose points ends well loses this share of its score on the frames between, one
# of which ``EASY_SHARE`` do nothing (our choice: PETS09-S2L1, T = 16: +1.0 mAP@.5).
DOUBT = 0.1
# Objects that did not meet are paired where they stand if their centres are this close, in mean
# box sizes: among walking people a wider gate joins strangers.
MAX_STANDING_DISTANCE = 0.8
# An object carried from the left that comes this close to a box of the right keyframe, in mean box
# sizes, with this share of its points well ended, is that box: nothing is asked of the way back.
SETTLED_DISTANCE = 0.35
SETTLED_SHARE = 0.5
# An interval is as easy as can be when this share of the points of its objects ends well.
EASY_SHARE = 0.6


@dataclass(frozen=True, eq=False)
class Tracked:
    """Boxes of one keyframe and the paths of those that were followed.

    Args:
        boxes: all boxes of the keyframe.
        rows: (K,) indices of the followed ones, growing.
        paths: of these, told from this keyframe to the other one.
        drift: (N, 2) px a frame, where each box was going before, see ``paths.follow``.
    """

    boxes: FrameBoxes
    rows: np.ndarray
    paths: Paths
    drift: np.ndarray | None = None

    def carried(self, wanted: np.ndarray | None = None,
                frames: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(K, R, 4) boxes and (K, R) trust; those that were not followed stand, with trust 0.

        Args:
            wanted: (R,) rows; default: all N.
            frames: (K,) of the F frames from this keyframe on; default: all.
        """
        wanted = np.arange(len(self.boxes)) if wanted is None else wanted
        start = self.boxes.boxes_xyxy[wanted].astype(np.float64)
        boxes = np.repeat(start[None], len(self.paths.xy if frames is None else frames), axis=0)
        trust = np.zeros(boxes.shape[:2])
        followed, places = _places(self.rows, wanted)
        drift = None if self.drift is None else self.drift[wanted[followed]]
        boxes[:, followed], trust[:, followed] = follow(
            start[followed], self.paths.take(places), drift, frames)
        return boxes, trust


def settled_pairs(left: Tracked, right: FrameBoxes) -> np.ndarray:
    """Pairs (P, 2) of rows of left and right that the way forward alone makes sure of.

    Our choice: they need no paths from the right, half of all on PETS09-S2L1, at equal accuracy.
    """
    boxes, trust = left.carried(frames=[-1])
    rows = np.flatnonzero(trust[-1] > 0)
    met = match_boxes(left.boxes.replace(boxes_xyxy=boxes[-1]).select(rows), right,
                      max_distance=SETTLED_DISTANCE)
    pairs = np.stack([rows[met[:, 0]], met[:, 1]], axis=1)
    _, places = _places(left.rows, pairs[:, 0])  # all are there: they have trust
    weights = end_weights(left.paths.take(places), left.boxes.boxes_xyxy[pairs[:, 0]],
                          right.boxes_xyxy[pairs[:, 1]])
    return pairs[weights.mean(axis=1) >= SETTLED_SHARE]


class PathBridge:
    """See ``vision.lattice.core.filling.Bridge``.

    An object that both keyframes know is on the straight line between its boxes (centre and sides
    linear in time) plus the mean departure of its points, weighed by how well they end
    (``paths``); its score is the mean of both, see ``DOUBT``. One that a single keyframe knows
    goes with its points. Objects are paired where they meet on the middle frame, then where they
    stand.

    Args:
        left, right: both keyframes with their paths; those of the right one are told backwards.
        shares: (F,) times of the frames, 0 at the left keyframe and 1 at the right one.
        frame_size: (H, W) of the frames, px.
        settled: (P, 2) pairs that are known already; their right boxes need no paths.
        is_filled: False where the inner frames are of no use any more: their boxes went out
            without look-ahead. The right boxes need no paths then, and objects meet there.
    """

    def __init__(self, left: Tracked, right: Tracked, shares: np.ndarray,
                 frame_size: tuple[int, int], *, settled: np.ndarray,
                 is_filled: bool = True) -> None:
        self.left, self.right, self.shares, self.frame_size = left, right, shares, frame_size
        self.is_filled = is_filled
        last = len(shares) - 1
        middle = len(shares) // 2 if is_filled else last
        rest = [rows_without(len(side.boxes), rows)
                for side, rows in zip((left, right), settled.T, strict=True)]
        (left_boxes, left_trust), (right_boxes, right_trust) = (
            side.carried(rows, [frame]) for side, rows, frame in
            zip((left, right), rest, (middle, last - middle), strict=True))
        if not is_filled:
            right_trust = np.ones_like(right_trust)  # it is where it is
        sides = [Side(boxes[0], trust[0], trust[0] > 0) for boxes, trust in
                 ((left_boxes, left_trust), (right_boxes, right_trust))]
        met = match_at_middle(left.boxes.select(rest[0]), right.boxes.select(rest[1]), *sides,
                              max_rest_distance=MAX_STANDING_DISTANCE)
        pairs = np.concatenate([settled, np.stack([rest[0][met[:, 0]], rest[1][met[:, 1]]],
                                                  axis=1)])
        self.pairs = pairs[np.argsort(pairs[:, 0])]

    def easiness(self, size_cap: float) -> float:
        """Mean over the objects that a keyframe is sure of: 1 where ``EASY_SHARE`` of the points
        of either keyframe end well, less in proportion; 0 for an object without a partner. Our
        choice; ``size_cap`` belongs to the paper's measure (``easiness``) and plays no part."""
        sure_l, sure_r = (side.boxes.scores >= CONFIDENT_SCORE for side in (self.left, self.right))
        i, j = self.pairs.T
        is_counted = sure_l[i] | sure_r[j]
        num_objects = (is_counted.sum() + np.delete(sure_l, i).sum() + np.delete(sure_r, j).sum())
        if not num_objects:
            return 1.0
        return float(self._certainty[is_counted].sum() / num_objects)

    def fill(self, linker: TrackLinker) -> FilledInterval:
        """Boxes of the inner frames, none without ``is_filled``; the right boxes get their ids
        from the linker here, and ``drift`` (N, 2), their mean movement from the left keyframe,
        px a frame."""
        rows, right = linker.link(self.left.boxes, self.right.boxes, self.pairs)
        if not self.is_filled:
            return FilledInterval([], [], right, self._drift())
        boxes, trust = self._carried_alone(rows)
        boxes[:, rows.is_paired] = self._paired_boxes()
        scores = self._scores(rows, trust)
        inner = slice(1, -1)
        inner = inner_boxes(rows, boxes[inner], scores[inner], np.ones(scores[inner].shape, bool),
                            self.frame_size)
        return FilledInterval(inner, [True] * len(inner), right, self._drift())

    def _drift(self) -> np.ndarray:
        """(N, 2) mean movement of the right boxes so far, px a frame; NaN where it is unknown."""
        left, right = (side.boxes.boxes_xyxy.astype(np.float64)
                       for side in (self.left, self.right))
        drift = np.full((len(right), 2), np.nan)
        i, j = self.pairs.T
        moved = right[j] - left[i]
        drift[j] = (moved[:, :2] + moved[:, 2:]) / 2 / (len(self.shares) - 1)
        return drift

    def _carried_alone(self, rows: IntervalRows) -> tuple[np.ndarray, np.ndarray]:
        """(F, R, 4) boxes and (F, R) trust of rows that a single keyframe knows; others 0."""
        boxes = np.zeros((len(self.shares), len(rows), 4))
        trust = np.zeros(boxes.shape[:2])
        for side, index, flip in ((self.left, rows.left_index, 1),
                                  (self.right, rows.right_index, -1)):
            alone = np.flatnonzero((index != NO_ROW) & ~rows.is_paired)
            carried = side.carried(index[alone])
            boxes[:, alone], trust[:, alone] = (values[::flip] for values in carried)
        return boxes, trust

    def _paired_boxes(self) -> np.ndarray:
        """(F, P, 4) boxes of objects that both keyframes know; exact on both of them."""
        pairs = self.pairs
        start, end = (side.boxes.boxes_xyxy[rows].astype(np.float64) for side, rows in
                      zip((self.left, self.right), pairs.T, strict=True))
        # The sides are linear, not their logs: an object that jumps out of the distance fills
        # its box early (motocross-jump of DAVIS, T = 16: 79 mAP@.5 against 61).
        share = self.shares[:, None, None]
        boxes = (1 - share) * start + share * end
        weight = np.zeros(len(pairs))
        bend = np.zeros((len(self.shares), len(pairs), 2))
        squares = np.zeros(bend.shape[:2])
        for side, weights, flip in zip((self.left, self.right), self._weights, (1, -1),
                                       strict=True):
            followed, places = _places(side.rows, pairs[:, 0 if flip == 1 else 1])
            times = self.shares if flip == 1 else 1 - self.shares[::-1]
            total, total_squares = bends(side.paths.take(places), weights[followed], times)
            bend[:, followed] += total[::flip]
            squares[:, followed] += total_squares[::flip]
            weight += weights.sum(axis=1)
        return boxes + np.tile(mean_bend(bend, squares, weight), 2)

    @cached_property
    def _certainty(self) -> np.ndarray:
        """(P,) in [0, 1]: 1 where ``EASY_SHARE`` of the points of either keyframe end well."""
        share = np.max([weights.mean(axis=1) for weights in self._weights], axis=0)
        return np.minimum(1, share / EASY_SHARE)

    @cached_property
    def _weights(self) -> list[np.ndarray]:
        """(P, points) end weights of the left and of the right paths; 0 where not followed."""
        pairs = self.pairs
        found = []
        starts = self.left.boxes.boxes_xyxy[pairs[:, 0]], self.right.boxes.boxes_xyxy[pairs[:, 1]]
        for side, own, boxes in ((self.left, 0, starts), (self.right, 1, starts[::-1])):
            weights = np.zeros((len(pairs), side.paths.xy.shape[2]))
            followed, places = _places(side.rows, pairs[:, own])
            weights[followed] = end_weights(side.paths.take(places), boxes[0][followed],
                                            boxes[1][followed])
            found.append(weights)
        return found

    def _scores(self, rows: IntervalRows, trust: np.ndarray) -> np.ndarray:
        """(F, R): see ``DOUBT`` for pairs, ``UNPAIRED_FACTOR`` for the others.

        The mean, not a line in time: on a line the frames beside the keyframe that was less sure
        of an object rank below noise (DAVIS, T = 16: +1.7 mAP@.5).
        """
        left, right = (np.where(index == NO_ROW, 0.0, np.append(side.boxes.scores, 0.0)[index])
                       for side, index in ((self.left, rows.left_index),
                                           (self.right, rows.right_index)))
        share = self.shares[:, None]
        paired = (left + right) / 2
        paired[rows.is_paired] *= 1 - DOUBT * (1 - self._certainty)
        nearness = np.where(rows.left_index != NO_ROW, 1 - share, share)
        alone = (left + right) * (FAR_SHARE + (1 - FAR_SHARE) * nearness)
        alone = alone * UNPAIRED_FACTOR * np.where(trust > 0, 1.0, LOST_FACTOR)
        return np.where(rows.is_paired, paired, alone)


def _places(rows: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the wanted rows stand among the (sorted) followed rows: (which wanted, place)."""
    places = np.searchsorted(rows, wanted)
    is_there = places < len(rows)
    is_there[is_there] = rows[places[is_there]] == wanted[is_there]
    return np.flatnonzero(is_there), places[is_there]

