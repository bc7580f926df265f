"""How the two propagations that meet at a middle frame become one box per object.

Every function takes ``Meeting`` and gives (boxes (R, 4), is_known (R,)); the registry of names is
the dict ``MERGES``. An object that one side alone reached (one keyframe alone knows it) takes
that side's box; one that no side reached (its score was too low to propagate) takes the linear
box.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vision.common.core.boxes import batched_nms
from vision.common.core.errors import VisionError
from vision.lattice.core.interpolate import Knot

UNION_IOU = 0.5
# Our choice after a look at MovingSprites, DAVIS and MOT15: a departure below about 0.07
# box sizes is noise of the networks, see benchmarks/lattice_quality.py.
AGREE_STRICTNESS = 2.0
AGREE_NOISE = 0.05


@dataclass(frozen=True, eq=False)
class Side:
    """Boxes that one direction of propagation put on the middle frame.

    Shapes: boxes_xyxy (R, 4) float64; visibility (R,) float64 in [0, 1]; is_known (R,) bool,
        False where nothing was propagated: visibility is 0 there, the box means nothing.
    """

    boxes_xyxy: np.ndarray
    visibility: np.ndarray
    is_known: np.ndarray

    @classmethod
    def empty(cls, num_rows: int) -> Side:
        """R rows of which nothing is known."""
        return cls(np.zeros((num_rows, 4)), np.zeros(num_rows), np.zeros(num_rows, bool))

    def take(self, index: np.ndarray) -> Side:
        """Rows by index (R,); -1 gives a row where nothing is known."""
        if not len(self.is_known):
            return Side.empty(len(index))
        is_known = self.is_known[index] & (index >= 0)
        return Side(self.boxes_xyxy[index], np.where(is_known, self.visibility[index], 0.0),
                    is_known)


@dataclass(frozen=True, eq=False)
class Meeting:
    """What is known of R objects at one middle frame.

    Args:
        left, right: the two propagations.
        linear: boxes and scores by interpolation between the ends of the span.
        left_weight: closeness in time of the left end in (0, 1); the right one has the rest.
        left_scores, right_scores: (R,) scores of the objects at the ends of the span.
        labels: (R,) classes.
    """

    left: Side
    right: Side
    linear: Knot
    left_weight: float
    left_scores: np.ndarray
    right_scores: np.ndarray
    labels: np.ndarray

    @property
    def reached_by_both(self) -> np.ndarray:
        """(R,) bool: both propagations put a box there."""
        return self.left.is_known & self.right.is_known

    def with_both(self, boxes_of_both: np.ndarray) -> np.ndarray:
        """(R, 4): these boxes where both sides are known, else the one side, else linear."""
        boxes = np.where(self.left.is_known[:, None], self.left.boxes_xyxy,
                         self.linear.boxes_xyxy)
        boxes = np.where(self.right.is_known[:, None], self.right.boxes_xyxy, boxes)
        return np.where(self.reached_by_both[:, None], boxes_of_both, boxes)

    @property
    def is_known(self) -> np.ndarray:
        """(R,) bool: a propagation put a box there, or interpolation did."""
        return self.left.is_known | self.right.is_known | self.linear.is_known


Merge = Callable[[Meeting], tuple[np.ndarray, np.ndarray]]


def _evidence(meeting: Meeting) -> tuple[np.ndarray, np.ndarray]:
    """(R,) weights of left and right: score times closeness in time."""
    return (meeting.left_scores * meeting.left_weight,
            meeting.right_scores * (1 - meeting.left_weight))


def merge_pair(meeting: Meeting) -> tuple[np.ndarray, np.ndarray]:
    """Mean of both boxes, weighted by score and closeness in time (our choice).

    Returns (R, 4) boxes xyxy in px and (R,) bool, as every merge does.
    """
    left, right = _evidence(meeting)
    total = left + right
    share = np.divide(left, total, out=np.full_like(total, meeting.left_weight),
                      where=total > 0)[:, None]
    mean = share * meeting.left.boxes_xyxy + (1 - share) * meeting.right.boxes_xyxy
    return meeting.with_both(mean), meeting.is_known


def merge_median(meeting: Meeting) -> tuple[np.ndarray, np.ndarray]:
    """Each coordinate is the median of left, right and the linear box: (R, 4) boxes, (R,) bool.

    Our choice: where motion is unreliable one of the propagations goes astray, and the middle of
    three candidates ignores it without a threshold.
    """
    both = np.median([meeting.left.boxes_xyxy, meeting.right.boxes_xyxy,
                      meeting.linear.boxes_xyxy], axis=0)
    return meeting.with_both(both), meeting.is_known


def merge_agree(meeting: Meeting) -> tuple[np.ndarray, np.ndarray]:
    """The linear box, moved as far as left and right agree that it is wrong (our choice): (R, 4)
    boxes, (R,) bool.

    A positive-part James-Stein estimate with the linear box as its origin: m is the mean of both
    sides' departures from the linear box and d half of their difference; m is shrunk by
    max(0, 1 - AGREE_STRICTNESS (|d|^2 + AGREE_NOISE^2) / |m|^2). Independent errors give |d| about
    |m|, hence no departure; a turn or a bounce that both directions see gives |d| << |m|. Centre
    (over sqrt(w h)) and logs of w and h are judged apart.
    """
    origin = _centre_form(meeting.linear.boxes_xyxy)
    sides = [_centre_form(side.boxes_xyxy) - origin for side in (meeting.left, meeting.right)]
    mean, half = (sides[0] + sides[1]) / 2, (sides[0] - sides[1]) / 2
    size = np.exp(origin[:, 2:].mean(axis=1, keepdims=True))
    for part, unit in ((slice(0, 2), size), (slice(2, 4), 1.0)):
        doubt = np.square(half[:, part] / unit).sum(axis=1) + AGREE_NOISE**2
        signal = np.maximum(np.square(mean[:, part] / unit).sum(axis=1), 1e-12)
        mean[:, part] *= np.clip(1 - AGREE_STRICTNESS * doubt / signal, 0, 1)[:, None]
    moved = origin + mean
    half_sides = np.exp(moved[:, 2:]) / 2
    both = np.concatenate([moved[:, :2] - half_sides, moved[:, :2] + half_sides], axis=1)
    departs = np.abs(mean).sum(axis=1, keepdims=True) > 0
    return meeting.with_both(np.where(departs, both, meeting.linear.boxes_xyxy)), meeting.is_known


def _centre_form(boxes: np.ndarray) -> np.ndarray:
    """(R, 4) xyxy -> centre x, y, log w, log h; sides count as at least 1 px."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1.0)
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, np.log(sides)], axis=1)


