"""Which box of one keyframe is which box of another: assignment within classes."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from vision.common.core.boxes import giou_matrix, iou_matrix
from vision.lattice.core.merge import Side
from vision.lattice.core.structures import FrameBoxes

# A pair of centres further apart than this many mean box sizes is no pair (our choice: at 24
# frames between keyframes fast objects do not overlap themselves any more, so IoU cannot match).
MAX_DISTANCE_IN_SIZES = 3.0
# Boxes at least this sure are matched among themselves first, so that a strong object is not
# claimed by weak clutter nearby (the two rounds of ByteTrack, arXiv:2110.06864).
CONFIDENT_SCORE = 0.3
# The same gate where two propagations of one object should coincide.
MAX_DISTANCE_AT_MIDDLE = 1.25
# Sure boxes of two classes that overlap so much are one object whose label flipped.
FLIP_IOU = 0.5


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


def match_at_middle(left: FrameBoxes, right: FrameBoxes, left_at_mid: Side, right_at_mid: Side,
                    *, max_rest_distance: float = MAX_DISTANCE_IN_SIZES) -> np.ndarray:
    """Pairs (P, 2) of keyframe rows by where propagation puts them on one middle frame.

    Our choice: the two propagations of one object meet there even when the object crossed the
    picture between the keyframes, so the gate is tight (``MAX_DISTANCE_AT_MIDDLE``). Rows that
    did not meet a partner (or were not propagated) are matched where they stand on the
    keyframes, as ``match_boxes`` does without propagation: a bad propagation costs no pair. What
    is left and sure is paired across classes where it overlaps on the middle frame: detectors
    change their mind about an object more often than two objects swap places.

    Args:
        left_at_mid, right_at_mid: the rows of left and right on the middle frame.
        max_rest_distance: gate of the second round, in mean box sizes.
    """
    moved_l = left.replace(boxes_xyxy=left_at_mid.boxes_xyxy)
    moved_r = right.replace(boxes_xyxy=right_at_mid.boxes_xyxy)
    known = np.flatnonzero(left_at_mid.is_known), np.flatnonzero(right_at_mid.is_known)
    pairs = _match_rows(moved_l, moved_r, known, MAX_DISTANCE_AT_MIDDLE)
    pairs = np.concatenate([pairs, _match_rows(left, right, _unpaired(left, right, pairs),
                                               max_rest_distance)])
    pairs = np.concatenate([pairs, _match_flipped(moved_l, moved_r,
                                                  _unpaired(left, right, pairs))])
    return pairs[np.argsort(pairs[:, 0])]


def _unpaired(left: FrameBoxes, right: FrameBoxes, pairs: np.ndarray) -> list[np.ndarray]:
    return [np.setdiff1d(np.arange(len(side)), pairs[:, column])
            for column, side in enumerate((left, right))]


def _match_rows(left: FrameBoxes, right: FrameBoxes, rows: tuple[np.ndarray, np.ndarray],
                max_distance: float) -> np.ndarray:
    """``match_boxes`` among some rows of each side; pairs name the rows of the whole."""
    found = match_boxes(left.select(rows[0]), right.select(rows[1]), max_distance=max_distance)
    return np.stack([rows[0][found[:, 0]], rows[1][found[:, 1]]], axis=1)


def _match_flipped(left: FrameBoxes, right: FrameBoxes,
                   rows: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Pairs of sure rows of any class that overlap by ``FLIP_IOU``."""
    rows = [side_rows[side.scores[side_rows] >= CONFIDENT_SCORE]
            for side, side_rows in zip((left, right), rows, strict=True)]
    iou = iou_matrix(left.boxes_xyxy[rows[0]], right.boxes_xyxy[rows[1]])
    chosen = np.stack(linear_sum_assignment(-iou), axis=1)
    chosen = chosen[iou[chosen[:, 0], chosen[:, 1]] >= FLIP_IOU]
    return np.stack([rows[0][chosen[:, 0]], rows[1][chosen[:, 1]]], axis=1)


def _assign(cost: np.ndarray, is_allowed: np.ndarray, rows: np.ndarray,
            columns: np.ndarray) -> np.ndarray:
    """Allowed pairs (P, 2) of the cheapest assignment within these rows and columns."""
    chosen = linear_sum_assignment(cost[np.ix_(rows, columns)])
    pairs = np.stack([rows[chosen[0]], columns[chosen[1]]], axis=1).astype(np.int64)
    return pairs[is_allowed[pairs[:, 0], pairs[:, 1]]]
