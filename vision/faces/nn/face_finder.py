"""Faces in a picture (OpenCV's YuNet), aligned crops, and their embeddings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from vision.common.core.errors import VisionError
from vision.faces.core.alignment import similarity_transforms, template

NMS_IOU = 0.3  # OpenCV's default for this detector
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
    """YuNet through ``cv2.FaceDetectorYN``.

    Args:
        weights: .onnx of YuNet.
        min_score: faces below it are left out.
    Raises:
        VisionError: VIS-CKPT-1103 when the file is absent or OpenCV cannot use it.
    """

    def __init__(self, weights: Path, *, min_score: float = 0.7) -> None:
        try:
            if not Path(weights).is_file():
                raise FileNotFoundError(f'there is no file {weights}')
            self._net = cv2.FaceDetectorYN.create(str(weights), '', (320, 320), min_score,
                                                  NMS_IOU, 5000)
        except (OSError, cv2.error, AttributeError) as error:
            raise VisionError('VIS-CKPT-1103', f'no face detector: {error}', where=str(weights),
                              why='a YuNet .onnx and OpenCV 4.8 or newer are needed',
                              do='get yunet_n_dynamic.onnx of libfacedetection.train') from error

    def __call__(self, image_bgr: np.ndarray) -> Faces:
        """All faces of a picture (H, W, 3) uint8, in its own pixels."""
        height, width = image_bgr.shape[:2]
        scale = min(1.0, MAX_SIDE / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = image_bgr if scale == 1 else cv2.resize(image_bgr, size,
                                                        interpolation=cv2.INTER_AREA)
        self._net.setInputSize(size)
        _, rows = self._net.detect(small)
        rows = np.zeros((0, 15), dtype=np.float32) if rows is None else rows
        rows = rows[np.argsort(-rows[:, 14], kind='stable')]
        boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1) / scale
        boxes = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
        return Faces(boxes, rows[:, 4:14].reshape(-1, 5, 2) / scale, rows[:, 14])


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
