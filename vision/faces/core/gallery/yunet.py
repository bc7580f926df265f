"""What YuNet's network says (Wu et al., 2023): cells of three grids to boxes, points, scores.

A cell at column c, row r of stride s has a box of centre s (c + x, r + y) and sides s exp(w),
s exp(h), five points s (c + x_k, r + y_k), and the score sqrt(class x objectness).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vision.common.core.boxes import nms

STRIDES = (8, 16, 32)
NMS_IOU = 0.3  # as OpenCV's reader of this network has it


def decode_faces(outputs: Mapping[str, np.ndarray], width: int, *, min_score: float
                 ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(boxes_xyxy (N, 4), landmarks (N, 5, 2), scores (N,)), best first, in px of the input.

    Args:
        outputs: cls_S, obj_S (1, cells, 1), bbox_S (1, cells, 4), kps_S (1, cells, 10) for each
            stride S, rows of the grid one after the other.
        width: px of the input, a multiple of the largest stride.
    """
    boxes, points, scores = [], [], []
    for stride in STRIDES:
        cls, obj, box, kps = (outputs[f'{name}_{stride}'][0].astype(np.float64)
                              for name in ('cls', 'obj', 'bbox', 'kps'))
        score = np.sqrt(np.clip(cls[:, 0], 0, 1) * np.clip(obj[:, 0], 0, 1))
        good = np.flatnonzero(score >= min_score)
        cells = np.stack([good % (width // stride), good // (width // stride)], axis=1)
        centre, half = (cells + box[good, :2]) * stride, np.exp(box[good, 2:]) * stride / 2
        boxes.append(np.concatenate([centre - half, centre + half], axis=1))
        points.append((kps[good].reshape(-1, 5, 2) + cells[:, None]) * stride)
        scores.append(score[good])
    all_boxes, all_points, all_scores = (np.concatenate(part).astype(np.float32)
                                         for part in (boxes, points, scores))
    keep = nms(all_boxes, all_scores, NMS_IOU)
    return all_boxes[keep], all_points[keep], all_scores[keep]