def merge_union_nms(meeting: Meeting) -> tuple[np.ndarray, np.ndarray]:
    """Union of both sides, thinned by suppression within classes at IoU 0.5: (R, 4) boxes, (R,)
    bool.

    The plainest merge: no box is moved. A row stands for one object, so where both of its boxes
    survive, the one of more evidence speaks for it; where both are suppressed by other objects it
    has no box on this frame.
    """
    evidence = np.concatenate(_evidence(meeting))
    boxes = np.concatenate([meeting.left.boxes_xyxy, meeting.right.boxes_xyxy])
    candidates = np.flatnonzero(np.concatenate([meeting.left.is_known, meeting.right.is_known]))
    num_rows = len(meeting.labels)
    kept = candidates[batched_nms(boxes[candidates], evidence[candidates],
                                  meeting.labels[candidates % num_rows], UNION_IOU)]
    merged = meeting.linear.boxes_xyxy.copy()
    # Best first, so write the worst first: the best of a row's two boxes stays.
    merged[kept[::-1] % num_rows] = boxes[kept[::-1]]
    untouched = ~(meeting.left.is_known | meeting.right.is_known)
    is_known = untouched & meeting.linear.is_known
    is_known[kept % num_rows] = True
    return merged, is_known


MERGES: dict[str, Merge] = dict(union_nms=merge_union_nms, pair=merge_pair, median=merge_median,
                                agree=merge_agree)


def get_merge(name: str) -> Merge:
    """The merge of that name.

    Raises:
        VisionError: VIS-CONFIG-104, with all names, when there is none.
    """
    if name not in MERGES:
        raise VisionError('VIS-CONFIG-104', f'merge={name!r} is not known', where='merge',
                          why=f'the merges are {", ".join(sorted(MERGES))}',
                          do='use one of these names')
    return MERGES[name]
