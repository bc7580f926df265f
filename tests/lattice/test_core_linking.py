"""Assignment against trying all of them, and ids from keyframe to keyframe."""

from itertools import permutations

import numpy as np
import pytest

from vision.common.core.boxes import paired_giou
from vision.lattice.core.linker import NO_ROW, TrackLinker
from vision.lattice.core.matching import CONFIDENT_SCORE, match_at_middle, match_boxes
from vision.lattice.core.merge import Side
from vision.lattice.core.structures import FrameBoxes

NO_PAIRS = np.zeros((0, 2), np.int64)


def square(*places, scores=None, labels=None, side=20):
    boxes = [[x, y, x + side, y + side] for x, y in places]
    return FrameBoxes(boxes, np.full(len(boxes), 0.9) if scores is None else scores,
                      np.zeros(len(boxes)) if labels is None else labels)


def random_detections(rng, count):
    return square(*rng.uniform(0, 120, (count, 2)), scores=np.full(count, 0.9),
                  labels=rng.integers(0, 2, count))


def matching_cost(left_xyxy, right_xyxy):
    """Cost and distance (N, M) of all pairs."""
    centre_l, centre_r = ((boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in (left_xyxy, right_xyxy))
    size_l, size_r = (np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
                      for boxes in (left_xyxy, right_xyxy))
    distance = (np.linalg.norm(centre_l[:, None] - centre_r, axis=2)
                / ((size_l[:, None] + size_r) / 2))
    giou = [paired_giou(np.broadcast_to(box, right_xyxy.shape), right_xyxy) for box in left_xyxy]
    return 1 - np.array(giou) + distance, distance


def total_of_best(cost, is_allowed, alone):
    """Least total cost over every assignment; ``alone`` for each row of the shorter side left."""
    if cost.shape[0] > cost.shape[1]:
        cost, is_allowed = cost.T, is_allowed.T
    return min(sum(cost[i, j] if is_allowed[i, j] else alone for i, j in enumerate(order))
               for order in permutations(range(cost.shape[1]), cost.shape[0]))


@pytest.mark.parametrize('seed', range(25))
def test_no_other_assignment_is_cheaper(seed):
    rng = np.random.default_rng(seed)
    left, right = (random_detections(rng, rng.integers(1, 6)) for _ in range(2))
    cost, distance = matching_cost(left.boxes_xyxy, right.boxes_xyxy)
    is_allowed = (left.labels[:, None] == right.labels) & (distance <= 3)
    pairs = match_boxes(left, right)
    assert is_allowed[pairs[:, 0], pairs[:, 1]].all()
    assert all(len(set(column.tolist())) == len(pairs) for column in pairs.T)
    alone = min(len(left), len(right)) - len(pairs)
    total = cost[pairs[:, 0], pairs[:, 1]].sum() + 5 * alone
    assert total == pytest.approx(total_of_best(cost, is_allowed, 5.0))


def test_matching_is_symmetric():
    rng = np.random.default_rng(3)
    left, right = random_detections(rng, 12), random_detections(rng, 9)
    there = {tuple(pair) for pair in match_boxes(left, right).tolist()}
    back = {tuple(pair[::-1]) for pair in match_boxes(right, left).tolist()}
    assert there == back and there


def test_one_perfect_pair_is_not_broken_for_two_bad_ones():
    left, right = square((100, 0), (45, 0)), square((100, 0), (155, 0))
    assert match_boxes(left, right).tolist() == [[0, 0]]


def test_strong_boxes_are_matched_before_clutter_beside_them():
    left = square((0, 0), scores=[0.9])
    right = square((2, 0), (40, 0), scores=[0.05, 0.9])
    assert match_boxes(left, right).tolist() == [[0, 1]]
    assert match_boxes(left, right.select([0])).tolist() == [[0, 0]]  # better than nothing


def at_middle(boxes, x=None, known=True):
    moved = boxes.boxes_xyxy.astype(float)
    if x is not None:
        moved = moved + (np.array([x, 0, x, 0]) - [moved[0, 0], 0, moved[0, 0], 0])
    return Side(moved, np.ones(len(boxes)), np.full(len(boxes), known))


def test_objects_that_cross_are_told_apart_by_where_they_meet():
    """Left 0 runs right, left 1 runs left; each ends where the other began."""
    left, right = square((0, 0), (50, 0)), square((0, 0), (50, 0))
    assert match_boxes(left, right).tolist() == [[0, 0], [1, 1]]
    ahead = Side(np.array([[22.0, 0, 42, 20], [-28, 0, -8, 20]]), np.ones(2), np.ones(2, bool))
    back = Side(np.array([[-28.0, 0, -8, 20], [22, 0, 42, 20]]), np.ones(2), np.ones(2, bool))
    assert match_at_middle(left, right, ahead, back).tolist() == [[0, 1], [1, 0]]


def test_a_propagation_that_missed_costs_no_pair():
    left, right = square((0, 0)), square((30, 0))
    assert match_at_middle(left, right, at_middle(left, 200), at_middle(right, 15)).tolist() \
        == [[0, 0]]
    unknown = at_middle(left, known=False)
    assert match_at_middle(left, right, unknown, at_middle(right)).tolist() == [[0, 0]]


@pytest.mark.parametrize('shift, scores, is_pair', [
    (0, (0.9, 0.9), True), (5, (0.9, 0.3), True), (9, (0.9, 0.9), False),  # IoU 1, 0.6, 0.38
    (0, (0.9, 0.2), False), (0, (0.2, 0.9), False)])
def test_sure_boxes_of_two_classes_that_meet_are_one_object(shift, scores, is_pair):
    left, right = square((0, 0), scores=scores[:1]), square((90, 0), scores=scores[1:], labels=[1])
    pairs = match_at_middle(left, right, at_middle(left, 40), at_middle(right, 40 + shift))
    assert pairs.tolist() == ([[0, 0]] if is_pair else [])


def test_a_class_is_given_up_only_where_no_box_of_it_is_left():
    """Left 0 meets right 0 of its class nearly, and right 1 of another class exactly."""
    left, right = square((0, 0)), square((6, 0), (0, 0), labels=[0, 1])
    assert match_at_middle(left, right, at_middle(left), at_middle(right)).tolist() == [[0, 0]]


def test_two_flips_are_paired_where_they_overlap_most():
    left, right = square((0, 0), (6, 0)), square((7, 0), (1, 0), labels=[1, 1])
    assert match_at_middle(left, right, at_middle(left), at_middle(right)).tolist() == \
        [[0, 1], [1, 0]]


@pytest.mark.parametrize('gate, is_pair', [(1.4, False), (1.6, True)])
def test_the_second_round_has_a_gate_of_its_own(gate, is_pair):
    left, right = square((0, 0)), square((30, 0))  # 1.5 sizes apart, and the way is not known
    pairs = match_at_middle(left, right, at_middle(left, known=False),
                            at_middle(right, known=False), max_rest_distance=gate)
    assert pairs.tolist() == ([[0, 0]] if is_pair else [])


def test_a_pair_of_two_classes_has_the_label_of_the_surer_keyframe():
    for scores, label in (((0.9, 0.5), 0), ((0.5, 0.9), 1), ((0.5, 0.5), 0)):
        linker = TrackLinker()
        left = linker.start(square((0, 0), scores=scores[:1]))
        rows, right = linker.link(left, square((0, 0), scores=scores[1:], labels=[1]),
                                  np.array([[0, 0]]))
        assert rows.labels.tolist() == [label] and right.labels.tolist() == [1]
        assert right.track_ids.tolist() == rows.track_ids.tolist() == [1]


def test_rows_are_left_boxes_then_newborn_right_ones():
    linker = TrackLinker()
    left = linker.start(square((0, 0), (50, 0)))
    rows, right = linker.link(left, square((90, 0), (52, 0)), np.array([[1, 1]]))
    assert rows.left_index.tolist() == [0, 1, NO_ROW]
    assert rows.right_index.tolist() == [NO_ROW, 1, 0]
    assert rows.is_paired.tolist() == [False, True, False]
    assert rows.track_ids.tolist() == [1, 2, 3] and right.track_ids.tolist() == [3, 2]


@pytest.mark.parametrize('score, place, label, is_bridged', [
    (0.9, (12, 0), 0, True), (0.9, (200, 0), 0, False), (0.9, (12, 0), 1, False),
    (CONFIDENT_SCORE - 0.1, (12, 0), 0, False)])
def test_an_object_missed_by_one_keyframe_gets_its_id_back(score, place, label, is_bridged):
    linker, nothing = TrackLinker(), FrameBoxes.empty()
    left = linker.start(square((0, 0), scores=[score]))
    _, missed = linker.link(left, nothing, NO_PAIRS)
    rows, right = linker.link(missed, square(place, labels=[label]), NO_PAIRS)
    assert right.track_ids.tolist() == rows.track_ids.tolist() == [1 if is_bridged else 2]


def test_two_missed_keyframes_and_a_cut_end_a_track():
    linker, nothing = TrackLinker(), FrameBoxes.empty()
    linker.link(linker.start(square((0, 0))), nothing, NO_PAIRS)
    linker.link(nothing, nothing, NO_PAIRS)
    _, late = linker.link(nothing, square((0, 0)), NO_PAIRS)
    assert late.track_ids.tolist() == [2]
    linker.link(late, nothing, NO_PAIRS)
    assert linker.start(square((0, 0))).track_ids.tolist() == [3]  # across a cut
    linker.reset()
    assert linker.start(square((0, 0))).track_ids.tolist() == [1]  # another video
