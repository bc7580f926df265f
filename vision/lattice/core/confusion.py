"""Which boxes of a frame are right, and what is taken for what: the confusion matrix.

A frame's boxes above a score are matched to its true boxes, best score first, whatever the class;
each takes the true box that it overlaps most, of those that are free and above an IoU. This is
the matching of COCO without its classes, so that a confusion is one pair and not two errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vision.common.core.boxes import box_areas, iou_matrix
from vision.lattice.core.structures import FrameBoxes
from vision.lattice.core.vid_match import TruthFrame

SCORE_THR, IOU_THR = 0.3, 0.5  # of MMDetection's confusion_matrix.py


@dataclass(frozen=True, eq=False)
class JudgedFrame:
    """One frame, judged.

    Args:
        pairs: (K, 2) int, row of the true box and row of the found one.
        missed: rows of true boxes without a pair.
        extra: rows of found boxes without a pair.
        truth_labels, found_labels: (K,) labels of the pairs.
    """

    pairs: np.ndarray
    missed: np.ndarray
    extra: np.ndarray
    truth_labels: np.ndarray
    found_labels: np.ndarray

    @property
    def num_right(self) -> int:
        """Pairs of one label."""
        return int((self.truth_labels == self.found_labels).sum())

    @property
    def num_confused(self) -> int:
        """Pairs whose place is right and whose label is not."""
        return len(self.pairs) - self.num_right

    @property
    def f1(self) -> float:
        """2 right / (true + found); 1 when there is nothing to find and nothing found."""
        boxes = 2 * len(self.pairs) + len(self.missed) + len(self.extra)
        return 2 * self.num_right / boxes if boxes else 1.0


def judge_frame(truth: TruthFrame, found: FrameBoxes, *, score_thr: float = SCORE_THR,
                iou_thr: float = IOU_THR) -> JudgedFrame:
    """Match the boxes of one frame; found boxes without a pair inside a crowd are left out.

    Crowds are neither missed nor found. A found box is inside a crowd when ``iou_thr`` of its
    area is.
    """
    is_crowd = crowd_rows(truth)
    single = np.flatnonzero(~is_crowd)
    rows = np.flatnonzero(found.scores >= score_thr)
    rows = rows[np.argsort(-found.scores[rows], kind='stable')]
    overlap = iou_matrix(found.boxes_xyxy[rows], truth.boxes_xyxy[single])
    pairs, free = [], np.ones(len(single), bool)
    for number, row in enumerate(rows):
        values = np.where(free, overlap[number], -1.0)
        if len(single) and values.max() >= iou_thr:
            best = int(values.argmax())
            free[best] = False
            pairs.append((single[best], row))
    pairs = np.array(pairs, np.int64).reshape(-1, 2)
    extra = np.setdiff1d(rows, pairs[:, 1])
    extra = extra[~_is_inside(found.boxes_xyxy[extra], truth.boxes_xyxy[is_crowd], iou_thr)]
    return JudgedFrame(pairs, single[free], extra, truth.labels[pairs[:, 0]],
                       found.labels[pairs[:, 1]])


def confusion_matrix(truths: Sequence[TruthFrame], found: Sequence[FrameBoxes],
                     judged: Sequence[JudgedFrame], num_classes: int) -> np.ndarray:
    """(C + 1, C + 1) int64: row = true class, column = found class; the last of both is nothing:
    its column holds what was missed, its row what was found where nothing is."""
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for truth, boxes, frame in zip(truths, found, judged, strict=True):
        np.add.at(matrix, (frame.truth_labels, frame.found_labels), 1)
        np.add.at(matrix[:, num_classes], truth.labels[frame.missed], 1)
        np.add.at(matrix[num_classes], boxes.labels[frame.extra], 1)
    return matrix


def crowd_rows(truth: TruthFrame) -> np.ndarray:
    """(N,) bool."""
    return np.zeros(len(truth.labels), bool) if truth.is_crowd is None else truth.is_crowd


def _is_inside(boxes: np.ndarray, crowds: np.ndarray, share: float) -> np.ndarray:
    """(N,) bool: is ``share`` of the box's area in one of the regions?"""
    if not len(crowds) or not len(boxes):
        return np.zeros(len(boxes), bool)
    sides = np.clip(np.minimum(boxes[:, None, 2:], crowds[None, :, 2:])
                    - np.maximum(boxes[:, None, :2], crowds[None, :, :2]), 0, None)
    return sides.prod(-1).max(1) >= share * np.maximum(box_areas(boxes), 1e-9)
