"""The joint loss of F_T and F_S.

Scale-Time Lattice (arXiv:1804.05472): smooth L1 of temporal and of spatial offsets, summed. Our
additions: visibility and confidence (cross entropy), a plain loss on the matching inside of the
box, and F_S trained on what F_T really gives plus jittered boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vision.lattice.nn.propagation import (
    PropagationNet,
    apply_movement,
    motion_crops,
    movement_between,
)
from vision.lattice.nn.refinement import RefinementNet, apply_edges, edges_between
from vision.lattice.nn.roi_align import box_sizes, square_windows

# Smooth L1 turns linear at this error, in box sizes: 0.05 is about an IoU of 0.9.
BETA = 0.05
# Deltas are about 0.1: this brings their loss to the scale of the cross entropies.
DELTA_WEIGHT = 10.0
BELIEF_WEIGHT = 0.2
FLOW_WEIGHT = 0.5
# F_S counts a box as an object when it overlaps one by this much.
MATCH_IOU = 0.5
EDGE_BETA = 0.25  # in ``refinement.DELTA_STD``


@dataclass(frozen=True, eq=False)
class MovementSample:
    """One direction of one pair of frames; K boxes.

    Shapes: frames (2, h, w) grey a and m in [0, 1]; history (h / 2, w / 2); image (3, H, W) uint8
        frame m; boxes (K, 4) on a, source (K, 4) the true boxes on a, target (K, 4) on m, both in
        original pixels; is_visible (K,) bool, False where target means nothing; labels (K,)
        int64; extra (N, 4), extra_target (N, 4) and extra_labels (N,): jittered true boxes of
        frame m for F_S alone; background (M, 4) boxes of frame m that overlap no object.
    """

    frames: Tensor
    history: Tensor
    image: Tensor
    boxes: Tensor
    source: Tensor
    target: Tensor
    is_visible: Tensor
    labels: Tensor
    extra: Tensor
    extra_target: Tensor
    extra_labels: Tensor
    background: Tensor


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of row i of a (K, 4) with row i of b (K, 4)."""
    sides = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    areas = [(x[:, 2:] - x[:, :2]).clamp(min=0).prod(1) for x in (a, b)]
    overlap = sides.prod(1)
    return overlap / (areas[0] + areas[1] - overlap).clamp(min=1e-6)


def lattice_losses(propagation: PropagationNet, refinement: RefinementNet,
                   samples: list[MovementSample]) -> dict[str, Tensor]:
    """Scalar losses by name, those named loss_* to be summed; the others are for the log."""
    losses, moved = _temporal_losses(propagation, samples)
    return losses | _spatial_losses(refinement, samples, moved)


def _temporal_losses(net: PropagationNet,
                     samples: list[MovementSample]) -> tuple[dict[str, Tensor], list[Tensor]]:
    crops = torch.cat([motion_crops(s.frames, s.history, s.boxes * _grey_scale(s),
                                    window=net.window) for s in samples])
    boxes, source, target = (torch.cat([getattr(s, name) for s in samples])
                             for name in ('boxes', 'source', 'target'))
    is_visible = torch.cat([s.is_visible for s in samples])
    movement = net(crops)
    # The movement of the true box, in units of the box that the network is given.
    wanted = movement_between(source, target, box_sizes(boxes))
    error = F.smooth_l1_loss(movement.deltas.float(), wanted, beta=BETA, reduction='none')
    count = is_visible.sum().clamp(min=1)
    losses = dict(
        loss_temporal=(error.sum(1) * is_visible).sum() / count * DELTA_WEIGHT,
        loss_visibility=F.binary_cross_entropy_with_logits(
            movement.visibility.float(), is_visible.float()) * BELIEF_WEIGHT)
    if movement.flow is not None:
        losses['loss_flow'] = FLOW_WEIGHT * _flow_loss(net, movement.flow.float(), boxes, source,
                                                       target, is_visible)
    moved = apply_movement(boxes, movement.deltas.detach().float())
    losses['iou_temporal'] = (paired_iou(apply_movement(source, movement.deltas.detach().float()),
                                         target) * is_visible).sum() / count
    return losses, list(moved.split([len(s.boxes) for s in samples]))


