"""Classes of a data set and of a detector brought together by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vision.common.core.errors import VisionError
from vision.lattice.core.structures import FrameBoxes

LEFT_OUT = -1
# The 80 of COCO's detection task, in label order.
COCO_CLASSES = (
    'person', 'bicycle', 'car', 'motorcycle', 'airplane', 'bus', 'train', 'truck', 'boat',
    'traffic light', 'fire hydrant', 'stop sign', 'parking meter', 'bench', 'bird', 'cat', 'dog',
    'horse', 'sheep', 'cow', 'elephant', 'bear', 'zebra', 'giraffe', 'backpack', 'umbrella',
    'handbag', 'tie', 'suitcase', 'frisbee', 'skis', 'snowboard', 'sports ball', 'kite',
    'baseball bat', 'baseball glove', 'skateboard', 'surfboard', 'tennis racket', 'bottle',
    'wine glass', 'cup', 'fork', 'knife', 'spoon', 'bowl', 'banana', 'apple', 'sandwich', 'orange',
    'broccoli', 'carrot', 'hot dog', 'pizza', 'donut', 'cake', 'chair', 'couch', 'potted plant',
    'bed', 'dining table', 'toilet', 'tv', 'laptop', 'mouse', 'remote', 'keyboard', 'cell phone',
    'microwave', 'oven', 'toaster', 'sink', 'refrigerator', 'book', 'clock', 'vase', 'scissors',
    'teddy bear', 'hair drier', 'toothbrush')


@dataclass(frozen=True, eq=False)
class ClassNames:
    """Judged classes, and the way there from both sides.

    Args:
        names: judged classes, in label order.
        unknown: classes of the data set that the detector cannot know; they are not judged.
        truth_to_judged, detector_to_judged: (K,) int64 over all K classes of that side, label in
            ``names`` or ``LEFT_OUT``.
    """

    names: tuple[str, ...]
    unknown: tuple[str, ...]
    truth_to_judged: np.ndarray
    detector_to_judged: np.ndarray

    def of_detections(self, boxes: FrameBoxes) -> FrameBoxes:
        """The boxes of judged classes, with judged labels."""
        labels = self.detector_to_judged[boxes.labels]
        return boxes.replace(labels=labels).select(labels != LEFT_OUT)


def join_classes(truth: Sequence[str], detector: Sequence[str],
                 joined: Mapping[str, Sequence[str]] | None = None) -> ClassNames:
    """Match by name, case aside.

    Args:
        truth, detector: class names in label order.
        joined: judged name -> names, of either side, that mean it. Names outside stand for
            themselves.

    Raises:
        VisionError: VIS-DATA-407, no class of the data set is known to the detector.
    """
    meaning = {name.lower(): judged for judged, names in (joined or {}).items()
               for name in (*names, judged)}

    def judged_name(name: str) -> str:
        return meaning.get(name.lower(), name.lower())

    known = {judged_name(name) for name in detector}
    names = tuple(dict.fromkeys(judged_name(name) for name in truth
                                if judged_name(name) in known))
    if not names:
        raise VisionError(
            'VIS-DATA-407', 'the detector knows none of the classes of this data set',
            why=f'data set: {", ".join(truth)}; detector: {", ".join(list(detector)[:20])}'
            + (', ...' if len(detector) > 20 else ''),
            do='write a class map, e.g. {"person": ["pedestrian"]}, and give --class-map FILE')
    label = {name: i for i, name in enumerate(names)}

    def labels(side: Sequence[str]) -> np.ndarray:
        return np.array([label.get(judged_name(name), LEFT_OUT) for name in side], np.int64)

    return ClassNames(names, tuple(n for n in truth if judged_name(n) not in label),
                      labels(truth), labels(detector))
