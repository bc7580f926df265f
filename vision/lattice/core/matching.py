"""Which box of one keyframe is which box of another: assignment within classes."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from vision.common.core.boxes import giou_matrix
from vision.lattice.core.merge import Side
from vision.lattice.core.structures import FrameBoxes

# A pair of centres further apart than this many mean box sizes is no pair (our choice: at 24
# frames between keyframes fast objects do not overlap themselves any more, so IoU cannot match).
MAX_DISTANCE_IN_SIZES = 3.0
# Boxes at least this sure are matched among themselves first, so that a strong object is not
# claimed by weak clutter nearby (the two rounds of ByteTrack, arXiv:2110.06864).
CONFIDENT_SCORE = 0.3
# The same gate where two propagations of one object should coincide.
MAX_DISTANCE_AT_MIDDLE = 1.0


def matching_cost(left_xyxy: np.ndarray, right_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cost (1 - GIoU) + d and distance d, each (N, M), of boxes (N, 4) and (M, 4).

    d is the distance of the centres over the mean of both sizes, size = sqrt(area).
    """
    left, right = np.asarray(left_xyxy, np.float64), np.asarray(right_xyxy, np.float64)
    centre_l, centre_r = (left[:, :2] + left[:, 2:]) / 2, (right[:, :2] + right[:, 2:]) / 2
    size_l, size_r = (np.sqrt(np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 1e-3, None), axis=1))
                      for boxes in (left, right))
    offset = centre_l[:, None] - centre_r[None]
    distance = np.hypot(offset[..., 0], offset[..., 1]) / ((size_l[:, None] + size_r[None]) / 2)
    return 1 - giou_matrix(left, right) + distance, distance


def match_boxes(left: FrameBoxes, right: FrameBoxes, *,
                max_distance: float = MAX_DISTANCE_IN_SIZES) -> np.ndarray:
    """Pairs (P, 2) int64 of a row of left and a row of right, sorted by the left row.

    One row is in at most one pair; a pair has one class. Minimal total cost (``matching_cost``)
    where leaving a pair of rows alone costs 2 + max_distance, the most an allowed pair can cost,
    so that one perfect pair is not broken up to make two bad ones.

    Args:
        max_distance: gate on the distance of centres, in mean box sizes.
    """
    if not len(left) or not len(right):
        return np.zeros((0, 2), np.int64)
    cost, distance = matching_cost(left.boxes_xyxy, right.boxes_xyxy)
    is_allowed = (left.labels[:, None] == right.labels[None]) & (distance <= max_distance)
    cost = np.where(is_allowed, cost, 2 + max_distance)
    sure_l = np.flatnonzero(left.scores >= CONFIDENT_SCORE)
    sure_r = np.flatnonzero(right.scores >= CONFIDENT_SCORE)
    first = _assign(cost, is_allowed, sure_l, sure_r)
    second = _assign(cost, is_allowed, np.setdiff1d(np.arange(len(left)), first[:, 0]),
                     np.setdiff1d(np.arange(len(right)), first[:, 1]))
    pairs = np.concatenate([first, second])
    return pairs[np.argsort(pairs[:, 0])]


def match_at_middle(left: FrameBoxes, right: FrameBoxes, left_at_mid: Side,
                    right_at_mid: Side) -> np.ndarray:
    """Pairs (P, 2) of keyframe rows by where propagation puts them on one middle frame.

    Our choice: the two propagations of one object meet there even when the object crossed the
    picture between the keyframes, so the gate is tight (``MAX_DISTANCE_AT_MIDDLE``). Rows that
    did not meet a partner (or were not propagated) are matched where they stand on the
    keyframes, as ``match_boxes`` does without propagation: a bad propagation costs no pair.

    Args:
        left_at_mid, right_at_mid: the rows of left and right on the middle frame.
    """
    known_l = np.flatnonzero(left_at_mid.is_known)
    known_r = np.flatnonzero(right_at_mid.is_known)
    met = match_boxes(left.replace(boxes_xyxy=left_at_mid.boxes_xyxy).select(known_l),
                      right.replace(boxes_xyxy=right_at_mid.boxes_xyxy).select(known_r),
                      max_distance=MAX_DISTANCE_AT_MIDDLE)
    met = np.stack([known_l[met[:, 0]], known_r[met[:, 1]]], axis=1)
    rest_l = np.setdiff1d(np.arange(len(left)), met[:, 0])
    rest_r = np.setdiff1d(np.arange(len(right)), met[:, 1])
    others = match_boxes(left.select(rest_l), right.select(rest_r))
    others = np.stack([rest_l[others[:, 0]], rest_r[others[:, 1]]], axis=1)
    pairs = np.concatenate([met, others])
    return pairs[np.argsort(pairs[:, 0])]


def _assign(cost: np.ndarray, is_allowed: np.ndarray, rows: np.ndarray,
            columns: np.ndarray) -> np.ndarray:
    """Allowed pairs (P, 2) of the cheapest assignment within these rows and columns."""
    chosen = linear_sum_assignment(cost[np.ix_(rows, columns)])
    pairs = np.stack([rows[chosen[0]], columns[chosen[1]]], axis=1).astype(np.int64)
    return pairs[is_allowed[pairs[:, 0], pairs[:, 1]]]
