"""Boxes and scores of the objects of an interval at any of its frames, from a few known frames.

A knot is a frame whose boxes are known: a keyframe or a propagated frame. K knots, R objects
(rows), F frames to fill.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Knot:
    """The objects at one known frame.

    Shapes: boxes_xyxy (R, 4) float64; is_known (R,) bool, False where the object has no box
        here; scores (R,) float64, 0 where the detector of a keyframe saw nothing.
    """

    boxes_xyxy: np.ndarray
    is_known: np.ndarray
    scores: np.ndarray

    @classmethod
    def stack(cls, knots: list[Knot]) -> Knot:
        """K knots as one with a leading axis K."""
        return cls(*(np.stack([getattr(knot, name) for knot in knots])
                     for name in ('boxes_xyxy', 'is_known', 'scores')))


def between(before: Knot, after: Knot, weight: np.ndarray | float) -> Knot:
    """Linear between two knots; weight 0 is ``before``, 1 is ``after``.

    Boxes known on both sides move linearly; those known on one side are held where they are;
    scores are linear, so a box seen on one side only fades out towards the other. With a
    leading axis F on both knots and weight (F,), all frames come at once.
    """
    weight = np.asarray(weight, np.float64)[..., None]
    both = before.is_known & after.is_known
    towards = np.where(both, weight, np.where(before.is_known, 0.0, 1.0))[..., None]
    # Not before + w * (after - before): at w = 1 that is not exactly the box of ``after``.
    boxes = (1 - towards) * before.boxes_xyxy + towards * after.boxes_xyxy
    scores = (1 - weight) * before.scores + weight * after.scores
    return Knot(boxes, before.is_known | after.is_known, scores)


def interpolate_frames(knots: dict[int, Knot], frames: np.ndarray, times: np.ndarray) -> Knot:
    """All frames (F,) at once, each between its nearest knots: arrays (F, R, 4), (F, R), (F, R).

    ``frames`` lie between the first and the last knot; a frame that is a knot gives that knot.

    Args:
        times: when frame i was taken, growing, for every frame from 0 to the last knot.
    """
    known_frames = np.array(sorted(knots))
    table = Knot.stack([knots[frame] for frame in known_frames.tolist()])
    after = np.clip(np.searchsorted(known_frames, frames), 1, None)
    before = after - 1
    start, end = times[known_frames[before]], times[known_frames[after]]
    weight = (times[frames] - start) / (end - start)
    pick = [Knot(table.boxes_xyxy[i], table.is_known[i], table.scores[i])
            for i in (before, after)]
    return between(*pick, weight)