def _flow_loss(net: PropagationNet, flow: Tensor, boxes: Tensor, source: Tensor, target: Tensor,
               is_visible: Tensor) -> Tensor:
    """L1 of the flow of cells inside the ellipse of the true box against its own motion.

    The box stands for its content: exact for shifts and scaling, wrong for rotation and corners,
    hence the ellipse at 0.8 of the box and a robust loss.
    """
    windows = square_windows(boxes, net.window)
    cell = (windows[:, 2:] - windows[:, :2]) / net.grid
    steps = torch.arange(net.grid, device=flow.device) + 0.5
    x = windows[:, 0:1] + steps * cell[:, 0:1]
    y = windows[:, 1:2] + steps * cell[:, 1:2]
    points = torch.stack([x[:, None].expand(-1, net.grid, -1),
                          y[:, :, None].expand(-1, -1, net.grid)], dim=1)
    mid = (source[:, :2] + source[:, 2:])[..., None, None] / 2
    side = (source[:, 2:] - source[:, :2]).clamp(min=1)[..., None, None]
    new_mid = (target[:, :2] + target[:, 2:])[..., None, None] / 2
    new_side = (target[:, 2:] - target[:, :2]).clamp(min=1)[..., None, None]
    place = (points - mid) / side
    wanted = (new_mid + place * new_side - points) / cell[..., None, None]
    inside = (place.square().sum(1) < 0.16) & is_visible[:, None, None]
    error = (flow - wanted).abs().sum(1)
    return (error * inside).sum() / inside.sum().clamp(min=1)


def _spatial_losses(net: RefinementNet, samples: list[MovementSample],
                    moved: list[Tensor]) -> dict[str, Tensor]:
    crops, boxes, targets, labels, is_object = [], [], [], [], []
    for sample, left in zip(samples, moved, strict=True):
        keep = sample.is_visible
        boxes.append(torch.cat([left[keep], sample.extra, sample.background]))
        targets.append(torch.cat([sample.target[keep], sample.extra_target, sample.background]))
        nothing = sample.labels.new_full((len(sample.background),), net.num_classes)
        labels.append(torch.cat([sample.labels[keep], sample.extra_labels, nothing]))
        is_object.append(torch.cat([torch.ones(int(keep.sum()) + len(sample.extra)),
                                    torch.zeros(len(sample.background))]).to(left.device).bool())
        image = sample.image.float() / 255
        crops.append(net.image_crops(image, boxes[-1]))
    boxes, targets, labels, is_object = map(torch.cat, (boxes, targets, labels, is_object))
    overlap = paired_iou(boxes, targets)
    is_match = is_object & (overlap > MATCH_IOU)
    correction = net(torch.cat(crops))
    error = F.smooth_l1_loss(correction.edges.float(), edges_between(boxes, targets),
                             beta=EDGE_BETA, reduction='none').sum(1)
    count = is_match.sum().clamp(min=1)
    after = paired_iou(apply_edges(boxes, correction.edges.detach().float()), targets)
    losses = dict(
        loss_spatial=(error * is_match).sum() / count,
        loss_confidence=F.binary_cross_entropy_with_logits(
            correction.confidence.float(), is_match.float()) * BELIEF_WEIGHT,
        iou_before_spatial=(overlap * is_match).sum() / count,
        iou_spatial=(after * is_match).sum() / count)
    if correction.classes is not None:
        losses |= _class_losses(correction.classes.float(), labels, is_match | ~is_object)
    return losses


def _class_losses(logits: Tensor, labels: Tensor, is_judged: Tensor) -> dict[str, Tensor]:
    """Cross entropy of logits (K, C + 1) where is_judged (K,): boxes that half overlap an object
    are neither the object nor background."""
    count = is_judged.sum().clamp(min=1)
    loss = F.cross_entropy(logits, labels, reduction='none')
    is_right = logits.detach().argmax(1) == labels
    return dict(loss_class=(loss * is_judged).sum() / count,
                accuracy_class=(is_right & is_judged).sum() / count)


def _grey_scale(sample: MovementSample) -> Tensor:
    """(4,) pixels of the grey frame per original pixel."""
    x = sample.frames.shape[2] / sample.image.shape[2]
    y = sample.frames.shape[1] / sample.image.shape[1]
    return sample.boxes.new_tensor([x, y, x, y])
