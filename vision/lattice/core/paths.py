"""Paths of points through the frames of an interval, and the boxes that go with them.

A box gets a grid of points; something (sparse optical flow) follows them from frame to frame.
Where an object is boxed at one keyframe only, its box goes and grows with the median of its
points, of which those count more that go where the object was going before. Where it is boxed at
both, more is known: a point that lies on the object ends at its own place of the end box, one on
the background does not. So the points are weighed by where they end, their paths are
bent until they end exactly there, and the box leaves the straight line between its two known
places as these paths do: no drift is left at either end, and lost points leave the straight line.
Our choice; nothing of the kind is in the Scale-Time Lattice paper (arXiv:1804.05472).

F frames of the interval, keyframes included; N boxes; P points a box; all in original pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A grid stays off the rim of its box, where the background is (share of the side).
GRID_MARGIN = 0.12
# Fewer followed points than this share of the grid say nothing of the box.
MIN_SHARE = 0.25
# A point that goes where the object was going before weighs 1, one that does not this much; it is
# off by 1 / e of the rest at so many box sizes plus this share of the way. On PETS09-S2L1 points
# that stick to the ground pull walkers back (causal, T = 8: +1.3 mAP@.5); with a weight of 0.13,
# what speeds up is held back instead (motocross-jump of DAVIS: -22).
STRAY_WEIGHT = 1 / 3
DRIFT_SIZES, DRIFT_SHARE = 0.12, 0.3
# Growth counts as far as the points agree on it: a positive-part James-Stein estimate, as in
# ``merge.merge_agree``. People hardly grow, and the noise of their points is not taken for it.
GROWTH_STRICTNESS, GROWTH_NOISE = 2.0, 0.05
MAX_GROWTH = 2.0
MAD_TO_SIGMA = 1.4826
# Where points end, in box sizes off their place, at which their weight is 1 / e.
END_SIGMA = 0.25
# The straight line counts as much as so many points that end well, in an interval of 8 frames;
# more in shorter ones, less in longer ones, where less is straight: where the points agree, and in
# addition where they do not (our choice: on PETS09-S2L1 0.2 to 0.7 mAP@.5:.95 better at each gap
# than one point always).
LINE_POINTS, LINE_DOUBT_POINTS, LINE_FRAMES = 0.5, 4.0, 8.0


@dataclass(frozen=True, eq=False)
class Paths:
    """Points of N boxes, P each, on F frames.

    Shapes: xy (F, N, P, 2) float32; is_good (F, N, P) bool, followed up to this frame.
    """

    xy: np.ndarray
    is_good: np.ndarray

    def take(self, rows: np.ndarray) -> Paths:
        """The paths of some boxes, by index (M,)."""
        return Paths(self.xy[:, rows], self.is_good[:, rows])


def grid_points(boxes_xyxy: np.ndarray, side: int) -> np.ndarray:
    """(N, side * side, 2) points of a regular grid inside each box (N, 4)."""
    steps = np.linspace(GRID_MARGIN, 1 - GRID_MARGIN, side)
    shares = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    return boxes_xyxy[:, None, :2] + shares * sides[:, None]


def follow(boxes_xyxy: np.ndarray, paths: Paths, drift: np.ndarray | None = None,
           frames: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that go with their points, from the first frame on.

    The shift of a box is the weighted median shift of its good points (``STRAY_WEIGHT``), its
    growth that of their distances from its centre (``GROWTH_STRICTNESS``). Once fewer than
    ``MIN_SHARE`` of its points are left, it stands where it was last.

    Args:
        drift: (N, 2) px a frame, where each box was going before; NaN: not known.
        frames: (K,) the frames that are asked for; default: all F.

    Shapes: boxes_xyxy (N, 4) on frame 0 -> boxes (K, N, 4) float64, and trust (K, N): share of
        the points that are still followed, 0 where the box stands.
    """
    share = paths.is_good.mean(axis=2)
    trust = np.where(share < MIN_SHARE, 0.0, share)
    # Points only ever get lost, so the last frame with trust is the one before the first without.
    last = np.maximum((trust > 0).sum(axis=0) - 1, 0)
    shown = np.arange(len(trust))
    shown = shown if frames is None else shown[frames]
    told, boxes = np.minimum(shown[:, None], last), np.arange(len(boxes_xyxy))
    xy, is_good = paths.xy[told, boxes], paths.is_good[told, boxes]
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    centres = boxes_xyxy[:, :2] + sides / 2

    moved = xy - paths.xy[0]
    weights = is_good * _drift_weights(moved, told, drift, sides)
    shifts = _weighted_median(moved.swapaxes(2, 3), weights[:, :, None])
    start, end = (np.linalg.norm(points, axis=-1) for points in (
        paths.xy[0] - centres[:, None], xy - (centres + shifts)[:, :, None]))
    half = sides / 2 * _growth(np.maximum(start, 0.5), np.maximum(end, 0.5), weights)[..., None]
    centres = centres + shifts
    return np.concatenate([centres - half, centres + half], axis=-1), trust[shown]


