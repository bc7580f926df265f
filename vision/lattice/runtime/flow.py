"""Boxes carried by sparse optical flow: Lucas-Kanade in pyramids, by OpenCV, on small grey frames.

What is followed are grids of points (``core/paths``); what becomes of them is decided in
``core/bridge``. No network and no training.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import cv2
import numpy as np

from vision.lattice.core.bridge import PathBridge, Tracked, settled_pairs
from vision.lattice.core.filling import Span
from vision.lattice.core.paths import Paths, grid_points
from vision.lattice.core.structures import FrameBoxes


@dataclass(frozen=True, eq=False)
class FlowFrame:
    """A frame made small once for all that follows it.

    Args:
        image: (h, w) uint8 grey, on which points are followed.
        grey: (h2, w2) uint8, smaller, on which scene cuts are looked for.
        factor: pixels of the frame along a side of a pixel of ``image``.
    """

    image: np.ndarray
    grey: np.ndarray
    factor: int


@dataclass(frozen=True)
class FlowOptions:
    """Measured on PETS09-S2L1 and the DAVIS training sequences (our choice).

    Args:
        long_side: px of the grey frames, about: frames are shrunk by whole factors.
        grid_side: points along each side of a box.
        window: px, side of the window that is compared. Of 7 to 16 px 8 takes the least time
            (in a trial just over half of 7 and 11 px, four fifths of 9): OpenCV works on 8 px
            at once. On the training sequences boxes are as good as with 11 or better.
        levels: pyramid levels above the first; each doubles the movement that is found.
        iterations: of each level, at most.
        min_score: boxes below are not followed; they stand, or go straight.
        max_boxes: as many of the best boxes are followed.
    """

    long_side: int = 320
    grid_side: int = 4
    window: int = 8
    levels: int = 2
    iterations: int = 5
    min_score: float = 0.1
    max_boxes: int = 40


NO_ROWS = np.zeros(0, np.int64)
CUT_LONG_SIDE = 80  # px of the frames on which cuts are looked for: 16 blocks of 20 x 15


class FlowFiller:
    """``vision.lattice.core.filling.Filler`` by sparse flow."""

    def __init__(self, options: FlowOptions | None = None) -> None:
        self.options = options or FlowOptions()

    def prepare(self, image_bgr: np.ndarray) -> FlowFrame:
        """A frame (H, W, 3) uint8 BGR made grey and small, once for points and once for scene
        cuts."""
        image, factor = shrunk_grey(image_bgr, self.options.long_side)
        to_cut = max(1, round(max(image.shape) / CUT_LONG_SIDE))
        return FlowFrame(image, _shrunk(image, to_cut), factor)

    def carry(self, left: FrameBoxes, prepared: FlowFrame, frame_size: tuple[int, int],
              drift: np.ndarray | None = None) -> FlowCarrier:
        """Spread points over the boxes of a keyframe; ``drift`` (N, 2) is where they were going,
        px a frame. ``frame_size`` is not needed here."""
        return FlowCarrier(left, prepared, self.options, drift=drift)

    def bridge(self, carrier: FlowCarrier, right: FrameBoxes, span: Span) -> PathBridge:
        """The points between two keyframes; the right boxes' are followed backwards too, unless
        their pairs are settled or the inner frames are of no use any more."""
        left = carrier.tracked()
        settled = settled_pairs(left, right)
        if span.is_filled:
            back = FlowCarrier(right, span.prepared[-1], self.options, leave_out=settled[:, 1])
            for prepared in span.prepared[-2::-1]:
                back.step(prepared)
            back = back.tracked()
        else:
            back = Tracked(right, NO_ROWS, left.paths.take(NO_ROWS))
        return PathBridge(left, back, span.shares, span.frame_size, settled=settled,
                          is_filled=span.is_filled)


class FlowCarrier:
    """The points of a keyframe's boxes, followed frame by frame (in either direction).

    Args:
        leave_out: (K,) rows of ``boxes`` that need no points.
        drift: (N, 2) where each box was going before, px a frame; None: not known.
    """

    def __init__(self, boxes: FrameBoxes, prepared: FlowFrame, options: FlowOptions, *,
                 leave_out: np.ndarray = NO_ROWS, drift: np.ndarray | None = None) -> None:
        self._boxes, self._drift = boxes, drift
        best = np.flatnonzero(boxes.scores >= options.min_score)[:options.max_boxes]
        is_wanted = np.ones(len(boxes), bool)
        is_wanted[leave_out] = False
        self._rows = best[is_wanted[best]]
        height, width = prepared.image.shape
        self._scale = 1 / prepared.factor
        points = grid_points(boxes.boxes_xyxy[self._rows].astype(np.float64), options.grid_side)
        self._shape = points.shape
        self._points = [(points * self._scale).reshape(-1, 2).astype(np.float32)]
        inside = (self._points[0] >= 0) & (self._points[0] < (width, height))
        self._is_good = [inside.all(axis=1)]
        self._image = prepared.image
        self._lucas_kanade = dict(
            winSize=(options.window,) * 2, maxLevel=options.levels,
            criteria=(cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, options.iterations, 0.03))

    def step(self, prepared: FlowFrame) -> None:
        """Follow the points to the next frame; those that are lost stay lost."""
        points, is_good = self._points[-1], self._is_good[-1]
        if len(points):
            points, status, _ = cv2.calcOpticalFlowPyrLK(
                self._image, prepared.image, points, None, **self._lucas_kanade)
            is_good = is_good & (status[:, 0] > 0)
        self._points.append(points)
        self._is_good.append(is_good)
        self._image = prepared.image

    def until(self, num_steps: int) -> FlowCarrier:
        """A carrier as it was after so many steps."""
        earlier = copy(self)
        earlier._points = self._points[:num_steps + 1]
        earlier._is_good = self._is_good[:num_steps + 1]
        return earlier

    def tracked(self) -> Tracked:
        """The boxes with the paths of their points over all frames so far, in original pixels."""
        num_frames = len(self._points)
        xy = (np.stack(self._points) / self._scale).reshape(num_frames, *self._shape)
        return Tracked(self._boxes, self._rows, Paths(
            xy, np.stack(self._is_good).reshape(num_frames, *self._shape[:2])), self._drift)

    def latest(self) -> FrameBoxes:
        """The keyframe's boxes moved to the newest frame by their points."""
        boxes, _ = self.tracked().carried(frames=[-1])
        return self._boxes.replace(boxes_xyxy=boxes[0])


