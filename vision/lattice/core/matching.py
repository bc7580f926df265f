"""Which box of one keyframe is which box of another: assignment within classes."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from vision.common.core.boxes import iou_matrix, paired_giou
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


def match_boxes(left: FrameBoxes, right: FrameBoxes, *,
                max_distance: float = MAX_DISTANCE_IN_SIZES) -> np.ndarray:
    """Pairs (P, 2) int64 of a row of left and a row of right, sorted by the left row.

    One row is in at most one pair; a pair has one class. A pair costs (1 - GIoU) + d, d the
    distance of its centres over the mean of both sizes, size = sqrt(area). The total is minimal,
    where leaving a pair of rows alone costs 2 + max_distance, the most an allowed pair can cost,
    so that one perfect pair is not broken up to make two bad ones.

    Args:
        max_distance: gate on the distance of centres, in mean box sizes.
    """
    # A detector gives a hundred boxes a frame, nearly all too far apart: only pairs inside the
    # gate are looked at closely.
    left_xyxy, right_xyxy = (side.boxes_xyxy.astype(np.float64) for side in (left, right))
    (x_l, y_l, size_l), (x_r, y_r, size_r) = map(_places, (left_xyxy, right_xyxy))
    x, y = x_l[:, None] - x_r, y_l[:, None] - y_r
    mean_size = (size_l[:, None] + size_r) / 2
    i, j = np.nonzero((x * x + y * y <= np.square(max_distance * mean_size))
                      & (left.labels[:, None] == right.labels))
    distance = np.hypot(x[i, j], y[i, j]) / mean_size[i, j]
    saved = np.zeros(x.shape)  # by pairing, over leaving alone; 0: not allowed
    saved[i, j] = 1 + max_distance + paired_giou(left_xyxy[i], right_xyxy[j]) - distance
    sure_l, sure_r = (side.scores >= CONFIDENT_SCORE for side in (left, right))
    first = _assign(saved, sure_l, sure_r)
    is_free_l, is_free_r = np.ones(len(left), bool), np.ones(len(right), bool)
    is_free_l[first[:, 0]] = is_free_r[first[:, 1]] = False
    pairs = np.concatenate([first, _assign(saved, is_free_l, is_free_r)])
    return pairs[np.argsort(pairs[:, 0])]


def _places(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x and y of the centres, and sizes, of boxes (N, 4)."""
    x1, y1, x2, y2 = boxes.T
    size = np.sqrt(np.maximum(x2 - x1, 1e-3) * np.maximum(y2 - y1, 1e-3))
    return (x1 + x2) / 2, (y1 + y2) / 2, size


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
    return [rows_without(len(side), rows) for side, rows in zip((left, right), pairs.T,
                                                                strict=True)]


def rows_without(num_rows: int, rows: np.ndarray) -> np.ndarray:
    """(M,) int64: all of 0..num_rows-1 but these (N,), growing. ``np.setdiff1d`` sorts, and takes
    ten times as long."""
    is_left = np.ones(num_rows, bool)
    is_left[rows] = False
    return np.flatnonzero(is_left)


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


def _assign(saved: np.ndarray, is_row: np.ndarray, is_column: np.ndarray) -> np.ndarray:
    """Allowed pairs (P, 2) that save the most, within these rows (N,) and columns (M,)."""
    allowed = (saved > 0) & is_row[:, None] & is_column[None]
    rows, columns = np.flatnonzero(allowed.any(axis=1)), np.flatnonzero(allowed.any(axis=0))
    part = saved[rows[:, None], columns]
    chosen = np.stack(linear_sum_assignment(part, maximize=True), axis=1)
    chosen = chosen[part[chosen[:, 0], chosen[:, 1]] > 0]
    return np.stack([rows[chosen[:, 0]], columns[chosen[:, 1]]], axis=1)
