"""A YOLOX detector of mmdet as an .onnx file for ``vision.lattice.runtime``."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor, nn

from vision.lattice.mm.mmdet_adapter import MMDetDetector

OPSET = 17


class RawYOLOX(nn.Module):
    """Backbone, neck and head without decoding.

    Shapes: images (1, 3, H, W) float32 BGR 0-255, sides multiples of 32 -> (1, N, 5 + C): box
    offsets from the anchor in strides and logarithms, objectness, class probabilities.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        """images (1, 3, H, W) -> (1, N, 5 + C), level after level."""
        levels = self.detector.bbox_head(self.detector.extract_feat(images))
        rows = [torch.cat([boxes, objectness.sigmoid(), classes.sigmoid()], dim=1).flatten(2)
                for classes, boxes, objectness in zip(*levels, strict=True)]
        return torch.cat(rows, dim=2).transpose(1, 2)


def yolox_to_onnx(detector: MMDetDetector, *, size: int) -> bytes:
    """The content of an .onnx file that takes any multiple of 32.

    Class names and ``size``, the side in px that the network was trained for, go into the file's
    metadata, where ``OnnxDetector`` looks for them.
    """
    import onnx
    content = io.BytesIO()
    torch.onnx.export(
        RawYOLOX(detector.model).eval(), (torch.zeros(1, 3, size, size),), content, dynamo=False,
        opset_version=OPSET, input_names=['images'], output_names=['output'],
        dynamic_axes=dict(images={2: 'height', 3: 'width'}, output={1: 'anchors'}))
    model = onnx.load_from_string(content.getvalue())
    onnx.helper.set_model_props(model, dict(input_size=str(size), names=str(
        dict(enumerate(detector.classes)))))
    return model.SerializeToString()


def largest_difference(detector: MMDetDetector, content: bytes, *, size: int) -> float:
    """Largest difference of the raw outputs of torch and onnxruntime, on noise at ``size`` px and
    at half its height."""
    import onnxruntime
    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    raw, rng = RawYOLOX(detector.model).eval(), np.random.default_rng(0)
    differences = []
    for height in (size, max(32, size // 64 * 32)):
        images = rng.uniform(0, 255, (1, 3, height, size)).astype(np.float32)
        with torch.no_grad():
            expected = raw(torch.from_numpy(images)).numpy()
        differences.append(np.abs(session.run(None, {'images': images})[0] - expected).max())
    return float(max(differences))
