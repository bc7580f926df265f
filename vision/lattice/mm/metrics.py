"""The metric that validation prints: collected here, computed in ``core.vid_eval``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.evaluator import BaseMetric
from rich.console import Console
from rich.table import Table

from vision.common.core.errors import VisionError
from vision.lattice.core.structures import FrameBoxes
from vision.lattice.core.vid_eval import (
    IOU_THRESHOLDS,
    SPEEDS,
    TruthFrame,
    VideoEvaluation,
    require_protocol,
)
from vision.registry import METRICS


@METRICS.register_module()
class VIDMetric(BaseMetric):
    """Average precision of video detection (ImageNet VID).

    Predictions may come frames later than their inputs: each sample is a frame of its own, with
    its ground truth in it. Frames that are not labelled (``is_labelled``) are not judged.

    Args:
        protocol: 'ilsvrc', 'mega' or 'coco' (``core.vid_eval``); name it with every figure.
        speed: also slow / medium / fast, from the track ids of the ground truth.
        classwise: print a table with every class.

    Raises:
        VisionError: VIS-CONFIG-405, another protocol.
    """

    default_prefix = 'vid'

    def __init__(self, protocol: str = 'ilsvrc', *, speed: bool = True, classwise: bool = True,
                 collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        require_protocol(protocol)
        self.protocol, self.speed, self.classwise = protocol, speed, classwise

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep truth and boxes of each frame, (N, 4) xyxy in original pixels."""
        for sample in data_samples:
            truth = _truth(sample) if sample.get('is_labelled', True) else None
            self.results.append((sample['video_id'], sample['frame_id'], sample['video_length'],
                                 truth, _boxes(sample['pred_instances'])))

    def evaluate(self, size: int) -> dict[str, float]:
        """Metrics of all ranks' frames.

        MMEngine's own gathering interleaves the ranks and cuts to ``size``, which presumes that
        every rank has equally many samples; here a rank has whole videos. An error of the rank
        that computes is raised on every rank: the others would wait for its answer for ever.
        """
        rows = [row for part in all_gather_object(self.results) for row in part]
        self.results.clear()
        outcome = [None]
        if is_main_process():
            try:
                _refuse_gaps(rows, size)
                outcome = [{f'{self.prefix}/{name}': value
                            for name, value in self.compute_metrics(rows).items()}]
            except VisionError as error:
                outcome = [error]
        broadcast_object_list(outcome)
        if isinstance(outcome[0], VisionError):
            raise outcome[0]
        return outcome[0]

    def compute_metrics(self, results: list) -> dict[str, float]:
        """``map50``, ``map5095`` and, with ``speed``, ``map50_slow``, ``map50_medium``,
        ``map50_fast``, in [0, 1] or NaN, over the frames that are labelled."""
        labelled = sorted((row for row in results if row[3] is not None), key=lambda r: r[:2])
        classes = self.dataset_meta['classes']
        evaluation = VideoEvaluation([row[3] for row in labelled], [row[4] for row in labelled],
                                     num_classes=len(classes), protocol=self.protocol)
        metrics = dict(map50=evaluation.mean_ap(), map5095=evaluation.mean_ap(IOU_THRESHOLDS))
        if self.speed:
            metrics |= {f'map50_{name}': evaluation.mean_ap(speed=name) for name in SPEEDS}
        if self.classwise:
            _print_classes(evaluation, classes, self.protocol, len(labelled), self.speed)
        return metrics


def _numpy(value: torch.Tensor | np.ndarray) -> np.ndarray:
    value = getattr(value, 'tensor', value)  # mmdet's box types wrap a tensor
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _truth(sample: dict) -> TruthFrame:
    kept, ignored = sample['gt_instances'], sample.get('ignored_instances')
    parts = [kept] if ignored is None or not len(ignored['labels']) else [kept, ignored]
    columns = [np.concatenate([_numpy(part[name]) for part in parts])
               for name in ('bboxes', 'labels', 'instances_ids')]
    is_crowd = np.arange(len(columns[1])) >= len(kept['labels'])
    return TruthFrame(sample['video_id'], sample['frame_id'], *columns, is_crowd=is_crowd)


def _boxes(found: dict) -> FrameBoxes:
    return FrameBoxes(*(_numpy(found[name]) for name in ('bboxes', 'scores', 'labels')))


def _refuse_gaps(rows: list, size: int) -> None:
    """Every frame of every video must be here: a missing one would flatter recall.

    ``size`` is the length of the data set, in videos (ours) or in frames (still-image sets).
    """
    seen = Counter(row[0] for row in rows)
    lengths = {row[0]: row[2] for row in rows}
    short = [video for video, length in lengths.items() if seen[video] != length]
    what = where = ''
    if short:
        what = f'{len(short)} of {len(lengths)} videos are not complete'
        where = f'video {short[0]}: {seen[short[0]]} of {lengths[short[0]]} frames'
    elif size not in (len(lengths), len(rows)) or not rows:
        what = f'{len(lengths)} videos with {len(rows)} frames arrived, the data set has {size}'
    if what:
        raise VisionError('VIS-DATA-406', what, where=where,
                          why='each frame must be judged exactly once',
                          do='use VideoFrameSampler')


def _print_classes(evaluation: VideoEvaluation, classes: Sequence[str], protocol: str,
                   num_frames: int, has_speed: bool) -> None:
    table = Table(title=f'AP at IoU 0.5, protocol {protocol}, {num_frames} frames')
    table.add_column('class')
    columns = {'all': None} | ({name: name for name in SPEEDS} if has_speed else {})
    values = {title: evaluation.class_ap(speed=speed)[0] for title, speed in columns.items()}
    for title in columns:
        table.add_column(title, justify='right')
    for c, name in enumerate(classes):
        table.add_row(name, *(f'{100 * values[title][c]:.1f}' for title in columns))
    table.add_section()
    table.add_row('mean', *(f'{100 * evaluation.mean_ap(speed=speed):.1f}'
                            for speed in columns.values()))
    Console().print(table)
