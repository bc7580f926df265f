"""Boxes judged by hand: matching, crowds, the confusion matrix."""

import numpy as np

from vision.common.core.confusion import NOTHING, class_matrix, class_rows
from vision.lattice.core.confusion import confusion_matrix, judge_frame
from vision.lattice.core.structures import FrameBoxes
from vision.lattice.core.vid_match import TruthFrame


def truth(boxes, labels, crowd=None) -> TruthFrame:
    number = len(labels)
    return TruthFrame(0, 0, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, int),
                      np.arange(1, number + 1),
                      is_crowd=None if crowd is None else np.array(crowd))


def test_a_frame_counted_by_hand():
    # Cats at 0 and 100, a dog at 200, all 10 px wide.
    true = truth([[0, 0, 10, 10], [100, 0, 110, 10], [200, 0, 210, 10]], [0, 0, 1])
    found = FrameBoxes([[0, 0, 10, 9],        # right
                        [0, 1, 10, 10],       # the same cat a second time: extra
                        [100, 0, 110, 10],    # a cat found as a dog: confused
                        [204, 0, 214, 10],    # IoU 6 / 14: the dog is missed, this is extra
                        [200, 0, 210, 10]],   # would find it, but has too low a score
                       [0.9, 0.8, 0.7, 0.6, 0.2], [0, 0, 1, 1, 1])
    judged = judge_frame(true, found)
    assert judged.pairs.tolist() == [[0, 0], [1, 2]]
    assert judged.missed.tolist() == [2] and judged.extra.tolist() == [1, 3]
    assert (judged.num_right, judged.num_confused) == (1, 1)
    assert judged.f1 == 2 * 1 / (3 + 4)
    matrix = confusion_matrix([true], [found], [judged], 2)
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 0]]


def test_the_better_box_chooses_first_and_the_overlap_decides():
    true = truth([[0, 0, 10, 10], [2, 0, 12, 10]], [0, 0])
    found = FrameBoxes([[0, 0, 10, 10], [1, 0, 11, 10]], [0.5, 0.9], [0, 0])
    # The best one lies between both and takes the first; the other must take what is left.
    judged = judge_frame(true, found)
    assert judged.pairs.tolist() == [[0, 1], [1, 0]] and not len(judged.missed)


def test_what_lies_in_a_crowd_is_no_error():
    true = truth([[0, 0, 100, 100], [200, 0, 210, 10]], [0, 0], [True, False])
    found = FrameBoxes([[10, 10, 20, 20], [95, 0, 125, 10], [200, 0, 210, 10]],
                       [0.9, 0.8, 0.7], [0, 0, 0])
    judged = judge_frame(true, found)
    assert judged.extra.tolist() == [1]  # a sixth of it is inside
    assert not len(judged.missed) and judged.num_right == 1


def test_frames_without_boxes():
    assert judge_frame(truth([], []), FrameBoxes.empty()).f1 == 1
    assert judge_frame(truth([[0, 0, 9, 9]], [0]), FrameBoxes.empty()).f1 == 0
    only = judge_frame(truth([], []), FrameBoxes([[0, 0, 9, 9]], [0.9], [0]))
    assert only.f1 == 0 and only.extra.tolist() == [0]


def test_rows_of_classes():
    matrix = np.array([[6, 1, 3], [0, 0, 0], [2, 0, 0]])  # the last: nothing
    cat, dog = class_rows(matrix, ('cat', 'dog'))
    assert (cat['num_true'], cat['num_found'], cat['num_right']) == (10, 8, 6)
    assert (cat['precision'], cat['recall']) == (0.75, 0.6)
    assert (cat['taken_for'], cat['num_taken']) == (NOTHING, 3)
    assert dog['recall'] is None and dog['precision'] == 0 and dog['taken_for'] is None


def test_labels_of_images():
    matrix = class_matrix(np.array([0, 0, 2, 1]), np.array([0, 1, 2, 1]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
