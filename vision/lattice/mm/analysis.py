"""What a detector does wrong: predictions of a test against the boxes of its data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vision.common.core.errors import VisionError
from vision.lattice.core.confusion import (
    IOU_THR,
    SCORE_THR,
    JudgedFrame,
    confusion_matrix,
    judge_frame,
)
from vision.lattice.core.structures import FrameBoxes
from vision.lattice.mm.truth import Picture, key_of, pictures_of


@dataclass(frozen=True, eq=False)
class Analysis:
    """Labelled pictures of a data set with what was found on them, in the data set's order.

    Args:
        classes: names in label order.
        score_thr, iou_thr: what counts as found, and as right.
    """

    classes: tuple[str, ...]
    pictures: list[Picture]
    found: list[FrameBoxes]
    judged: list[JudgedFrame]
    score_thr: float
    iou_thr: float

    def matrix(self) -> np.ndarray:
        """``core.judged.confusion_matrix`` of all pictures, (C + 1, C + 1) int."""
        return confusion_matrix([picture.truth for picture in self.pictures], self.found,
                                self.judged, len(self.classes))

    def worst(self, rows: Sequence[int] | None = None) -> list[int]:
        """Places in ``pictures``: least F1 first, of equal ones the most errors first."""
        def badness(row: int) -> tuple:
            frame = self.judged[row]
            return frame.f1, -len(frame.missed) - len(frame.extra) - frame.num_confused, row
        return sorted(range(len(self.pictures)) if rows is None else rows, key=badness)

    def groups(self) -> dict[str, list[int]]:
        """Places in ``pictures`` by video (still images: by folder), in order."""
        found: dict[str, list[int]] = {}
        for row, picture in enumerate(self.pictures):
            found.setdefault(picture.group, []).append(row)
        return found

    def totals(self, rows: Sequence[int]) -> dict[str, Any]:
        """Counts over pictures, with precision, recall and F1 of them together."""
        frames = [self.judged[row] for row in rows]
        right = sum(frame.num_right for frame in frames)
        true = sum(len(frame.pairs) + len(frame.missed) for frame in frames)
        found = sum(len(frame.pairs) + len(frame.extra) for frame in frames)
        return dict(pictures=len(frames), true=true, found=found, right=right,
                    missed=sum(len(frame.missed) for frame in frames),
                    extra=sum(len(frame.extra) for frame in frames),
                    confused=sum(frame.num_confused for frame in frames),
                    precision=right / found if found else None,
                    recall=right / true if true else None,
                    f1=2 * right / (true + found) if true + found else 1.0)


def boxes_of(sample: dict) -> FrameBoxes:
    """The boxes of a prediction with arrays, best first."""
    found = sample['pred_instances']
    boxes = FrameBoxes(found['bboxes'], found['scores'], found['labels'],
                       found.get('instances_id'))
    return boxes.select(np.argsort(-boxes.scores, kind='stable'))


def analyse(dataset: Any, samples: Sequence[dict], *, score_thr: float = SCORE_THR,
            iou_thr: float = IOU_THR) -> Analysis:
    """Judge predictions (with arrays) against a data set.

    Raises:
        VisionError: VIS-CONFIG-1783 they are no boxes, VIS-DATA-1795 some are missing.
    """
    if not all('pred_instances' in sample for sample in samples):
        raise VisionError('VIS-CONFIG-1783', 'these predictions hold no boxes',
                          why=f'they hold {", ".join(samples[0])}',
                          do='analyse predictions of a detector, a lattice or a classifier; '
                          'vision eval takes those of every model')
    by_key = {key_of(sample): boxes_of(sample) for sample in samples}
    pictures = [picture for picture in pictures_of(dataset) if picture.is_labelled]
    missing = [picture.name for picture in pictures if picture.key not in by_key]
    if missing:
        raise VisionError('VIS-DATA-1795', f'{len(missing)} of {len(pictures)} pictures have no '
                          f'prediction, first: {missing[0]}',
                          why='a picture left out would look like one without errors',
                          do='run vision test --out again over this data')
    found = [by_key[picture.key] for picture in pictures]
    judged = [judge_frame(picture.truth, boxes, score_thr=score_thr, iou_thr=iou_thr)
              for picture, boxes in zip(pictures, found, strict=True)]
    return Analysis(tuple(dataset.metainfo['classes']), pictures, found, judged, score_thr,
                    iou_thr)
