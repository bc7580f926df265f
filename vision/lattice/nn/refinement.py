"""F_S: a box corrected on the frame on which it lies, from the colour image.

Scale-Time Lattice (arXiv:1804.05472) regresses four offsets from pooled features of the frame at
the next scale. Ours runs a small network on a window around each box; the scale is the number of
samples per window. It may also say what the object is (our addition): the frames between two
keyframes are then looked at by something that knows the classes, too.
Shape letters: K boxes, S samples per side, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vision.lattice.nn.propagation import conv_block
from vision.lattice.nn.roi_align import enlarge, image_pyramid, sample_pyramid

DELTA_STD = 0.2  # network outputs are in these units, so that they are about 1
MAX_STEP = 0.5  # no side moves by more than this share of the box: F_S mends, it does not search


class Correction(NamedTuple):
    """edges (K, 4): moves of x1 y1 x2 y2 over the box's w and h, in ``DELTA_STD``; confidence
    logit (K,): is there an object under the box? classes (K, C + 1): logits, background last;
    None without classes."""

    edges: Tensor
    confidence: Tensor
    classes: Tensor | None


class RefinementNet(nn.Module):
    """Correction of boxes on one frame.

    Args:
        window: side of the window over the box's side, per axis.
        samples: S, a multiple of 8; what a stage sees of an object.
        num_classes: C, 0 when it shall not classify.
    """

    def __init__(self, *, window: float = 2.0, samples: int = 64, num_classes: int = 0) -> None:
        super().__init__()
        if samples % 8:
            raise ValueError(f'samples must be a multiple of 8, got {samples}')
        self.window, self.samples, self.num_classes = window, samples, num_classes
        self.trunk = nn.Sequential(
            conv_block(4, 24, kernel=5, stride=2), conv_block(24, 48, stride=2),
            conv_block(48, 64), conv_block(64, 64, stride=2), conv_block(64, 48), nn.Flatten(),
            nn.Linear(48 * (samples // 8)**2, 192), nn.ReLU(inplace=True))
        self.output = nn.Linear(192, 5)
        self.classes = nn.Linear(192, num_classes + 1) if num_classes else None
        nn.init.normal_(self.output.weight, std=0.01)
        nn.init.zeros_(self.output.bias)

    def forward(self, crops: Tensor) -> Correction:
        """crops (K, 4, S, S) as ``image_crops`` gives them."""
        features = self.trunk(crops)
        output = self.output(features)
        classes = self.classes(features) if self.classes is not None else None
        return Correction(output[:, :4], output[:, 4], classes)

    def image_crops(self, image: Tensor, boxes: Tensor) -> Tensor:
        """(K, 4, S, S): three colours with mean 0 and deviation 1 per window, and the inside.

        Shapes: image (3, H, W) float in [0, 1], BGR; boxes (K, 4) in its pixels.
        """
        crops, inside = sample_pyramid(image_pyramid(image), enlarge(boxes, self.window),
                                       self.samples)
        count = (inside.sum((2, 3), keepdim=True)).clamp(min=1)
        mean = (crops * inside).sum((2, 3), keepdim=True) / count
        square = ((crops - mean) * inside).square().sum((1, 2, 3), keepdim=True) / (3 * count)
        return torch.cat([(crops - mean) * inside / (square.sqrt() + 0.02), inside], dim=1)


def apply_edges(boxes: Tensor, edges: Tensor) -> Tensor:
    """Boxes (K, 4) corrected by edges (K, 4); a step is at most ``MAX_STEP`` of the side."""
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1).repeat(1, 2)
    moved = boxes + (edges * DELTA_STD).clamp(-MAX_STEP, MAX_STEP) * sides
    return torch.cat([torch.minimum(moved[:, :2], moved[:, 2:]),
                      torch.maximum(moved[:, :2], moved[:, 2:])], dim=1)


def edges_between(boxes: Tensor, targets: Tensor) -> Tensor:
    """Edges (K, 4) that correct boxes to targets (K, 4)."""
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1).repeat(1, 2)
    return (targets - boxes) / sides / DELTA_STD
