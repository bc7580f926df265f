"""How well a lattice's networks move boxes: true ones stand in for those of a detector."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
from torch import nn

from vision.common.core.boxes import paired_iou
from vision.common.nn.checkpoint import load_checkpoint, load_state
from vision.common.nn.images import read_image
from vision.lattice.core.cocovid import CocoFrame
from vision.lattice.core.structures import FrameBoxes
from vision.lattice.mm.networks import TorchNetworks
from vision.lattice.nn.propagation import PropagationNet
from vision.lattice.nn.refinement import RefinementNet
from vision.zoo import resolve

METHODS = ('linear', 'propagated', 'merged', 'refined')
# Classes of speed of the FGFA protocol: mean IoU of a track with itself 1 to 10 frames away.
SPEEDS = (('slow', 0.9, 1.01), ('medium', 0.7, 0.9), ('fast', -1.0, 0.7))
SPEED_OFFSETS = [offset for offset in range(-10, 11) if offset]


def motion_iou(tracks: list[dict[int, np.ndarray]], frame: int, instance: int) -> float:
    """Mean IoU of an object's box (4,) xyxy with its own boxes at offsets -10 .. 10 frames.

    Args:
        tracks: of each frame, box (4,) by instance.
    """
    others = [tracks[frame + offset][instance] for offset in SPEED_OFFSETS
              if 0 <= frame + offset < len(tracks) and instance in tracks[frame + offset]]
    own = np.repeat(tracks[frame][instance][None], len(others), axis=0)
    return float(paired_iou(own, np.array(others)).mean()) if others else 1.0


def load_networks(checkpoint: str, **options) -> TorchNetworks:
    """Networks of a checkpoint with propagation.* and refinement.*, without a detector."""
    state = load_checkpoint(resolve(checkpoint))['state_dict']
    modules = nn.ModuleDict(dict(propagation=PropagationNet(), refinement=RefinementNet()))
    # Boxes alone are judged here: what refinement thinks of classes is left aside.
    load_state(modules, state, where=checkpoint, unused_prefixes=('refinement.classes.',
                                                                  'detector.'))
    return TorchNetworks(None, **modules.eval(), **options)


def predict(networks: TorchNetworks, images: list[np.ndarray], left: np.ndarray,
            right: np.ndarray) -> dict[str, np.ndarray]:
    """Boxes (N, 4) xyxy on the middle one of 2 gap + 1 images, by each of ``METHODS``.

    Args:
        images: (H, W, 3) uint8 BGR.
        left, right: (N, 4) xyxy, of the same objects on the first and the last image.
    """
    greys = np.stack([networks.grey(image) for image in images])
    gap, size = len(images) // 2, images[0].shape[:2]

    def moved(boxes: np.ndarray, frames: np.ndarray) -> np.ndarray:
        count = len(boxes)
        wrapped = FrameBoxes(boxes, np.ones(count), np.zeros(count))
        return networks.propagate(wrapped, frames, frame_size=size, stage=0).boxes_xyxy

    linear, ahead = (left + right) / 2, moved(left, greys[:gap + 1])
    back = moved(right, greys[:gap - 1:-1])
    merged = np.median([linear, ahead, back], axis=0)
    wrapped = FrameBoxes(merged, np.ones(len(merged)), np.zeros(len(merged)))
    refined = networks.refine(wrapped, images[gap], stage=0).boxes_xyxy
    return dict(linear=linear, propagated=ahead, merged=merged, refined=refined)


def measure_video(networks: TorchNetworks, frames: list[CocoFrame], folder: Path, gap: int,
                  step: int) -> dict[tuple[str, str], list[float]]:
    """IoUs by (speed, method) of one video."""
    tracks = [{int(number): box for number, box in
               zip(frame.instance_ids, frame.boxes_xyxy, strict=True)} for frame in frames]
    overlaps = defaultdict(list)
    for start in range(0, len(frames) - 2 * gap, step):
        left, middle, right = (tracks[start + k * gap] for k in (0, 1, 2))
        shared = sorted(left.keys() & middle.keys() & right.keys())
        if not shared:
            continue
        images = [read_image(folder / frame.file_name)
                  for frame in frames[start:start + 2 * gap + 1]]
        found = predict(networks, images, *(np.stack([end[i] for i in shared])
                                            for end in (left, right)))
        truth = np.stack([middle[i] for i in shared])
        motion = [motion_iou(tracks, start + gap, i) for i in shared]
        for method, boxes in found.items():
            for overlap, iou in zip(paired_iou(boxes, truth), motion, strict=True):
                speed = next(name for name, low, high in SPEEDS if low <= iou < high)
                overlaps[speed, method].append(float(overlap))
    return overlaps


def summary(overlaps: dict[tuple[str, str], list[float]], gap: int) -> list[dict]:
    """A row for each speed and method that has values: mean IoU, recall at IoU 0.5 and 0.75."""
    rows = []
    for speed, _, _ in SPEEDS:
        for method in METHODS:
            values = np.array(overlaps.get((speed, method), []))
            if len(values):
                rows.append(dict(gap=gap, speed=speed, method=method, count=len(values),
                                 iou=float(values.mean()), recall50=float((values >= 0.5).mean()),
                                 recall75=float((values >= 0.75).mean())))
    return rows
