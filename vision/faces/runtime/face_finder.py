"""Faces in a picture (YuNet; Wu et al., 2023) and their aligned crops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vision.common.core.boxes import nms
from vision.common.core.errors import VisionError
from vision.common.runtime.onnx_session import open_session
from vision.faces.core.gallery.alignment import similarity_transforms, template

STRIDES = (8, 16, 32)
NMS_IOU = 0.3  # as OpenCV's reader of this network has it
MAX_SIDE = 1280  # larger pictures are searched smaller; faces above 10 px there are found


@dataclass(frozen=True)
class Faces:
    """N faces, best first: boxes_xyxy (N, 4), landmarks (N, 5, 2) px, scores (N,)."""

    boxes_xyxy: np.ndarray
    landmarks: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


class FaceFinder:
    """YuNet in onnxruntime. (OpenCV 4.11 cannot read the network with free input size.)

    Args:
        weights: .onnx of YuNet, with outputs cls_8 ... kps_32.
        min_score: faces below it are left out.

    Raises:
        VisionError: VIS-CKPT-1103 when the file is absent or another network.
    """

    def __init__(self, weights: Path, *, min_score: float = 0.7) -> None:
        self.min_score = min_score
        if not Path(weights).is_file():
            raise _no_detector(weights, 'there is no such file')
        try:
            self._net = open_session(weights)
        except Exception as error:  # onnxruntime has an exception class for each fault
            raise _no_detector(weights, str(error)) from error
        self._outputs = [output.name for output in self._net.get_outputs()]
        if not {'cls_8', 'obj_16', 'bbox_32', 'kps_32'} <= set(self._outputs):
            raise _no_detector(weights, f'its outputs are {", ".join(self._outputs)}')

    def __call__(self, image_bgr: np.ndarray) -> Faces:
        """All faces of a picture (H, W, 3) uint8, in its own pixels."""
        height, width = image_bgr.shape[:2]
        scale = min(1.0, MAX_SIDE / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = image_bgr if scale == 1 else cv2.resize(image_bgr, size,
                                                        interpolation=cv2.INTER_AREA)
        bottom, right = -size[1] % STRIDES[-1], -size[0] % STRIDES[-1]
        padded = cv2.copyMakeBorder(small, 0, bottom, 0, right, cv2.BORDER_CONSTANT)
        planes = padded.transpose(2, 0, 1)[None].astype(np.float32)
        values = self._net.run(self._outputs, {self._net.get_inputs()[0].name: planes})
        boxes, points, scores = decode_faces(dict(zip(self._outputs, values, strict=True)),
                                             padded.shape[1], min_score=self.min_score)
        boxes = np.clip(boxes / scale, 0, [width, height, width, height]).astype(np.float32)
        return Faces(boxes, points / scale, scores)


def decode_faces(outputs: Mapping[str, np.ndarray], width: int, *, min_score: float
                 ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """YuNet's cells to (boxes_xyxy (N, 4), landmarks (N, 5, 2), scores (N,)), best first.

    A cell at column c, row r of the grid of stride s has a box of centre s (c + x, r + y) and
    sides s exp(w), s exp(h), five points s (c + x_k, r + y_k), and the score sqrt(class x
    objectness); all in px of the input.

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


def align_faces(image_bgr: np.ndarray, landmarks: np.ndarray, size: int = 112) -> np.ndarray:
    """Standard crops (N, size, size, 3) uint8 BGR of a picture (H, W, 3).

    Args:
        landmarks: (N, 5, 2) x y in px of the picture, in the order of ``alignment.template``.
    """
    matrices = similarity_transforms(landmarks, template(size)) if len(landmarks) else []
    crops = [cv2.warpAffine(image_bgr, matrix, (size, size), flags=cv2.INTER_LINEAR)
             for matrix in matrices]
    return np.stack(crops) if crops else np.zeros((0, size, size, 3), dtype=np.uint8)


def _no_detector(weights: Path, why: str) -> VisionError:
    return VisionError('VIS-CKPT-1103', 'no face detector', where=str(weights), why=why,
                       do='vision zoo get yunet_widerface, or name another YuNet .onnx file')
