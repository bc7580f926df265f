"""The engine's four calls, answered by torch modules."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from vision.lattice.core.interval import Propagated, Refined
from vision.lattice.core.structures import FrameBoxes
from vision.lattice.mm.grey import GREY_LONG_SIDE, grey_frame, small_history
from vision.lattice.nn.propagation import PropagationNet, apply_movement, motion_crops
from vision.lattice.nn.refinement import RefinementNet, apply_edges


class TorchNetworks:
    """``vision.lattice.core.interval.Networks`` on any device; holds no state of a video.

    Args:
        detector: has ``detect(image_bgr) -> FrameBoxes``; None when only propagation is used.
        refinement: None leaves the propagated boxes as they are.
        refine_stages: stages at which ``refinement`` acts; None for all, () for none.
        step: share of the correction that is applied, in (0, 1].
        use_confidence: report F_S's belief; otherwise 1 for every box.
        precision: dtype of the networks on a GPU; float32 on a CPU.
    """

    def __init__(self, detector, propagation: PropagationNet, refinement: RefinementNet | None,
                 *, refine_stages: tuple[int, ...] | None = None, step: float = 1.0,
                 use_confidence: bool = False, grey_long_side: int = GREY_LONG_SIDE,
                 precision: torch.dtype = torch.float32) -> None:
        self.detector, self.propagation, self.refinement = detector, propagation, refinement
        self.refine_stages, self.step = refine_stages, step
        self.use_confidence, self.grey_long_side = use_confidence, grey_long_side
        self.precision = precision

    def detect(self, image_bgr: np.ndarray) -> FrameBoxes:
        """The detector's boxes of a frame (H, W, 3) uint8 BGR."""
        return self.detector.detect(image_bgr)

    def grey(self, image_bgr: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 BGR -> (h, w) float32 in [0, 1], see ``grey_frame``."""
        return grey_frame(image_bgr, self.grey_long_side)

    @torch.inference_mode()
    def propagate(self, boxes: FrameBoxes, greys: np.ndarray, *, frame_size: tuple[int, int],
                  stage: int) -> Propagated:
        """Boxes moved from the first to the last of greys (n + 1, h, w); all stages share one
        network. ``frame_size`` is (H, W) of the original, in whose pixels boxes are."""
        device = _device_of(self.propagation)
        scale = np.array([greys.shape[2] / frame_size[1], greys.shape[1] / frame_size[0]] * 2)
        small = torch.from_numpy((boxes.boxes_xyxy * scale).astype(np.float32)).to(device)
        frames = torch.from_numpy(greys[[0, -1]]).to(device)
        history = torch.from_numpy(small_history(greys)).to(device)
        crops = motion_crops(frames, history, small, window=self.propagation.window)
        with self._autocast(device):
            movement = self.propagation(crops)
        original = torch.from_numpy(boxes.boxes_xyxy).to(device)
        moved = apply_movement(original, movement.deltas.float())
        return Propagated(moved.cpu().numpy(), movement.visibility.float().sigmoid().cpu().numpy())

    @torch.inference_mode()
    def refine(self, boxes: FrameBoxes, image_bgr: np.ndarray, *, stage: int) -> Refined:
        """Boxes corrected on the frame (H, W, 3) uint8 BGR on which they lie; as they are at
        stages without refinement."""
        certain = np.ones(len(boxes), np.float32)
        is_left_out = self.refine_stages is not None and stage not in self.refine_stages
        if self.refinement is None or is_left_out:
            return Refined(boxes.boxes_xyxy, certain)
        device = _device_of(self.refinement)
        image = torch.from_numpy(np.ascontiguousarray(image_bgr.transpose(2, 0, 1))).to(device)
        before = torch.from_numpy(boxes.boxes_xyxy).to(device)
        crops = self.refinement.image_crops(image.float() / 255, before)
        with self._autocast(device):
            correction = self.refinement(crops)
        after = apply_edges(before, correction.edges.float() * self.step)
        if self.use_confidence:
            certain = correction.confidence.float().sigmoid().cpu().numpy()
        classes = None
        if correction.classes is not None:
            classes = correction.classes.float().softmax(1)[:, :-1].cpu().numpy()
        return Refined(after.cpu().numpy(), certain, classes)

    def _autocast(self, device: torch.device):
        return torch.autocast(device.type, self.precision,
                              enabled=self.precision != torch.float32)


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
