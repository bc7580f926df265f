"""F_T: where a box of frame a lies on frame m, from motion history and two grey frames.

Scale-Time Lattice (arXiv:1804.05472) regresses the movement of a box from pooled motion
features. Ours looks at a square window around each box instead of the whole frame, so that the
cost follows the number of objects, and matches the two windows cell by cell before it regresses:
a movement is then read off where the content went, not guessed from how much has changed.

Shape letters: K boxes, G cells per side of the matching grid, C channels, S samples per side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vision.lattice.nn.roi_align import box_sizes, image_pyramid, sample_pyramid, square_windows

WINDOW_SAMPLES = 64  # S
STRIDE = 4  # of the encoder; G = S / STRIDE
INPUTS = ('mhi', 'grey')


class Movement(NamedTuple):
    """Deltas (K, 4): shift x, y over sqrt(w h) and log ratios of w, h; visibility logit (K,);
    flow (K, 2, G, G): where each cell went, in cells, for the auxiliary loss (None without grey).
    """

    deltas: Tensor
    visibility: Tensor
    flow: Tensor | None


def conv_block(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, group norm (batches are few boxes of one frame), ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.GroupNorm(8, outputs), nn.ReLU(inplace=True))


def apply_movement(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Boxes (K, 4) moved by deltas (K, 4); the inverse of ``movement_between``."""
    size = box_sizes(boxes)[:, None]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 + deltas[:, :2] * size
    half = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1) * deltas[:, 2:].clamp(-2, 2).exp() / 2
    return torch.cat([centres - half, centres + half], dim=1)


def movement_between(source: Tensor, target: Tensor, size: Tensor | None = None) -> Tensor:
    """Deltas (K, 4) from source to target (K, 4).

    The shift is measured in sqrt(w h) of both axes alike, unlike R-CNN's deltas: the window is
    square, and a thin object's sideways movement would otherwise be many of its widths.

    Args:
        size: (K,) unit of the shift when it is not that of source.
    """
    size = (box_sizes(source) if size is None else size)[:, None]
    shift = (target[:, :2] + target[:, 2:] - source[:, :2] - source[:, 2:]) / 2 / size
    sides = [(b[:, 2:] - b[:, :2]).clamp(min=1) for b in (source, target)]
    return torch.cat([shift, (sides[1] / sides[0]).log()], dim=1)


