"""Paths of points through the frames of an interval, and the boxes that go with them.

A box gets a grid of points; something (sparse optical flow) follows them from frame to frame.
Where an object is boxed at one keyframe only, its box goes with the median of its points. Where it
is boxed at both, more is known: a point that lies on the object ends at its own place of the end
box, one on the background does not. So the points are weighed by where they end, their paths are
bent until they end exactly there, and the box leaves the straight line between its two known
places as these paths do: no drift is left at either end, and lost points leave the straight line.
Our choice; nothing of the kind is in the Scale-Time Lattice paper (arXiv:1804.05472).

F frames of the interval, keyframes included; N boxes; P points a box; all in original pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# A grid stays off the rim of its box, where the background is (share of the side).
GRID_MARGIN = 0.12
# Fewer followed points than this share of the grid say nothing of the box.
MIN_SHARE = 0.25
# Where points end, in box sizes off their place, at which their weight is 1 / e.
END_SIGMA = 0.25
# The straight line counts as much as this many points that end well.
LINE_POINTS = 1.0


@dataclass(frozen=True, eq=False)
class Paths:
    """Shapes: xy (F, N, P, 2) float32; is_good (F, N, P) bool, followed up to this frame."""

    xy: np.ndarray
    is_good: np.ndarray

    def take(self, rows: np.ndarray) -> Paths:
        """The paths of some boxes, by index."""
        return Paths(self.xy[:, rows], self.is_good[:, rows])

    def reversed(self) -> Paths:
        """The same points told from the last frame to the first."""
        return Paths(self.xy[::-1], self.is_good[::-1])


def grid_points(boxes_xyxy: np.ndarray, side: int) -> np.ndarray:
    """(N, side * side, 2) points of a regular grid inside each box (N, 4)."""
    steps = np.linspace(GRID_MARGIN, 1 - GRID_MARGIN, side)
    shares = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    return boxes_xyxy[:, None, :2] + shares * sides[:, None]


def follow(boxes_xyxy: np.ndarray, paths: Paths) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that go with their points, from the first frame on.

    The shift of a box is the median shift of its good points; its size stays. Once fewer than
    ``MIN_SHARE`` of its points are left, it stands where it was last.

    Shapes: boxes_xyxy (N, 4) on frame 0 -> boxes (F, N, 4) float64, and trust (F, N): share of
        the points that are still followed, 0 where the box stands.
    """
    share = paths.is_good.mean(axis=2)
    trust = np.where(share < MIN_SHARE, 0.0, share)
    # Points only ever get lost, so the last frame with trust is the one before the first without.
    last = np.maximum((trust > 0).sum(axis=0) - 1, 0)
    frames = np.minimum(np.arange(len(trust))[:, None], last)
    shifts = _masked_median(paths.xy - paths.xy[:1], paths.is_good)
    shifts = np.take_along_axis(shifts, frames[..., None], axis=0)
    return boxes_xyxy + np.tile(shifts, 2), trust


def end_weights(paths: Paths, start_xyxy: np.ndarray, end_xyxy: np.ndarray) -> np.ndarray:
    """(N, P) in [0, 1]: how well each point ends at its own place of the end box.

    Shapes: start_xyxy (N, 4) on the first frame of the paths, end_xyxy (N, 4) on the last.
    """
    start_sides, end_sides = (np.maximum(boxes[:, None, 2:] - boxes[:, None, :2], 1.0)
                              for boxes in (start_xyxy, end_xyxy))
    place = (paths.xy[0] - start_xyxy[:, None, :2]) / start_sides
    off = paths.xy[-1] - (end_xyxy[:, None, :2] + place * end_sides)
    squares = np.square(off).sum(axis=-1) / end_sides.prod(axis=-1)
    return np.exp(-squares / END_SIGMA**2) * paths.is_good[-1]


def bends(paths: Paths, weights: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(F, N, 2) sum over the points of weight x departure from the straight line, px.

    A path less the straight line in time between its own ends: 0 on the first and last frame.

    Args:
        weights: (N, P). times: (F,) from 0 at the first frame of the paths to 1 at the last.
    """
    moved = paths.xy - paths.xy[:1]
    departure = moved - times[:, None, None, None] * moved[-1:]
    return np.einsum('fnpc,np->fnc', departure, weights)


def _masked_median(values: np.ndarray, is_good: np.ndarray) -> np.ndarray:
    """Median over axis 2 of (F, N, P, 2) where is_good (F, N, P); 0 where nothing is good.

    ``numpy.nanmedian`` does the same in ten times the time on arrays of this size.
    """
    ordered = np.sort(np.where(is_good[..., None], values, np.inf), axis=2)
    count = is_good.sum(axis=2)[..., None, None]
    low, high = (np.take_along_axis(ordered, np.maximum(place, 0), axis=2)[:, :, 0]
                 for place in ((count - 1) // 2, count // 2 - (count == 0)))
    return np.where(count[:, :, 0] > 0, (low + high) / 2, 0.0)
