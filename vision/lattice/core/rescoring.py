"""Rescoring of whole tubes (offline): one label and one score for an object over a video.

A tube is all boxes of one track id. Scale-Time Lattice (arXiv:1804.05472) rescores tubes with a
classifier on crops; here the detector's own scores are averaged instead, which needs no further
network (our choice, in the manner of Seq-NMS, arXiv:1602.08465).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vision.lattice.core.structures import FrameBoxes, FrameResult


def rescore_tubes(results: Sequence[FrameResult]) -> list[FrameResult]:
    """The same frames and boxes, with the label and score of their tube.

    Of each tube: label = the class with the largest sum of scores (the lower class index if two
    are equal); score = that sum / number of boxes in the tube, of any class. The score is
    therefore at most 1, and boxes of another class pull it down. Boxes that belong to no tube
    (``track_ids`` below 1) keep label and score. Order of frames and boxes does not change, and
    nothing is added or removed. Track ids must be unique over ``results``: rescore one video at a
    time.
    """
    boxes = FrameBoxes.concatenate(result.boxes for result in results)
    labels, scores = tube_votes(boxes.track_ids, boxes.labels, boxes.scores)
    ends = np.cumsum([len(result.boxes) for result in results])
    return [replace(result, boxes=result.boxes.replace(
        labels=labels[end - len(result.boxes):end], scores=scores[end - len(result.boxes):end]))
            for result, end in zip(results, ends, strict=True)]


def tube_votes(track_ids: np.ndarray, labels: np.ndarray,
               scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores (N,) after the vote of each tube; all arguments (N,)."""
    is_linked = track_ids >= 1
    new_labels, new_scores = labels.copy(), scores.copy()
    if not is_linked.any():
        return new_labels, new_scores
    _, tube = np.unique(track_ids[is_linked], return_inverse=True)
    classes, label = np.unique(labels[is_linked], return_inverse=True)
    sums = np.zeros((tube.max() + 1, len(classes)))
    np.add.at(sums, (tube, label), scores[is_linked])
    best = sums.argmax(axis=1)
    mean = sums[np.arange(len(sums)), best] / np.bincount(tube)
    new_labels[is_linked] = classes[best][tube]
    new_scores[is_linked] = mean[tube]
    return new_labels, new_scores
