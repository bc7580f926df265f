"""Average precision of video detection by the three protocols in use, split by speed.

============  =====================================  ============  =========================
protocol      a ground truth w x h is found from     box width     average precision
============  =====================================  ============  =========================
``ilsvrc``    min(t, wh / ((w + 10)(h + 10)))        x2 - x1 + 1   area under the envelope
``mega``      t                                      x2 - x1 + 1   area under the envelope
``coco``      t                                      x2 - x1       101 recalls, 100 boxes per
                                                                   class and frame
============  =====================================  ============  =========================

t is 0.5 for map50; map5095 is the mean over 0.50, 0.55, ..., 0.95, which for ilsvrc and mega is
our extension. A mean is over the classes that have a ground truth. ``coco`` agrees with
pycocotools (a test compares them).

Speed classes follow FGFA's code (arXiv:1703.10025): the motion IoU of a ground truth is the mean
IoU with its own track at the frames -10..10 around it. For a class of speeds, the other ground
truths are ignored: what matches one of them is neither right nor wrong, and an unmatched box
counts as wrong by what it overlaps (see ``_wrong_shares``). ilsvrc and mega differ there as their
codes do; for coco the split is our extension, by the rule of ilsvrc.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from vision.common.core.errors import VisionError
from vision.lattice.core.structures import FrameBoxes
from vision.lattice.core.vid_match import (
    UNMATCHED,
    Table,
    TruthFrame,
    chunks,
    frame_overlaps,
    match,
    overlaps,
    tabulate,
)

__all__ = ['SPEEDS', 'TruthFrame', 'VideoEvaluation', 'evaluate_video', 'motion_iou']

PROTOCOLS = ('ilsvrc', 'mega', 'coco')
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
NEIGHBOURHOOD = 10  # frames before and after that motion IoU looks at
# Ranges of motion IoU, closed at both ends as in FGFA's code.
SPEEDS = dict(slow=(0.9, 1.0), medium=(0.7, 0.9), fast=(0.0, 0.7), medium_fast=(0.0, 0.9))
RECALLS = np.linspace(0, 1, 101)
# Elements of one table of draws (right detections x weightings): bounds the memory.
_DRAW_ELEMENTS = 2_000_000


def require_protocol(protocol: str) -> None:
    """Refuse (VIS-CONFIG-405) what is none of ``PROTOCOLS``."""
    if protocol not in PROTOCOLS:
        raise VisionError('VIS-CONFIG-405', f'protocol={protocol!r} is not known',
                          where='protocol', do=f'use one of {", ".join(PROTOCOLS)}')


def evaluate_video(truths: Sequence[TruthFrame], detections: Sequence[FrameBoxes], *,
                   num_classes: int, protocol: str = 'ilsvrc',
                   speed: bool = True) -> dict[str, float]:
    """map50, map5095 and, with ``speed``, map50_slow, _medium, _fast and _medium_fast.

    Args:
        truths: labelled frames, in any order.
        detections: boxes of the same frames in the same order.
    Values are in [0, 1]; NaN where no class has a ground truth.
    """
    evaluation = VideoEvaluation(truths, detections, num_classes=num_classes, protocol=protocol)
    result = dict(map50=evaluation.mean_ap(), map5095=evaluation.mean_ap(IOU_THRESHOLDS))
    if speed:
        result |= {f'map50_{name}': evaluation.mean_ap(speed=name) for name in SPEEDS}
    return result


class VideoEvaluation:
    """Matches once, then answers for any threshold, speed class or weighting of the videos.

    Args:
        truths, detections, num_classes, protocol: as ``evaluate_video``.

    Attributes:
        video_ids: (V,) videos in the order that ``video_weights`` has.

    Raises:
        VisionError: VIS-CONFIG-405 unknown protocol; VIS-DATA-401..404 (``vid_match``);
            VIS-DATA-409 when speed is asked for and tracks are missing.
    """

    def __init__(self, truths: Sequence[TruthFrame], detections: Sequence[FrameBoxes], *,
                 num_classes: int, protocol: str = 'ilsvrc') -> None:
        require_protocol(protocol)
        self.is_coco = protocol == 'coco'
        self.is_mega = protocol == 'mega'
        self.extra = 0.0 if self.is_coco else 1.0
        self.table = tabulate(truths, detections, num_classes=num_classes,
                              max_per_class=100 if self.is_coco else None)
        self.video_ids = np.unique([truth.video_id for truth in truths])
        self.found = match(self.table, IOU_THRESHOLDS,
                           tolerances(self.table, is_tolerant=protocol == 'ilsvrc'),
                           extra=self.extra, is_last_best=self.is_coco)
        # Best score first; of equal scores the earlier frame comes first, as in pycocotools.
        self.order = np.argsort(-self.table.det_score, kind='stable')
        self._cache: dict[tuple[int, str | None], list] = {}

    @cached_property
    def motion(self) -> np.ndarray:
        """(G,) motion IoU of each ground truth."""
        return motion_iou(self.table)

    def mean_ap(self, thresholds: np.ndarray | float = 0.5, *, speed: str | None = None,
                video_weights: np.ndarray | None = None) -> float:
        """Mean over thresholds and classes, in [0, 1]; NaN where no class has ground truth.

        Args:
            thresholds, speed, video_weights: as ``class_ap``; thresholds (T,) or a scalar.
        """
        values = self.class_ap(thresholds, speed=speed, video_weights=video_weights)
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else float('nan')

    def class_ap(self, thresholds: np.ndarray | float = 0.5, *, speed: str | None = None,
                 video_weights: np.ndarray | None = None) -> np.ndarray:
        """(T, num_classes) average precision; NaN for a class without ground truth.

        Args:
            thresholds: members of ``IOU_THRESHOLDS``.
            speed: key of ``SPEEDS``, or None for all ground truths.
            video_weights: (V,) how often each video counts (bootstrap).
        """
        table = self.table
        weights = np.ones(table.num_videos) if video_weights is None else video_weights
        gt_weight = weights[table.video[table.gt_frame]] * self._in_range(speed)
        num_truths = np.bincount(table.gt_label, gt_weight, table.num_classes)
        rows = []
        for t in self._columns(thresholds):
            rows.append([self._ap(right * weights[video], wrong * weights[video], num_truths[c])
                         for c, (right, wrong, video) in enumerate(self._verdicts(t, speed))])
        return np.array(rows).reshape(-1, table.num_classes)

    def mean_ap_of_draws(self, video_weights: np.ndarray, thresholds: np.ndarray | float = 0.5, *,
                         speed: str | None = None) -> np.ndarray:
        """(B,) ``mean_ap`` for B weightings (B, V) at once: the same values, much faster.

        Precision falls from one right detection to the next, so the area needs it at the right
        ones alone; what lies between them is counted by video once, whatever the weights.
        """
        table, weights = self.table, np.asarray(video_weights, np.float64)
        gt_video, counted = table.video[table.gt_frame], self._in_range(speed)
        total, num_known = np.zeros(len(weights)), np.zeros(len(weights))
        for c in range(table.num_classes):
            num_truths = weights @ np.bincount(
                gt_video, counted & (table.gt_label == c), weights.shape[1])
            is_known = num_truths > 0
            for t in self._columns(thresholds):
                ap = self._ap_of_draws(*self._verdicts(t, speed)[c], num_truths, weights)
                total += np.where(is_known, ap, 0.0)
                num_known += is_known
        return np.divide(total, num_known, out=np.full(len(weights), np.nan),
                         where=num_known > 0)

    def _columns(self, thresholds: np.ndarray | float) -> list[int]:
        return [int(np.flatnonzero(np.isclose(IOU_THRESHOLDS, t))[0])
                for t in np.atleast_1d(thresholds)]

    def _in_range(self, speed: str | None) -> np.ndarray:
        if speed is None:
            return np.ones(len(self.table.gt_label), bool)
        low, high = SPEEDS[speed]
        return (self.motion >= low) & (self.motion <= high)

    def _verdicts(self, column: int, speed: str | None) -> list[tuple[np.ndarray, ...]]:
        """Of each class: right (D,), wrong (D,), video (D,) of its detections, best first."""
        key = (column, speed)
        if key not in self._cache:
            found, in_range = self.found[:, column], self._in_range(speed)
            is_match = found >= 0
            right = np.zeros(len(found))
            right[is_match] = in_range[found[is_match]]
            wrong = (found == UNMATCHED).astype(float)
            if speed is not None:
                wrong *= self._wrong_shares(in_range)
            video, label = self.table.video[self.table.det_frame], self.table.det_label
            rows = [self.order[label[self.order] == c] for c in range(self.table.num_classes)]
            self._cache[key] = [(right[row], wrong[row], video[row]) for row in rows]
        return self._cache[key]

    def _ap(self, right: np.ndarray, wrong: np.ndarray, num_truths: float) -> float:
        if num_truths <= 0:
            return float('nan')
        right, total = np.cumsum(right), np.cumsum(right + wrong)
        recall = right / num_truths
        precision = np.divide(right, total, out=np.zeros_like(right), where=total > 0)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        if self.is_coco:
            index = np.searchsorted(recall, RECALLS, side='left')
            return float(np.append(envelope, 0.0)[index].mean())
        return float(np.sum(np.diff(recall, prepend=0.0) * envelope))

    def _ap_of_draws(self, right: np.ndarray, wrong: np.ndarray, video: np.ndarray,
                     num_truths: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(B,) areas of one class; any number where num_truths (B,) is 0."""
        rows = np.flatnonzero(right)
        found, false = np.zeros((2, len(rows) + 1, weights.shape[1]))
        found[np.arange(len(rows)), video[rows]] = right[rows]
        np.add.at(false, (np.searchsorted(rows, np.arange(len(right))), video), wrong)
        found, false = (np.cumsum(table, axis=0)[:-1] for table in (found, false))
        areas = np.zeros(len(weights))
        step = max(1, _DRAW_ELEMENTS // max(len(rows), 1))
        for start in range(0, len(weights) if len(rows) else 0, step):
            part = slice(start, start + step)
            num_found, num_false = found @ weights[part].T, false @ weights[part].T
            seen = num_found + num_false
            precision = np.divide(num_found, seen, out=np.zeros_like(seen), where=seen > 0)
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            recall = num_found / np.maximum(num_truths[part], 1e-9)
            if self.is_coco:  # how many of the recalls are reached by then
                recall = np.searchsorted(RECALLS, recall, side='right') / len(RECALLS)
            areas[part] = (np.diff(recall, axis=0, prepend=0.0) * envelope).sum(axis=0)
        return areas

    def _wrong_shares(self, in_range: np.ndarray) -> np.ndarray:
        """How wrong an unmatched detection is in a speed class, (D,) in [0, 1] (FGFA's code).

        1 when the ground truth of its frame that it overlaps most is of this class, 0 when that
        one is ignored; without any overlap too, as long as the frame holds only one of the two
        sorts. On a tie between both sorts (mostly: it overlaps nothing) the share of the ignored
        ground truths of the frame; in a frame without any, the share of all ground truths of the
        set that are of this class. MEGA's code asks the same of the detection's own class alone.
        """
        table = self.table
        everywhere = float(in_range.mean()) if len(in_range) else 1.0
        shares = np.full(len(table.det_frame), everywhere)
        for rows, _ in chunks(table) if len(in_range) else ():
            iou, slots = frame_overlaps(table, rows, extra=self.extra)
            is_seen = slots >= 0
            if self.is_mega:
                is_seen &= table.gt_label[slots] == table.det_label[rows, None]
            is_ours = is_seen & in_range[slots]
            # -1 where a sort is absent: then the other one decides, even with no overlap.
            ours = np.where(is_ours, iou, -1.0).max(1)
            others = np.where(is_seen & ~is_ours, iou, -1.0).max(1)
            count = is_seen.sum(1)
            ignored = 1 - is_ours.sum(1) / np.maximum(count, 1)
            share = np.where(ours == others, ignored, ours > others)
            shares[rows] = np.where(count > 0, share, everywhere)
        return shares


def tolerances(table: Table, *, is_tolerant: bool) -> np.ndarray:
    """(G,) upper limit of the IoU that finds a ground truth: wh / ((w + 10)(h + 10)), or 1.

    ImageNet's rule for small objects, where an error of a few pixels on each side would already
    be a miss.
    """
    if not is_tolerant:
        return np.ones(len(table.gt_box))
    width, height = (table.gt_box[:, 2:] - table.gt_box[:, :2] + 1).T
    return width * height / ((width + 10) * (height + 10))


def motion_iou(table: Table) -> np.ndarray:
    """(G,) mean IoU of each ground truth with its track at the frames -10..10 around it.

    Frames where the track is absent are skipped; a track of one frame gets 0, as an empty value
    does in FGFA's loader. Boxes are inclusive of their last pixel under every protocol, as in the
    script that reproduces FGFA's file: how fast an object is does not depend on the protocol.

    Raises:
        VisionError: VIS-DATA-409, an object without instance id, or twice in a frame.
    """
    _require_tracks(table)
    total, count = np.zeros(len(table.gt_box)), np.zeros(len(table.gt_box))
    if not len(table.gt_box):
        return total
    frame = table.frame_id[table.gt_frame] - table.frame_id.min() + NEIGHBOURHOOD
    _, track = np.unique(np.stack([table.video[table.gt_frame], table.gt_instance]), axis=1,
                         return_inverse=True)
    width = int(frame.max()) + NEIGHBOURHOOD + 1
    key = track.reshape(-1).astype(np.int64) * width + frame
    order = np.argsort(key)
    sorted_key = key[order]
    for offset in range(-NEIGHBOURHOOD, NEIGHBOURHOOD + 1):
        if offset == 0:
            continue
        place = np.searchsorted(sorted_key, key + offset).clip(max=len(key) - 1)
        is_there = sorted_key[place] == key + offset
        other = order[place]
        iou = overlaps(table.gt_box, table.gt_box[other], extra=1.0)
        total += np.where(is_there, iou, 0.0)
        count += is_there
    return np.divide(total, count, out=total, where=count > 0)


def _require_tracks(table: Table) -> None:
    nameless = int((table.gt_instance < 1).sum())
    keys = np.stack([table.gt_frame, table.gt_instance])
    twice = len(table.gt_frame) - np.unique(keys, axis=1).shape[1]
    if nameless or twice:
        raise VisionError('VIS-DATA-409', f'{nameless} ground truths have no instance id, {twice} '
                          'share theirs with another box of the frame',
                          why='how fast an object is, is measured along its track',
                          do='give instance_id (from 1) to each annotation, or use speed=False')
