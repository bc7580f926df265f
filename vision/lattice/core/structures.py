"""Value types that travel between detector, lattice, stream, metrics and sinks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Source = Literal['detected', 'propagated', 'interpolated']
UNLINKED = -1


@dataclass(frozen=True, eq=False)
class FrameBoxes:
    """Boxes of one frame; row i of every array is box i.

    Shapes: boxes_xyxy (N, 4) float32, x1 y1 x2 y2 in pixels of the original frame; scores (N,)
        float32 in [0, 1]; labels (N,) int64, index into the classes; track_ids (N,) int64,
        ``UNLINKED`` before a linker has seen the box, else >= 1.

    Raises:
        ValueError: the arrays disagree about N.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    track_ids: np.ndarray | None = field(default=None)

    def __post_init__(self) -> None:
        def store(name: str, value, dtype, shape: tuple[int, ...]) -> None:
            array = np.asarray(value, dtype=dtype).reshape(shape)
            object.__setattr__(self, name, array)

        store('boxes_xyxy', self.boxes_xyxy, np.float32, (-1, 4))
        store('scores', self.scores, np.float32, (-1,))
        store('labels', self.labels, np.int64, (-1,))
        ids = np.full(len(self.boxes_xyxy), UNLINKED) if self.track_ids is None else self.track_ids
        store('track_ids', ids, np.int64, (-1,))
        lengths = [len(self.boxes_xyxy), len(self.scores), len(self.labels), len(self.track_ids)]
        if len(set(lengths)) != 1:
            raise ValueError('boxes_xyxy, scores, labels and track_ids must have the same number '
                             f'of rows, got {lengths}')

    def __len__(self) -> int:
        return len(self.boxes_xyxy)

    @classmethod
    def empty(cls) -> FrameBoxes:
        """No boxes: every array has length 0."""
        return cls(np.zeros((0, 4)), np.zeros(0), np.zeros(0))

    @classmethod
    def concatenate(cls, parts: Iterable[FrameBoxes]) -> FrameBoxes:
        """Boxes of all parts in order; ids stay as they are."""
        parts = list(parts) or [cls.empty()]
        return cls(*(np.concatenate([getattr(part, name) for part in parts])
                     for name in ('boxes_xyxy', 'scores', 'labels', 'track_ids')))

    def select(self, index: np.ndarray) -> FrameBoxes:
        """Boxes by boolean mask (N,) or integer index (M,), in that order."""
        return FrameBoxes(self.boxes_xyxy[index], self.scores[index], self.labels[index],
                          self.track_ids[index])

    def replace(self, **arrays: np.ndarray) -> FrameBoxes:
        """A copy with other arrays in place of those named, such as ``labels=`` (N,); N may change
        only if all of them do."""
        old = dict(boxes_xyxy=self.boxes_xyxy, scores=self.scores, labels=self.labels,
                   track_ids=self.track_ids)
        return FrameBoxes(**(old | arrays))


@dataclass(frozen=True, eq=False)
class FrameResult:
    """What the lattice says of one frame.

    Args:
        frame_id: index of the frame in its video, from 0.
        boxes: the boxes, in original pixels.
        source: how the boxes of this frame came about.
        is_keyframe: the detector ran on this frame.
        latency_ms: from the arrival of the frame to this result; None when nobody measured.
        status: ``provisional`` when a final result of this frame will follow.
    """

    frame_id: int
    boxes: FrameBoxes
    source: Source
    is_keyframe: bool = False
    latency_ms: float | None = None
    status: Literal['final', 'provisional'] = 'final'
