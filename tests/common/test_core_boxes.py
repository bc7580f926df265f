"""Box arithmetic: cases by hand, laws over random boxes, a slow judge for suppression."""

import numpy as np
import pytest

from vision.common.core.boxes import (
    MAX_LOG_SCALE,
    batched_nms,
    box_areas,
    clip_boxes,
    decode_deltas,
    encode_deltas,
    iou_matrix,
    nms,
    paired_giou,
    paired_iou,
)


def random_boxes(seed, count=60, extent=100.0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, extent, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(1, extent / 2, (count, 2))], axis=1)


def giou_matrix(a, b):
    a, b = np.asarray(a, float), np.asarray(b, float)
    return paired_giou(np.repeat(a, len(b), axis=0), np.tile(b, (len(a), 1))).reshape(
        len(a), len(b))


@pytest.mark.parametrize('a, b, iou, giou', [
    ([0, 0, 10, 10], [0, 0, 10, 10], 1, 1),
    ([0, 0, 10, 10], [5, 0, 15, 10], 1 / 3, 1 / 3),  # the hull is the union
    ([0, 0, 10, 10], [5, 5, 15, 15], 25 / 175, 25 / 175 - 50 / 225),
    ([0, 0, 10, 10], [20, 0, 30, 10], 0, -1 / 3),  # a third of the hull is empty
    ([0, 0, 10, 10], [10, 0, 20, 10], 0, 0),  # they touch
    ([0, 0, 10, 10], [2, 2, 4, 4], 0.04, 0.04),
    ([0, 0, 10, 10], [5, 5, 5, 5], 0, 0),  # a point inside
    ([3, 3, 3, 3], [3, 3, 3, 3], 0, 0),  # without area nothing overlaps
])
def test_overlap_by_hand(a, b, iou, giou):
    assert iou_matrix([a], [b])[0, 0] == pytest.approx(iou)
    assert giou_matrix([a], [b])[0, 0] == pytest.approx(giou)


def test_overlap_is_symmetric_and_giou_is_below_iou():
    a, b = random_boxes(0), random_boxes(1, count=30)
    iou, giou = iou_matrix(a, b), giou_matrix(a, b)
    assert iou.shape == giou.shape == (60, 30)
    assert np.allclose(iou, iou_matrix(b, a).T) and np.allclose(giou, giou_matrix(b, a).T)
    assert (giou <= iou + 1e-12).all() and giou.min() > -1
    assert np.allclose(paired_iou(a[:30], b), np.diag(iou[:30]))
    assert np.allclose(iou_matrix(a * 7 + 3, b * 7 + 3), iou)  # units and origin do not matter


@pytest.mark.parametrize('function', [iou_matrix, giou_matrix])
def test_no_boxes_have_empty_matrices(function):
    assert function(np.zeros((0, 4)), random_boxes(0)).shape == (0, 60)
    assert function(random_boxes(0), np.zeros((0, 4))).shape == (60, 0)


def test_a_box_turned_inside_out_has_no_area():
    assert box_areas([[5, 5, 1, 9], [0, 0, 2, 3]]).tolist() == [0, 6]


def slow_nms(boxes, scores, threshold):
    """One pass from the best box down: kept unless a kept one overlaps too much."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(iou_matrix(boxes[i], boxes[j])[0, 0] <= threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize('threshold', [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize('seed', range(4))
def test_suppression_equals_the_slow_judge(seed, threshold):
    boxes = random_boxes(seed)
    scores = np.random.default_rng(seed).integers(0, 10, 60) / 10  # many are equal
    kept = nms(boxes, scores, threshold)
    assert kept.tolist() == slow_nms(boxes, scores, threshold)
    again = nms(boxes[kept], scores[kept], threshold)
    assert again.tolist() == list(range(len(kept)))  # a second pass removes nothing


def test_suppression_by_class_is_suppression_in_each_class():
    boxes, rng = random_boxes(5), np.random.default_rng(5)
    scores, labels = rng.random(60), rng.integers(0, 3, 60)
    kept = batched_nms(boxes, scores, labels, 0.4)
    assert (np.diff(scores[kept]) <= 0).all()
    for label in range(3):
        rows = np.flatnonzero(labels == label)
        expected = rows[slow_nms(boxes[rows], scores[rows], 0.4)]
        assert kept[labels[kept] == label].tolist() == expected.tolist()


def test_nothing_to_suppress():
    assert nms(np.zeros((0, 4)), np.zeros(0), 0.5).shape == (0,)
    assert batched_nms(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), 0.5).shape == (0,)


def test_deltas_by_hand():
    deltas = encode_deltas([[0, 0, 10, 20]], [[5, 10, 25, 30]])
    assert np.allclose(deltas, [[1.0, 0.5, np.log(2), 0.0]])


@pytest.mark.parametrize('seed', range(3))
def test_decoding_what_was_encoded_gives_the_target(seed):
    source, target = random_boxes(seed), random_boxes(seed + 10)
    decoded = decode_deltas(source, encode_deltas(source, target))
    assert decoded.dtype == np.float32 and np.allclose(decoded, target, atol=1e-3)
    assert np.allclose(decode_deltas(source, np.zeros((60, 4))), source, atol=1e-4)


def test_deltas_do_not_depend_on_origin_or_units():
    source, target = random_boxes(1), random_boxes(2)
    expected = encode_deltas(source, target)
    assert np.allclose(encode_deltas(source * 4 + 9, target * 4 + 9), expected, atol=1e-5)


def test_wild_deltas_and_flat_boxes_stay_finite():
    wild = decode_deltas([[0, 0, 16, 16]], [[0, 0, 1e6, -1e6]])
    assert np.isfinite(wild).all()
    assert wild[0, 2] - wild[0, 0] == pytest.approx(16 * np.exp(MAX_LOG_SCALE))
    assert np.isfinite(encode_deltas([[5, 5, 5, 5]], [[1, 1, 4, 4]])).all()


def test_clipping_keeps_the_inside():
    boxes = [[-5, -5, 5, 5], [10, 10, 20, 20], [90, 40, 130, 70], [200, 10, 210, 20]]
    clipped = clip_boxes(boxes, height=50, width=100)
    assert clipped.tolist() == [[0, 0, 5, 5], [10, 10, 20, 20], [90, 40, 100, 50],
                                [100, 10, 100, 20]]
    assert box_areas(clipped)[3] == 0