def shrunk_grey(image_bgr: np.ndarray, long_side: int = CUT_LONG_SIDE) -> tuple[np.ndarray, int]:
    """(H, W, 3) uint8 BGR -> grey (H // k, W // k) uint8 and k, the whole factor that brings the
    longer side closest to ``long_side`` px; rows and columns that do not fill a pixel go.

    By a whole factor because OpenCV's means over other areas take 1 to 3 ms a frame, five times
    as long. The first halving is done in colour, which leaves a quarter of the pixels to convert.
    """
    factor = max(1, round(max(image_bgr.shape[:2]) / long_side))
    first = 2 if factor % 2 == 0 else 1
    grey = cv2.cvtColor(_shrunk(image_bgr, first), cv2.COLOR_BGR2GRAY)
    return _shrunk(grey, factor // first), factor


def _shrunk(image: np.ndarray, factor: int) -> np.ndarray:
    """Means of factor x factor pixels; by halves as long as that goes, which OpenCV does three
    times as fast (each halving rounds)."""
    while factor > 1:
        step = 2 if factor % 2 == 0 else factor
        height, width = (max(1, side // step) for side in image.shape[:2])
        image = cv2.resize(image[:height * step, :width * step], (width, height),
                           interpolation=cv2.INTER_AREA)
        factor //= step
    return image
