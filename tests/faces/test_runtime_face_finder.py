"""One cell of each grid by hand; a weaker double is suppressed."""

import numpy as np
import pytest

from vision.faces.runtime.face_finder import STRIDES, decode_faces


def empty(width, height):
    sizes = dict(cls=1, obj=1, bbox=4, kps=10)
    return {f'{name}_{stride}': np.zeros((1, (width // stride) * (height // stride), size))
            for stride in STRIDES for name, size in sizes.items()}


@pytest.mark.parametrize('stride', STRIDES)
def test_a_cell_by_hand(stride):
    outputs = empty(64, 96)
    cell = (64 // stride) * 1 + 1  # row 1, column 1
    outputs[f'cls_{stride}'][0, cell] = 0.81
    outputs[f'obj_{stride}'][0, cell] = 1.0
    outputs[f'bbox_{stride}'][0, cell] = [0.5, 0.25, np.log(2), np.log(4)]
    outputs[f'kps_{stride}'][0, cell] = np.arange(10) / 10
    boxes, points, scores = decode_faces(outputs, 64, min_score=0.5)
    assert scores == pytest.approx([0.9])
    assert boxes[0] / stride == pytest.approx([0.5, -0.75, 2.5, 3.25])
    assert points[0, 0] / stride == pytest.approx([1.0, 1.1])
    assert points[0, 4] / stride == pytest.approx([1.8, 1.9])


def test_doubles_are_suppressed_and_weak_ones_left_out():
    outputs = empty(64, 64)
    for cell, score in ((0, 0.9), (1, 0.95), (63, 0.3)):
        outputs['cls_8'][0, cell] = outputs['obj_8'][0, cell] = score
        outputs['bbox_8'][0, cell] = [0, 0, np.log(5), np.log(5)]
    boxes, _, scores = decode_faces(outputs, 64, min_score=0.5)
    assert scores == pytest.approx([0.95]) and boxes.shape == (1, 4)
    assert decode_faces(empty(64, 64), 64, min_score=0.5)[0].shape == (0, 4)
