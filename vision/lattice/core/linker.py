"""Objects across keyframes: the rows of an interval and their track ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vision.lattice.core.matching import CONFIDENT_SCORE, match_boxes
from vision.lattice.core.structures import FrameBoxes

NO_ROW = -1


@dataclass(frozen=True, eq=False)
class IntervalRows:
    """The objects of one interval; row i of every array is object i.

    First the boxes of the left keyframe in their order, then those of the right one that have no
    partner. R = number of objects.

    Shapes: left_index, right_index (R,) int64, row in the keyframe's boxes or ``NO_ROW``; labels,
        track_ids (R,) int64. Where the keyframes name two classes, the label is that of the
        higher score.
    """

    left_index: np.ndarray
    right_index: np.ndarray
    labels: np.ndarray
    track_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_paired(self) -> np.ndarray:
        """(R,) bool: seen at both keyframes."""
        return (self.left_index != NO_ROW) & (self.right_index != NO_ROW)


class TrackLinker:
    """Gives ids >= 1, unique in a video, and keeps them from keyframe to keyframe.

    An object missed by one keyframe gets its id back when a box of its class is near its last
    place at the next keyframe (our choice: detectors drop an object for a frame more often than
    objects die). Only the id is bridged; no box is invented at the keyframe itself.
    """

    def __init__(self) -> None:
        self._next_id = 1
        self._lost = FrameBoxes.empty()

    def reset(self) -> None:
        """A new video: ids start at 1 again."""
        self._next_id = 1
        self._lost = FrameBoxes.empty()

    def start(self, boxes: FrameBoxes) -> FrameBoxes:
        """Boxes of the first keyframe of a segment, with new ids: nothing links across a cut."""
        self._lost = FrameBoxes.empty()
        return boxes.replace(track_ids=self._new_ids(len(boxes)))

    def link(self, left: FrameBoxes, right: FrameBoxes,
             pairs: np.ndarray) -> tuple[IntervalRows, FrameBoxes]:
        """Rows of the interval, and the right boxes with their ids.

        Args:
            left: boxes of the left keyframe with ids.
            pairs: (P, 2) rows of left and right that are one object.
        """
        right_ids = np.full(len(right), NO_ROW, np.int64)
        right_ids[pairs[:, 1]] = left.track_ids[pairs[:, 0]]
        partner = np.full(len(left), NO_ROW, np.int64)
        partner[pairs[:, 0]] = pairs[:, 1]

        is_new = right_ids == NO_ROW
        newborn = np.flatnonzero(is_new)
        bridged = match_boxes(self._lost, right.select(newborn))
        right_ids[newborn[bridged[:, 1]]] = self._lost.track_ids[bridged[:, 0]]
        still_new = right_ids == NO_ROW
        right_ids[still_new] = self._new_ids(int(still_new.sum()))
        self._lost = left.select((partner == NO_ROW) & (left.scores >= CONFIDENT_SCORE))

        labels = left.labels.copy()
        i, j = pairs.T
        is_surer = right.scores[j] > left.scores[i]
        labels[i[is_surer]] = right.labels[j[is_surer]]
        rows = IntervalRows(
            left_index=np.concatenate([np.arange(len(left)), np.full(len(newborn), NO_ROW)]),
            right_index=np.concatenate([partner, newborn]),
            labels=np.concatenate([labels, right.labels[newborn]]),
            track_ids=np.concatenate([left.track_ids, right_ids[newborn]]))
        return rows, right.replace(track_ids=right_ids)

    def _new_ids(self, count: int) -> np.ndarray:
        self._next_id += count
        return np.arange(self._next_id - count, self._next_id)
