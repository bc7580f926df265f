"""How the frames between two keyframes get their boxes: what the engine asks of a filler.

A filler is one way to do it (``bridge``: paths of points; ``interval``: straight lines, and the
nodes of the paper). The engine prepares every frame once, lets the boxes of the left keyframe be
carried along as frames arrive, and asks for a bridge when the right keyframe is detected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vision.common.core.boxes import clip_boxes
from vision.lattice.core.linker import IntervalRows, TrackLinker
from vision.lattice.core.structures import FrameBoxes

# A box with a side below this inside the frame is not reported, px.
MIN_VISIBLE_SIDE = 1.0


@dataclass(frozen=True, eq=False)
class FilledInterval:
    """Boxes of the inner frames in order, which of them saw their own frame, the right boxes.

    Args:
        drift: (N, 2) where the right boxes were going, px a frame, NaN: not known; None: the
            filler does not ask for it when it carries them on.
    """

    inner: list[FrameBoxes]
    is_propagated: list[bool]
    right: FrameBoxes
    drift: np.ndarray | None = None


class Carrier(Protocol):
    """Boxes of a keyframe on their way through the frames after it, without looking ahead."""

    def step(self, prepared: Any) -> None:
        """The next frame."""

    def until(self, num_steps: int) -> Carrier:
        """A carrier as it was after so many steps; it makes no further ones."""

    def latest(self) -> FrameBoxes:
        """The boxes on the newest frame, with the scores and ids of the keyframe."""



class Bridge(Protocol):
    """Two detected keyframes and what is known of the way between them."""

    def easiness(self, size_cap: float) -> float:
        """How safely the inner frames can be filled, in [0, 1]."""

    def fill(self, linker: TrackLinker) -> FilledInterval:
        """Boxes of the inner frames; the right boxes get their ids here."""


@dataclass(frozen=True, eq=False)
class Span:
    """The frames of one interval, both keyframes included: F = gap + 1 of each.

    Args:
        images: (H, W, 3) uint8 BGR.
        prepared: what the filler made of them.
        times_s: (F,) presentation times, growing.
        is_filled: False where the boxes of the inner frames went out already and only the ids of
            the right ones are asked for.
    """

    images: list[np.ndarray]
    prepared: list[Any]
    times_s: np.ndarray
    is_filled: bool = True

    @property
    def gap_frames(self) -> int:
        """Frames from one keyframe to the other, F - 1."""
        return len(self.images) - 1

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W) of the frames, px."""
        return self.images[-1].shape[:2]

    @property
    def shares(self) -> np.ndarray:
        """(F,) place of each frame in time: 0 at the left keyframe, 1 at the right one."""
        return (self.times_s - self.times_s[0]) / (self.times_s[-1] - self.times_s[0])


class Filler(Protocol):
    """One way to fill intervals; holds nothing of a video, so engines may share it."""

    def prepare(self, image_bgr: np.ndarray) -> Any:
        """What is needed of a frame (H, W, 3) uint8, made once. Its ``grey`` (h, w) float32 in
        [0, 1], or uint8, is what scene cuts are looked for on."""

    def carry(self, left: FrameBoxes, prepared: Any, frame_size: tuple[int, int],
              drift: np.ndarray | None = None) -> Carrier:
        """Start from the boxes of a keyframe; frame_size is (H, W), drift that of the filled
        interval before it."""

    def bridge(self, carrier: Carrier, right: FrameBoxes, span: Span) -> Bridge:
        """The carrier has made its steps up to the right keyframe."""


def inside_frame(boxes: FrameBoxes, frame_size: tuple[int, int]) -> FrameBoxes:
    """The boxes cut to the frame (H, W), without those of which less than ``MIN_VISIBLE_SIDE``
    is left."""
    clipped = clip_boxes(boxes.boxes_xyxy, *frame_size)
    is_visible = (clipped[:, 2:] - clipped[:, :2] >= MIN_VISIBLE_SIDE).all(axis=1)
    return boxes.replace(boxes_xyxy=clipped).select(is_visible)


def inner_boxes(rows: IntervalRows, boxes_xyxy: np.ndarray, scores: np.ndarray,
                is_known: np.ndarray, frame_size: tuple[int, int]) -> list[FrameBoxes]:
    """Rows that are known, have a score and lie inside the picture, frame by frame.

    Shapes: boxes_xyxy (F, R, 4), scores (F, R), is_known (F, R) over F inner frames.
    """
    clipped = clip_boxes(boxes_xyxy, *frame_size).reshape(boxes_xyxy.shape)
    is_visible = (clipped[..., 2:] - clipped[..., :2] >= MIN_VISIBLE_SIDE).all(axis=-1)
    is_shown = is_known & is_visible & (scores > 0)
    return [FrameBoxes(clipped[i][shown], scores[i][shown], rows.labels[shown],
                       rows.track_ids[shown]) for i, shown in enumerate(is_shown)]
