"""MOTA and IDF1: do tracks find objects, and does one object keep one id?

Written here because the libraries for it bring pandas or matplotlib. Same definitions as
py-motmetrics (a test has cases by hand): CLEAR MOT (Bernardin and Stiefelhagen, 2008) and identity
measures (arXiv:1609.01775).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from vision.common.core.boxes import iou_matrix
from vision.lattice.core.structures import FrameBoxes
from vision.lattice.core.vid_match import TruthFrame

# Tracks are judged on boxes that one would show; average precision judges the weak ones.
MIN_SCORE = 0.3
MIN_IOU = 0.5


@dataclass(frozen=True)
class TrackScores:
    """Counts over all frames.

    Args:
        num_objects, num_boxes: boxes of the truth, and of the tracks.
        num_missed, num_false, num_switches: of CLEAR MOT.
        num_identified: boxes of tracks on the one object that each track is assigned to, in the
            assignment of whole tracks to whole objects that makes this number largest.
    """

    num_objects: int
    num_boxes: int
    num_missed: int
    num_false: int
    num_switches: int
    num_identified: int

    @property
    def mota(self) -> float:
        """1 - (missed + false + switches) / objects, at most 1, any negative number; NaN without
        objects."""
        errors = self.num_missed + self.num_false + self.num_switches
        return 1 - errors / self.num_objects if self.num_objects else float('nan')

    @property
    def idf1(self) -> float:
        """2 identified / (objects + boxes), in [0, 1]; NaN without either."""
        total = self.num_objects + self.num_boxes
        return 2 * self.num_identified / total if total else float('nan')


def score_tracks(truths: Sequence[TruthFrame], detections: Sequence[FrameBoxes], *,
                 min_score: float = MIN_SCORE, min_iou: float = MIN_IOU) -> TrackScores:
    """Over all videos together.

    A box can be on an object of its own class alone. Crowd regions are no objects, and boxes on
    them count as false. On each frame a pair of the frame before stays as long as its IoU reaches
    ``min_iou``; the rest is paired so that there are as many pairs as can be, then with the
    largest sum of IoU. A switch is an object whose id is not the one that it had last.

    Args:
        truths: labelled frames, those of a video in their order.
        detections: boxes of the same frames in the same order, with track ids.
        min_score: boxes below are left out.
    """
    overlap: Counter[tuple] = Counter()  # frames by (video, object, track)
    last_track: dict[tuple, int] = {}  # by (video, object)
    num_objects = num_boxes = num_pairs = num_switches = 0
    for truth, boxes in zip(truths, detections, strict=True):
        objects, tracks, iou = _overlaps(truth, boxes.select(boxes.scores >= min_score))
        is_near = iou >= min_iou
        rows, columns = np.nonzero(is_near)
        overlap.update((truth.video_id, objects[i], tracks[j])
                       for i, j in zip(rows.tolist(), columns.tolist(), strict=True))
        kept = [(i, j) for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
                if last_track.get((truth.video_id, objects[i])) == tracks[j]]
        pairs = _completed(iou, is_near, kept)
        current = {(truth.video_id, objects[i]): tracks[j] for i, j in pairs}
        num_switches += sum(last_track.get(key, track) != track for key, track in current.items())
        last_track |= current
        num_objects, num_boxes = num_objects + len(objects), num_boxes + len(tracks)
        num_pairs += len(pairs)
    return TrackScores(num_objects, num_boxes, num_objects - num_pairs, num_boxes - num_pairs,
                       num_switches, _num_identified(overlap))


def _overlaps(truth: TruthFrame, boxes: FrameBoxes) -> tuple[list[int], list[int], np.ndarray]:
    """Ids of the objects (N,) and of the boxes (M,), and their IoU (N, M), 0 between classes."""
    is_object = np.ones(len(truth.labels), bool)
    if truth.is_crowd is not None:
        is_object = ~np.asarray(truth.is_crowd, bool)
    labels = np.asarray(truth.labels)[is_object]
    iou = iou_matrix(np.reshape(truth.boxes_xyxy, (-1, 4))[is_object], boxes.boxes_xyxy)
    iou = np.where(labels[:, None] == boxes.labels[None], iou, 0.0)
    return np.asarray(truth.instance_ids)[is_object].tolist(), boxes.track_ids.tolist(), iou


def _completed(iou: np.ndarray, is_near: np.ndarray,
               kept: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """These pairs and the best ones among the rows and columns that they leave free."""
    # Two objects may have had one track last, at different times: the nearer one keeps it.
    kept = list({j: (i, j) for i, j in sorted(kept, key=lambda pair: iou[pair])}.values())
    rows = np.setdiff1d(np.arange(len(iou)), [i for i, _ in kept])
    columns = np.setdiff1d(np.arange(iou.shape[1]), [j for _, j in kept])
    # A pair is worth more than all IoU together, so their number comes first.
    worth = np.where(is_near, iou + iou.size + 1, 0.0)[np.ix_(rows, columns)]
    chosen = linear_sum_assignment(-worth)
    return kept + [(i, j) for i, j in zip(rows[chosen[0]].tolist(), columns[chosen[1]].tolist(),
                                          strict=True) if is_near[i, j]]


def _num_identified(overlap: Counter[tuple]) -> int:
    """Largest number of frames that an assignment of objects to tracks can have in common."""
    total = 0
    for video in {key[0] for key in overlap}:
        counts = {key[1:]: count for key, count in overlap.items() if key[0] == video}
        objects, tracks = (sorted({key[side] for key in counts}) for side in (0, 1))
        table = np.zeros((len(objects), len(tracks)))
        for (instance, track), count in counts.items():
            table[objects.index(instance), tracks.index(track)] = count
        total += int(table[linear_sum_assignment(-table)].sum())
    return total
