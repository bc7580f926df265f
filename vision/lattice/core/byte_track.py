"""ByteTrack (arXiv:2110.06864) on a detector that runs on few frames: a rival of the lattice.

Written here because the packages that hold it bring matplotlib and a second OpenCV. Kept: the
Kalman filter with its noise, prediction frame by frame, two rounds of association by IoU, the
first one fused with the scores. Ours, each in its favour where average precision judges: every
detection starts a track at once, so that weak boxes are carried, too; a track has one class.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from vision.common.core.boxes import iou_matrix
from vision.lattice.core.matching import CONFIDENT_SCORE
from vision.lattice.core.structures import FrameBoxes

# Of the published code: noise as a share of the height, and the largest 1 - IoU of a pair.
POSITION_NOISE, SPEED_NOISE = 1 / 20, 1 / 160
ASPECT_NOISE, ASPECT_SPEED_NOISE, ASPECT_MEASURED_NOISE = 1e-2, 1e-5, 1e-1
FIRST_MAX_COST, SECOND_MAX_COST = 0.8, 0.5
LOST_FRAMES = 30


class BoxFilter:
    """Kalman filters of N boxes: centre x, y, aspect w / h, height; each with its speed.

    No noise couples the four, so each is a filter of two numbers and all N x 4 run at once. The
    numbers equal those of the usual one with 8 x 8 matrices (a test compares them).

    Shapes: mean (N, 4, 2) value and speed per frame; covariance (N, 4, 2, 2).
    """

    def __init__(self, boxes_xyxy: np.ndarray) -> None:
        measured = as_measured(boxes_xyxy)
        self.mean = np.stack([measured, np.zeros_like(measured)], axis=-1)
        position, speed = self._noise(2 * POSITION_NOISE, 10 * SPEED_NOISE)
        self.covariance = np.zeros((*measured.shape, 2, 2))
        self.covariance[..., 0, 0], self.covariance[..., 1, 1] = position**2, speed**2

    def _noise(self, position: float, speed: float) -> tuple[np.ndarray, np.ndarray]:
        """(N, 4) deviations of the values and of the speeds."""
        height = self.mean[:, 3:, 0]
        one = np.ones_like(height)
        return (np.concatenate([position * height, position * height, ASPECT_NOISE * one,
                                position * height], axis=1),
                np.concatenate([speed * height, speed * height, ASPECT_SPEED_NOISE * one,
                                speed * height], axis=1))

    def predict(self) -> None:
        """One frame on."""
        position, speed = self._noise(POSITION_NOISE, SPEED_NOISE)
        step = np.array([[1.0, 1.0], [0.0, 1.0]])
        self.mean = self.mean @ step.T
        self.covariance = step @ self.covariance @ step.T
        self.covariance[..., 0, 0] += position**2
        self.covariance[..., 1, 1] += speed**2

    def update(self, rows: np.ndarray, boxes_xyxy: np.ndarray) -> None:
        """Boxes (K, 4) were seen where the tracks ``rows`` (K,) are."""
        noise = self._noise(POSITION_NOISE, SPEED_NOISE)[0]
        noise[:, 2] = ASPECT_MEASURED_NOISE
        mean, covariance = self.mean[rows], self.covariance[rows]
        gain = covariance[..., 0] / (covariance[..., 0, 0] + noise[rows]**2)[..., None]
        surprise = as_measured(boxes_xyxy) - mean[..., 0]
        self.mean[rows] = mean + gain * surprise[..., None]
        self.covariance[rows] = covariance - gain[..., :, None] * covariance[..., :1, :]

    def boxes_xyxy(self) -> np.ndarray:
        """(N, 4) where the boxes are now."""
        x, y, aspect, height = np.moveaxis(self.mean[..., 0], 1, 0)
        height = np.maximum(height, 0)
        half = np.stack([np.maximum(aspect, 0) * height, height], axis=1) / 2
        centre = np.stack([x, y], axis=1)
        return np.concatenate([centre - half, centre + half], axis=1)

    def select(self, index: np.ndarray) -> None:
        """Keep filters by boolean mask (N,) or integer index, in that order."""
        self.mean, self.covariance = self.mean[index], self.covariance[index]

    def extend(self, other: BoxFilter) -> None:
        """Append the filters of other boxes behind these."""
        self.mean = np.concatenate([self.mean, other.mean])
        self.covariance = np.concatenate([self.covariance, other.covariance])


class ByteTracker:
    """Tracks of one video; ``predict`` at each frame, then ``update`` where the detector ran."""

    def __init__(self) -> None:
        self._filter = BoxFilter(np.zeros((0, 4)))
        self._scores, self._ages = np.zeros(0), np.zeros(0, np.int64)
        self._labels, self._ids = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._is_lost = np.zeros(0, bool)
        self._next_id = 1

    def predict(self) -> None:
        """One frame on. The height of a lost track stands, as in the published code."""
        self._filter.mean[self._is_lost, 3, 1] = 0
        self._filter.predict()
        self._ages += 1

    def boxes(self) -> FrameBoxes:
        """The tracks that the last detection confirmed, where they are now."""
        shown = ~self._is_lost
        return FrameBoxes(self._filter.boxes_xyxy()[shown], self._scores[shown],
                          self._labels[shown], self._ids[shown])

    def update(self, detected: FrameBoxes) -> FrameBoxes:
        """The detected boxes with the ids of their tracks; each of them has one afterwards."""
        pairs = self._associate(detected)
        rows, columns = pairs.T
        self._filter.update(rows, detected.boxes_xyxy[columns])
        self._scores[rows] = detected.scores[columns]
        self._is_lost[:] = True
        self._is_lost[rows], self._ages[rows] = False, 0
        track_ids = np.zeros(len(detected), np.int64)
        track_ids[columns] = self._ids[rows]
        self._forget(self._ages <= LOST_FRAMES)
        newborn = np.flatnonzero(track_ids == 0)
        track_ids[newborn] = np.arange(self._next_id, self._next_id + len(newborn))
        self._next_id += len(newborn)
        detected = detected.replace(track_ids=track_ids)
        self._begin(detected.select(newborn))
        return detected

    def _associate(self, detected: FrameBoxes) -> np.ndarray:
        """(P, 2) rows of tracks and of detections: sure detections first, then the others with
        what is left of the tracks that were seen last time."""
        iou = iou_matrix(self._filter.boxes_xyxy(), detected.boxes_xyxy)
        iou = np.where(self._labels[:, None] == detected.labels[None], iou, 0.0)
        is_sure = detected.scores >= CONFIDENT_SCORE
        first = _pairs(1 - iou * detected.scores, np.arange(len(iou)), np.flatnonzero(is_sure),
                       FIRST_MAX_COST)
        rest = np.setdiff1d(np.flatnonzero(~self._is_lost), first[:, 0])
        return np.concatenate([first, _pairs(1 - iou, rest, np.flatnonzero(~is_sure),
                                             SECOND_MAX_COST)])

    def _begin(self, boxes: FrameBoxes) -> None:
        self._filter.extend(BoxFilter(boxes.boxes_xyxy))
        for name, values in (('_scores', boxes.scores), ('_labels', boxes.labels),
                             ('_ids', boxes.track_ids), ('_ages', np.zeros(len(boxes), np.int64)),
                             ('_is_lost', np.zeros(len(boxes), bool))):
            setattr(self, name, np.concatenate([getattr(self, name), values]))

    def _forget(self, kept: np.ndarray) -> None:
        self._filter.select(kept)
        for name in ('_scores', '_labels', '_ids', '_ages', '_is_lost'):
            setattr(self, name, getattr(self, name)[kept])


def as_measured(boxes_xyxy: np.ndarray) -> np.ndarray:
    """(N, 4) xyxy -> centre x, y, w / h, h, float64; sides count as at least 1 px."""
    boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1.0)
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, sides[:, :1] / sides[:, 1:],
                           sides[:, 1:]], axis=1)


def _pairs(cost: np.ndarray, rows: np.ndarray, columns: np.ndarray, limit: float) -> np.ndarray:
    """(P, 2): cheapest assignment of these rows and columns, pairs up to the limit."""
    # What may not be paired costs as much as two loners, so that it displaces no pair.
    part = np.minimum(cost[np.ix_(rows, columns)], limit + 1e-9)
    i, j = linear_sum_assignment(part)
    kept = part[i, j] <= limit
    return np.stack([rows[i[kept]], columns[j[kept]]], axis=1)
