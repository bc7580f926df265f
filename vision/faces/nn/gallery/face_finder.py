"""Faces in a picture (YuNet), aligned crops, and their embeddings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from vision.common.core.errors import VisionError
from vision.faces.core.gallery.alignment import similarity_transforms, template
from vision.faces.core.gallery.yunet import STRIDES, decode_faces

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
        VisionError: VIS-CKPT-1103 when the file is absent or another network, VIS-ENV-1107 without
            onnxruntime.
    """

    def __init__(self, weights: Path, *, min_score: float = 0.7) -> None:
        self.min_score = min_score
        try:
            import onnxruntime
        except ImportError as error:
            raise VisionError('VIS-ENV-1107', 'the package onnxruntime is not installed',
                              why=str(error), do='pip install onnxruntime') from error
        if not Path(weights).is_file():
            raise _no_detector(weights, 'there is no such file')
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # its warnings about unused parts help nobody
        try:
            self._net = onnxruntime.InferenceSession(str(weights), options,
                                                     providers=['CPUExecutionProvider'])
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


def align_faces(image_bgr: np.ndarray, landmarks: np.ndarray, size: int = 112) -> np.ndarray:
    """Standard crops (N, size, size, 3) uint8 of faces with landmarks (N, 5, 2)."""
    matrices = similarity_transforms(landmarks, template(size)) if len(landmarks) else []
    crops = [cv2.warpAffine(image_bgr, matrix, (size, size), flags=cv2.INTER_LINEAR)
             for matrix in matrices]
    return np.stack(crops) if crops else np.zeros((0, size, size, 3), dtype=np.uint8)


def embedder_hash(embedder: nn.Module) -> str:
    """Hash of everything that an embedding depends on: weights, statistics, preparation."""
    digest = hashlib.sha256(repr((getattr(embedder, 'with_flip', None),
                                  getattr(embedder, 'swaps_channels', None))).encode())
    for name, tensor in sorted(embedder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _no_detector(weights: Path, why: str) -> VisionError:
    return VisionError('VIS-CKPT-1103', 'no face detector', where=str(weights), why=why,
                       do='get yunet_n_dynamic.onnx of ShiqiYu/libfacedetection.train')
