"""Keyframe policies: on which frames the detector runs.

Every policy has a first grid, a keyframe each ``gap_frames`` frames; when both ends of an
interval are detected, ``split`` says whether its middle frame is detected too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vision.common.core.errors import VisionError
from vision.lattice.core.structures import FrameBoxes


@dataclass(frozen=True, eq=False)
class Interval:
    """Two consecutive keyframes as a policy sees them.

    Args:
        left, right: their boxes.
        greys: gap + 1 small grey frames (h, w), keyframes included.
        frame_size: (H, W) of the original frames, px.
    """

    left: FrameBoxes
    right: FrameBoxes
    greys: list[np.ndarray] = field(repr=False)
    frame_size: tuple[int, int]

    @property
    def gap_frames(self) -> int:
        return len(self.greys) - 1


class KeyframePolicy(Protocol):
    """The choice of keyframes; one object serves one engine.

    Attributes:
        gap_frames: frames from one keyframe of the first grid to the next, >= 1.
        max_depth: how often an interval may be halved; ``split`` is asked at each depth below.
    """

    gap_frames: int
    max_depth: int

    def start_segment(self) -> None:
        """A keyframe without an interval before it: a video begins, or a scene after a cut."""

    def split(self, interval: Interval) -> bool:
        """Whether the middle frame becomes a keyframe.

        Asked once for every interval of the first grid, in order; an interval of gap 1 cannot be
        split and its answer is ignored.
        """


def check_gap(gap_frames: int) -> int:
    if not isinstance(gap_frames, int) or gap_frames < 1:
        raise VisionError('VIS-CONFIG-105', f'gap_frames={gap_frames!r}', where='keyframes',
                          why='the distance of keyframes is a whole number of frames, at least 1',
                          do='use for example gap_frames=8; 1 detects on every frame')
    return gap_frames


class UniformKeyframes:
    """A keyframe every ``gap_frames`` frames; 1 is detection on every frame."""

    max_depth = 0

    def __init__(self, gap_frames: int) -> None:
        self.gap_frames = check_gap(gap_frames)

    def start_segment(self) -> None:
        """Nothing to remember."""

    def split(self, interval: Interval) -> bool:
        return False