def _drift_weights(moved: np.ndarray, frames: np.ndarray, drift: np.ndarray | None,
                   sides: np.ndarray) -> np.ndarray:
    """(F, N, P) weights of points that moved so (F, N, P, 2) up to the frames (F, N)."""
    if drift is None:
        return np.ones(moved.shape[:3])
    expected = frames[..., None] * drift
    tolerance = (DRIFT_SIZES * np.sqrt(np.maximum(sides, 1.0).prod(axis=-1))
                 + DRIFT_SHARE * np.linalg.norm(expected, axis=-1))
    off = np.linalg.norm(moved - expected[:, :, None], axis=-1) / tolerance[..., None]
    weights = STRAY_WEIGHT + (1 - STRAY_WEIGHT) * np.exp(-np.square(off))
    return np.where(np.isnan(weights), 1.0, weights)


def _growth(start: np.ndarray, end: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(F, N) factors from distances of points from the centre, (N, P) and (F, N, P)."""
    ratios = np.log(end / start)
    growth = _weighted_median(ratios, weights)
    spread = MAD_TO_SIGMA * _weighted_median(np.abs(ratios - growth[..., None]), weights)
    doubt = np.square(spread) / np.maximum(weights.sum(axis=2), 1.0) + GROWTH_NOISE**2
    kept = np.maximum(1 - GROWTH_STRICTNESS * doubt / np.maximum(np.square(growth), 1e-12), 0.0)
    return np.exp(np.clip(kept * growth, -np.log(MAX_GROWTH), np.log(MAX_GROWTH)))


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


def bends(paths: Paths, weights: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the points of weight x departure from the straight line, (F, N, 2) px, and of
    weight x its square, (F, N) px^2.

    A path less the straight line in time between its own ends: 0 on the first and last frame.

    Args:
        weights: (N, P). times: (F,) from 0 at the first frame of the paths to 1 at the last.
    """
    moved = paths.xy - paths.xy[:1]
    departure = moved - times[:, None, None, None] * moved[-1:]
    return (np.einsum('fnpc,np->fnc', departure, weights),
            np.einsum('fnpc,fnpc,np->fn', departure, departure, weights))


def mean_bend(total: np.ndarray, squares: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(F, N, 2) mean departure of points and straight line, px; the latter's own is 0.

    How much the line counts depends on the gap and on how far the points disagree
    (``LINE_POINTS``): on the share that their spread has in their mean square.

    Args:
        total, squares: sums of ``bends``. weight: (N,) sum of the weights.
    """
    weight = np.maximum(weight, 1e-9)[:, None]
    squares = squares / weight[:, 0]
    agreed = np.square(total / weight).sum(axis=-1)
    doubt = np.clip(1 - agreed / np.maximum(squares, 1e-12), 0, 1)
    line = (LINE_POINTS + LINE_DOUBT_POINTS * doubt) * LINE_FRAMES / (len(total) - 1)
    return total / (weight + line[..., None])


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Median over the last axis of values (..., P) by weights that broadcast to them; 0 where
    nothing weighs.

    Half of the weight lies on either side of it; where that leaves a gap, its middle.
    """
    shape, num_points = values.shape[:-1], values.shape[-1]
    weights = np.broadcast_to(weights, values.shape).reshape(-1, num_points)
    values = np.where(weights > 0, values.reshape(-1, num_points), np.inf)
    rows = np.arange(len(values))
    order = values.argsort(axis=1)
    ordered = values[rows[:, None], order]
    below = weights[rows[:, None], order].cumsum(axis=1)
    half = below[:, -1:] / 2
    slack = 1e-9 * half  # sums of equal weights shall be equal
    low, high = (ordered[rows, found.argmax(axis=1)]
                 for found in (below >= half - slack, below > half + slack))
    return np.where(half[:, 0] > 0, (low + high) / 2, 0.0).reshape(shape)
