"""Hooks of this room."""

from __future__ import annotations

from typing import Any

import numpy as np

from vision.common.mm.pictures import DrawHook
from vision.common.mm.predictions import plain_sample
from vision.common.nn.images import read_image
from vision.common.runtime.drawing import GREY, class_colour, draw_boxes, side_by_side
from vision.lattice.core.confusion import crowd_rows
from vision.lattice.mm.analysis import boxes_of
from vision.lattice.mm.truth import key_of, pictures_of
from vision.lattice.runtime.drawing import draw_found
from vision.registry import HOOKS


@HOOKS.register_module()
class DrawDetections(DrawHook):
    """Detections of a test beside the true boxes, a picture a frame.

    Args:
        score_thr: boxes below are not drawn.
    """

    def __init__(self, out_dir: str, score_thr: float = 0.3) -> None:
        super().__init__(out_dir)
        self.score_thr = score_thr

    def before_test(self, runner) -> None:
        """As ``DrawHook``, and look up the true boxes of the data set."""
        super().before_test(runner)
        self.truth = {picture.key: picture for picture in pictures_of(self.dataset)}
        self.classes = tuple(self.dataset.metainfo['classes'])

    def draw(self, sample: Any) -> np.ndarray:
        """A picture (H, W, 3) uint8 BGR of the boxes found, beside the true ones where the frame
        is labelled."""
        image = read_image(sample.img_path)
        plain = plain_sample(sample.to_dict())
        found = draw_found(image, boxes_of(plain), self.classes, score_thr=self.score_thr)
        picture = self.truth[key_of(plain)]
        if not picture.is_labelled:
            return found
        truth, is_crowd = picture.truth, crowd_rows(picture.truth)
        true = draw_boxes(image, truth.boxes_xyxy, [self.classes[label] for label in truth.labels],
                          [GREY if is_crowd[i] else class_colour(label)
                           for i, label in enumerate(truth.labels.tolist())])
        return side_by_side([found, true], ['found', 'true'])
