"""A video becomes a training sample of the propagation and refinement networks."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform

from vision.common.core.boxes import clip_boxes, iou_matrix
from vision.common.nn.images import read_image
from vision.common.runtime.drawing import GREEN, GREY, ORANGE, draw_boxes
from vision.lattice.mm.grey import grey_frame, small_history
from vision.registry import TRANSFORMS

MIN_IOU = 0.5  # a box of the detector counts from here on, and so does a jittered one


def jitter_boxes(boxes: np.ndarray, rng: np.random.Generator, *, strength: float) -> np.ndarray:
    """Boxes (K, 4) with each edge moved by a normal share of the side, at most ``MIN_IOU`` off.

    Rows that fall below ``MIN_IOU`` with their own box stay as they were.
    """
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    # Log-uniform: many boxes are nearly right, and F_S must learn to leave those alone.
    scale = strength * np.exp(rng.uniform(np.log(0.05), 0, (len(boxes), 1)))
    shift = np.tile(rng.normal(0, 1, (len(boxes), 2)), 2) + rng.normal(0, 0.7, boxes.shape)
    moved = (boxes + shift * scale * sides).astype(np.float32)
    fits = np.diagonal(iou_matrix(moved, boxes)) > MIN_IOU
    return np.where(fits[:, None], moved, boxes).astype(np.float32)


@TRANSFORMS.register_module()
class LatticeTrainingSample(BaseTransform):
    """Both ends a and b of one random span, each with its movement to the middle m = a + gap.

    Boxes are true boxes, jittered to the quality of a detector's (IoU 0.5 to 1). Photometric
    changes act on every frame alike, except for a little exposure change between frames.

    Args:
        max_gap: the gap is drawn from 1 .. max_gap frames, half of the longest keyframe interval.
        num_boxes: per direction; objects are repeated with other jitter until there are as many.
        jitter: deviation of an edge over the side, at most.
        photometric: random gamma, contrast, noise, blur and colour order.

    Returns:
        dict(inputs=dict(frames=(2, 2, h, w), history=(2, h / 2, w / 2), image=(3, H, W) uint8,
        boxes, source, target=(2, K, 4), is_visible, labels=(2, K), extra, extra_target=(K, 4),
        extra_labels=(K,), background=(M, 4))); first axis of size 2: from a, from b. None when
        the span drawn has no object at both ends; the data set then draws another video.
    """

    def __init__(self, max_gap: int = 12, *, num_boxes: int = 8, jitter: float = 0.12,
                 photometric: bool = True) -> None:
        if max_gap < 1 or num_boxes < 1:
            raise ValueError(f'max_gap={max_gap} and num_boxes={num_boxes} must be at least 1')
        self.max_gap, self.num_boxes, self.jitter = max_gap, num_boxes, jitter
        self.photometric = photometric

    def transform(self, results: dict) -> dict | None:
        """A whole video -> one sample of a random span, or None; shapes in the class."""
        # MMEngine seeds numpy's global state per worker; the generator follows it.
        rng = np.random.default_rng(np.random.randint(2**31))
        images = results['images']
        gap = int(rng.integers(1, min(self.max_gap, max(1, (len(images) - 1) // 2)) + 1))
        if len(images) < 2 * gap + 1:
            return None
        left = int(rng.integers(0, len(images) - 2 * gap))
        part = images[left:left + 2 * gap + 1]
        if rng.random() < 0.5:
            part = part[::-1]
        ends = [self._boxes(part[0], part[gap], rng), self._boxes(part[-1], part[gap], rng)]
        if None in ends:
            return None
        frames, image = self._pixels([info['img_path'] for info in part], gap, rng)
        is_single = ~part[gap]['is_crowd']
        middle, labels = part[gap]['bboxes'][is_single], part[gap]['labels'][is_single]
        inputs = dict(
            frames=np.stack([frames[[0, gap]], frames[[-1, gap]]]),
            history=np.stack([small_history(frames[:gap + 1]),
                              small_history(frames[:gap - 1:-1])]),
            image=np.ascontiguousarray(image.transpose(2, 0, 1)),
            **self._spatial(middle, labels, image.shape[:2], rng))
        for index, name in enumerate(('boxes', 'source', 'target', 'is_visible', 'labels')):
            inputs[name] = np.stack([end[index] for end in ends])
        return dict(inputs={name: torch.from_numpy(value) for name, value in inputs.items()})

    @staticmethod
    def pictures(sample: dict) -> list[tuple[str, np.ndarray]]:
        """(title, (H, W, 3) uint8 BGR) to look at: both ends with the jittered boxes (orange) and
        the true ones (green), and the middle frame with where these went (green) and the boxes on
        nothing (grey)."""
        inputs = {name: value.numpy() for name, value in sample['inputs'].items()}
        image = np.ascontiguousarray(inputs['image'].transpose(1, 2, 0))
        height, width = image.shape[:2]
        shown = []
        for end, title in ((0, 'one end'), (1, 'other end')):
            grey = cv2.resize(inputs['frames'][end, 0], (width, height))
            frame = np.repeat((255 * grey[:, :, None]).astype(np.uint8), 3, 2)
            boxes = np.concatenate([inputs['boxes'][end], inputs['source'][end]])
            shown.append((title, draw_boxes(frame, boxes, [''] * len(boxes), [ORANGE] * len(
                inputs['boxes'][end]) + [GREEN] * len(inputs['source'][end]), width=1)))
        is_there = inputs['is_visible'].astype(bool)
        boxes = np.concatenate([inputs['background'], inputs['target'][is_there]])
        colours = [GREY] * len(inputs['background']) + [GREEN] * int(is_there.sum())
        return [*shown, ('middle', draw_boxes(image, boxes, [''] * len(boxes), colours, width=1))]

    def _boxes(self, start: dict, middle: dict, rng) -> tuple[np.ndarray, ...] | None:
        """(boxes, source, target, is_visible, labels) of K boxes, or None without an object."""
        source = start['bboxes'][~start['is_crowd']]
        if not len(source):
            return None
        rows = np.resize(rng.permutation(len(source)), self.num_boxes)
        place = {number: row for row, number in enumerate(middle['instances_ids'])}
        found = np.array([place.get(number, -1) for number in
                          start['instances_ids'][~start['is_crowd']]])[rows]
        source, labels = source[rows], start['labels'][~start['is_crowd']][rows]
        target = source.copy()
        target[found >= 0] = middle['bboxes'][found[found >= 0]]
        boxes = jitter_boxes(source, rng, strength=self.jitter)
        return boxes, source, target, found >= 0, labels

    def _spatial(self, middle: np.ndarray, labels: np.ndarray, size: tuple[int, int],
                 rng) -> dict[str, np.ndarray]:
        """Jittered boxes of the middle frame for F_S, and boxes on nothing."""
        num_boxes = self.num_boxes if len(middle) else 0
        middle, labels = np.resize(middle, (num_boxes, 4)), np.resize(labels, num_boxes)
        extra = jitter_boxes(middle, rng, strength=2 * self.jitter)
        centre = rng.uniform(0, size[::-1], (self.num_boxes, 2))
        half = np.exp(rng.uniform(np.log(8), np.log(max(size) / 6), (self.num_boxes, 2)))
        free = clip_boxes(np.concatenate([centre - half, centre + half], 1), *size)
        if len(middle):
            free = free[iou_matrix(free, middle).max(1) < 0.2]
        return dict(extra=extra, extra_target=middle.astype(np.float32),
                    extra_labels=labels.astype(np.int64),
                    background=free.astype(np.float32)[:self.num_boxes // 2])

    def _pixels(self, paths: list[str], gap: int, rng) -> tuple[np.ndarray, np.ndarray]:
        """Grey frames (n, h, w) of the span and the colour frame in the middle."""
        images = [read_image(path, do="get this file again; on_bad_image='skip' of the data set "
                             'leaves out and counts a few of them') for path in paths]
        greys = np.stack([grey_frame(image) for image in images])
        image = images[gap]
        if not self.photometric:
            return greys, image
        gamma, gain = np.exp(rng.normal(0, 0.3)), np.exp(rng.normal(0, 0.2))
        drift = 1 + rng.normal(0, 0.03, (len(greys), 1, 1)).astype(np.float32)
        noise = rng.uniform(0, 0.03)
        greys = np.clip(greys, 0, 1)**gamma * gain * drift
        greys = greys + noise * rng.standard_normal(greys.shape, np.float32)
        if rng.random() < 0.3:
            sigma = rng.uniform(0.4, 1.5)
            greys = np.stack([cv2.GaussianBlur(grey, (0, 0), sigma) for grey in greys])
            image = cv2.GaussianBlur(image, (0, 0), sigma)
        table = np.clip(255 * gain * (np.arange(256) / 255)**gamma, 0, 255).astype(np.uint8)
        image = table[image][:, :, rng.permutation(3)]
        if rng.random() < 0.1:  # colour must not be all that F_S goes by
            image = np.repeat(image.mean(2, keepdims=True), 3, axis=2).astype(np.uint8)
        return np.clip(greys, 0, 1).astype(np.float32), image