class PropagationNet(nn.Module):
    """Movement of boxes between two frames.

    Args:
        inputs: ('mhi', 'grey') or ('mhi',), the paper's input.
        window: side of the window over sqrt(w h) of the box; the farthest movement that can be
            seen is about (window - 1) / 2 box sizes.
        channels: of the matching features.
    """

    def __init__(self, inputs: tuple[str, ...] = INPUTS, *, window: float = 3.0,
                 channels: int = 48) -> None:
        super().__init__()
        if tuple(inputs) not in (INPUTS, ('mhi',)):
            raise ValueError(f"inputs must be ('mhi', 'grey') or ('mhi',), got {inputs}")
        self.uses_grey, self.window = 'grey' in inputs, window
        self.grid = WINDOW_SAMPLES // STRIDE
        if self.uses_grey:
            self.encoder = nn.Sequential(conv_block(1, 24, kernel=5, stride=2),
                                         conv_block(24, 32, stride=2), conv_block(32, 48),
                                         nn.Conv2d(48, channels, 1))
            self.temperature = nn.Parameter(torch.tensor(2.3))
        self.motion = nn.Sequential(conv_block(3, 16, kernel=5, stride=2),
                                    conv_block(16, 16, stride=2))
        self.head = nn.Sequential(
            conv_block(16 + (channels * 2 + 3 if self.uses_grey else 0), 64, stride=2),
            conv_block(64, 64, stride=2), nn.Flatten(),
            nn.Linear(64 * (self.grid // 4)**2, 128), nn.ReLU(inplace=True))
        self.weight = nn.Conv2d(channels + 4, 1, 3, padding=1) if self.uses_grey else None
        self.output = nn.Linear(128, 5)
        nn.init.normal_(self.output.weight, std=0.01)
        nn.init.zeros_(self.output.bias)

    def forward(self, crops: Tensor) -> Movement:
        """crops (K, 5, S, S) as ``motion_crops`` gives them."""
        motion = self.motion(crops[:, [0, 3, 4]])
        if not self.uses_grey:
            output = self.output(self.head(motion))
            return Movement(output[:, :4], output[:, 4], None)
        features = self.encoder(torch.cat([crops[:, 1:2], crops[:, 2:3]]))
        start, end = F.normalize(features, dim=1).chunk(2)
        flow, certainty, carried = self._match(start, end, crops[:, 4:5])
        box = F.avg_pool2d(crops[:, 3:4], STRIDE)
        matched = torch.cat([flow, certainty], dim=1)
        logits = self.weight(torch.cat([start, matched, box], dim=1)) + (box + 1e-3).log()
        share = logits.flatten(2).softmax(-1)
        shift = (flow.flatten(2) * share).sum(-1) * (self.window / self.grid)
        output = self.output(self.head(torch.cat([motion, start, start - carried, matched], 1)))
        return Movement(torch.cat([shift + output[:, :2], output[:, 2:4]], dim=1), output[:, 4],
                        flow)

    def _match(self, start: Tensor, end: Tensor,
               inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Soft matches of every cell: flow (K, 2, G, G) in cells, certainty (K, 1, G, G), and
        the matched features (K, C, G, G)."""
        K, C, G, _ = start.shape
        scores = start.flatten(2).transpose(1, 2) @ end.flatten(2) * self.temperature.exp()
        scores = scores + (F.avg_pool2d(inside, STRIDE).flatten(2) - 1) * 8
        match = scores.softmax(-1)
        steps = torch.arange(G, device=start.device, dtype=start.dtype)
        places = torch.stack([steps.repeat(G), steps.repeat_interleave(G)])  # x, y of each cell
        flow = (match @ places.T).transpose(1, 2) - places
        carried = (match @ end.flatten(2).transpose(1, 2)).transpose(1, 2)
        certainty = match.amax(-1)[:, None]
        return (flow.reshape(K, 2, G, G), certainty.reshape(K, 1, G, G),
                carried.reshape(K, C, G, G))


def motion_crops(frames: Tensor, history: Tensor, boxes: Tensor, *, window: float) -> Tensor:
    """Input of ``PropagationNet``: (K, 5, S, S) motion history, grey a, grey m (both with mean 0
    and deviation 1 per window, so that exposure and contrast do not matter), the box as a mask,
    and what lies inside of the frame.

    Shapes: frames (2, h, w) grey frames a and m in [0, 1]; history (h / n, w / n) motion history
        at a whole fraction of their size; boxes (K, 4) in pixels of frames.
    """
    windows = square_windows(boxes, window)
    greys, inside = sample_pyramid(image_pyramid(frames), windows, WINDOW_SAMPLES)
    scale = history.shape[-1] / frames.shape[-1]
    motion, _ = sample_pyramid(image_pyramid(history[None]), windows * scale, WINDOW_SAMPLES)
    count = inside.sum((2, 3), keepdim=True).clamp(min=1)
    mean = (greys * inside).sum((2, 3), keepdim=True) / count
    spread = (((greys - mean) * inside).square().sum((2, 3), keepdim=True) / count).sqrt()
    greys = (greys - mean) * inside / (spread + 0.02)
    return torch.cat([motion, greys, box_mask(boxes, windows), inside], dim=1)


def box_mask(boxes: Tensor, windows: Tensor) -> Tensor:
    """(K, 1, S, S): how much of each sample's row and column the box covers, in [0, 1].

    Boxes and the windows that they are seen through are (K, 4) xyxy in the same pixels.
    """
    S = WINDOW_SAMPLES
    start = windows[:, :2].repeat(1, 2)
    side = (windows[:, 2:] - windows[:, :2]).repeat(1, 2)
    edges = (boxes - start) / side * S  # in samples
    left = torch.arange(S, device=boxes.device, dtype=boxes.dtype)

    def cover(low: Tensor, high: Tensor) -> Tensor:
        return (torch.minimum(left + 1, high[:, None])
                - torch.maximum(left, low[:, None])).clamp(0, 1)

    columns, rows = cover(edges[:, 0], edges[:, 2]), cover(edges[:, 1], edges[:, 3])
    return (rows[:, :, None] * columns[:, None, :])[:, None]
