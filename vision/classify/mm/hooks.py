"""Hooks of this room."""

from __future__ import annotations

from typing import Any

import numpy as np

from vision.classify.mm.analysis import captioned
from vision.common.mm.pictures import DrawHook
from vision.common.nn.images import read_image
from vision.registry import HOOKS


@HOOKS.register_module()
class DrawPredictions(DrawHook):
    """Tested images with their class, and the one that was found with its probability."""

    def draw(self, sample: Any) -> np.ndarray:
        """The sample's picture (H, W, 3) uint8 BGR with the class found, its probability and the
        true class below it."""
        classes = self.dataset.metainfo['classes']
        found = int(sample.pred_label)
        lines = [f'found {classes[found]} {float(sample.pred_score[found]):.2f}']
        if 'gt_label' in sample:
            lines.append(f'true {classes[int(sample.gt_label)]}')
        return captioned(read_image(sample.img_path), lines)
