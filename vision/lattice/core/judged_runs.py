"""Runs of a method over a set of videos, judged, with what drawing other videos would give."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vision.lattice.core.class_names import ClassNames
from vision.lattice.core.cocovid import CocoFrame, CocoVideo
from vision.lattice.core.structures import FrameBoxes
from vision.lattice.core.vid_eval import IOU_THRESHOLDS, TruthFrame, VideoEvaluation

SPEEDS = ('medium', 'fast', 'medium_fast')
MEASURES = {'map50': {}, 'map5095': dict(thresholds=IOU_THRESHOLDS),
            'map50_medium_fast': dict(speed='medium_fast')}
NUM_RESAMPLES, BOOTSTRAP_SEED = 2000, 0
MIN_VIDEOS = 5  # below, drawing videos with replacement says nothing about other videos


@dataclass
class Outcome:
    """What one method gave on all videos: judged boxes in the order of the truths, a list a
    run."""

    runs: list[list[FrameBoxes]]
    num_frames: int = 0
    num_keyframes: float = 0.0

    def add(self, run_index: int, boxes: list[FrameBoxes], num_frames: int,
            num_keyframes: int) -> None:
        """Append the boxes of one video to a run, with how many frames and keyframes it took."""
        self.runs[run_index] += boxes
        self.num_frames += num_frames
        self.num_keyframes += num_keyframes


def judged_truth(video: CocoVideo, frame: CocoFrame, classes: ClassNames) -> TruthFrame:
    """The objects of a frame whose classes are judged."""
    labels = classes.truth_to_judged[frame.labels]
    kept = labels >= 0
    return TruthFrame(video.id, frame.frame_id, frame.boxes_xyxy[kept], labels[kept],
                      frame.instance_ids[kept], frame.is_crowd[kept])


class Judged:
    """The runs of one method, judged by one protocol.

    ``scores``: map50, map5095 and map50 by class of speed, from 0 to 1, nan without objects.
    """

    def __init__(self, truths: list[TruthFrame], outcome: Outcome, num_classes: int,
                 protocol: str) -> None:
        self._evaluations = [VideoEvaluation(truths, boxes, num_classes=num_classes,
                                             protocol=protocol) for boxes in outcome.runs]
        self.num_videos = len(self._evaluations[0].video_ids)
        self._draws: dict[str, np.ndarray] = {}

    def mean_ap(self, **options) -> float:
        """Mean over the runs of ``VideoEvaluation.mean_ap`` with these options, in [0, 1]."""
        return float(np.mean([each.mean_ap(**options) for each in self._evaluations]))

    def draws(self, measure: str) -> np.ndarray:
        """Values over videos drawn with replacement, of shape (``NUM_RESAMPLES``,); the draws are
        the same for all methods."""
        if measure not in self._draws:
            rng = np.random.default_rng(BOOTSTRAP_SEED)
            weights = rng.multinomial(self.num_videos, [1 / self.num_videos] * self.num_videos,
                                      size=NUM_RESAMPLES)
            self._draws[measure] = np.mean([each.mean_ap_of_draws(weights, **MEASURES[measure])
                                            for each in self._evaluations], axis=0)
        return self._draws[measure]

    @cached_property
    def scores(self) -> dict[str, float]:
        """The measures by name, computed at the first access."""
        values = {name: self.mean_ap(**options) for name, options in MEASURES.items()}
        return values | {f'map50_{speed}': self.mean_ap(speed=speed) for speed in SPEEDS}


def difference_interval(mine: Judged, other: Judged, measure: str) -> tuple[float, float] | None:
    """95 % interval of ``mine - other`` over videos drawn with replacement; None with fewer than
    ``MIN_VIDEOS``.

    Args:
        measure: of ``MEASURES``.
    """
    if mine.num_videos < MIN_VIDEOS:
        return None
    low, high = np.nanpercentile(mine.draws(measure) - other.draws(measure), [2.5, 97.5])
    return float(low), float(high)
