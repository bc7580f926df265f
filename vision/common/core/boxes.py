"""Box arithmetic in numpy: overlap, suppression, deltas, clipping.

Everywhere: a box is x1 y1 x2 y2 in pixels, x2 >= x1 and y2 >= y1, and its width is x2 - x1 (no
"+1"). Sums are in float64; boxes come back as float32. A box without area overlaps nothing.
"""

from __future__ import annotations

import numpy as np

# A delta may enlarge a box at most 62.5 times, as in R-CNN code bases: exp() of a wild network
# output would otherwise overflow (1000 / 16: a 16 px anchor in a 1000 px picture).
MAX_LOG_SCALE = float(np.log(1000 / 16))
# Sides below this count as this when a delta divides by them, px.
MIN_SIDE = 1e-3


def _rows(boxes: np.ndarray) -> np.ndarray:
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) -> (N,) areas in square pixels; a box turned inside out has area 0."""
    return _areas(_rows(boxes))


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod(np.clip(boxes[..., 2:] - boxes[..., :2], 0, None), axis=-1)


def _overlap_and_union(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Square pixels of boxes (..., 4) that are broadcast against each other."""
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]),
                    0, None)
    overlap = sides[..., 0] * sides[..., 1]
    return overlap, _areas(a) + _areas(b) - overlap


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _divide(*_overlap_and_union(a, b))


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of each box of a (N, 4) with each of b (M, 4) -> (N, M)."""
    return _iou(_rows(a)[:, None], _rows(b)[None])


def paired_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of row i of a with row i of b, both (N, 4) -> (N,)."""
    return _iou(_rows(a), _rows(b))


def paired_giou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Generalised IoU (arXiv:1902.09630) in (-1, 1] of row i of a with row i of b, both (N, 4)
    -> (N,): IoU minus the share of the smallest enclosing box that neither box covers."""
    a, b = _rows(a), _rows(b)
    overlap, union = _overlap_and_union(a, b)
    sides = np.maximum(a[:, 2:], b[:, 2:]) - np.minimum(a[:, :2], b[:, :2])
    hull = sides[:, 0] * sides[:, 1]
    return _divide(overlap, union) - _divide(hull - union, hull)


def nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Greedy suppression: indices of the kept rows, best score first.

    A box goes when its IoU with a kept, better one is above ``iou_threshold``; of equal scores
    the earlier row is the better one. Shapes: boxes (N, 4), scores (N,) -> (K,) int64.
    """
    boxes = _rows(boxes)
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind='stable')
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        order = rest[iou_matrix(boxes[best], boxes[rest])[0] <= iou_threshold]
    return np.array(kept, dtype=np.int64)


def batched_nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray,
                iou_threshold: float) -> np.ndarray:
    """``nms`` of boxes (N, 4) xyxy with scores (N,) within each label (N,).

    Returns:
        (K,) int64 kept indices of all labels, best score first.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    boxes = _rows(boxes)
    kept = [np.zeros(0, np.int64)]
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        kept.append(rows[nms(boxes[rows], scores[rows], iou_threshold)])
    kept = np.sort(np.concatenate(kept))
    return kept[np.argsort(-scores[kept], kind='stable')]


def _centres_and_sides(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    boxes = _rows(boxes)
    return (boxes[:, :2] + boxes[:, 2:]) / 2, np.maximum(boxes[:, 2:] - boxes[:, :2], MIN_SIDE)


def encode_deltas(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """What moves source (N, 4) onto target (N, 4): (N, 4) float32 dx dy dw dh.

    R-CNN form (arXiv:1311.2524): centre shift over the source's side, log of the ratio of sides.
    No means and deviations: a network that wants normalised targets scales them itself.
    """
    source_centres, source_sides = _centres_and_sides(source)
    target_centres, target_sides = _centres_and_sides(target)
    return np.concatenate([(target_centres - source_centres) / source_sides,
                           np.log(target_sides / source_sides)], axis=1).astype(np.float32)


def decode_deltas(source: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """Inverse of ``encode_deltas``: source (N, 4), deltas (N, 4) -> boxes (N, 4) float32.

    dw and dh are held within ``MAX_LOG_SCALE``.
    """
    centres, sides = _centres_and_sides(source)
    deltas = _rows(deltas)
    centres = centres + deltas[:, :2] * sides
    half = sides * np.exp(np.clip(deltas[:, 2:], -MAX_LOG_SCALE, MAX_LOG_SCALE)) / 2
    return np.concatenate([centres - half, centres + half], axis=1).astype(np.float32)


def clip_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes (N, 4) cut to a picture of height x width px, float32; outside ones lose all area."""
    limits = np.array([width, height, width, height], dtype=np.float64)
    return np.clip(_rows(boxes), 0, limits).astype(np.float32)
