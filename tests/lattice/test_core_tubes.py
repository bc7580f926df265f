import numpy as np
import pytest

from vision.lattice.core.matching import match_boxes
from vision.lattice.core.rescoring import rescore_tubes
from vision.lattice.core.scene_cut import SceneCutDetector
from vision.lattice.core.structures import FrameBoxes, FrameResult


def result(frame, rows):
    """rows: (track, label, score)"""
    tracks, labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    return FrameResult(frame, FrameBoxes(np.tile([0, 0, 9, 9], (len(rows), 1)), scores, labels,
                                         tracks), 'detected')


def test_a_tube_takes_its_strongest_class_and_mean_score():
    results = rescore_tubes([result(0, [(1, 0, 0.9), (2, 1, 0.5)]), result(1, [(1, 3, 0.3)]),
                             result(2, [(1, 0, 0.6), (-1, 2, 0.2)])])
    assert results[1].boxes.labels.tolist() == [0]
    assert results[1].boxes.scores[0] == pytest.approx((0.9 + 0.6) / 3)
    assert results[0].boxes.scores[1] == pytest.approx(0.5)
    assert results[2].boxes.labels.tolist() == [0, 2]  # the unlinked box keeps what it had
    assert results[2].boxes.scores[1] == pytest.approx(0.2)


def test_rescoring_nothing_gives_nothing():
    assert rescore_tubes([]) == []


def test_fast_objects_match_without_overlap_but_not_across_classes():
    left = FrameBoxes([[0, 0, 20, 20], [100, 0, 120, 20]], [0.9, 0.9], [0, 1])
    right = FrameBoxes([[130, 0, 150, 20], [30, 0, 50, 20]], [0.9, 0.9], [1, 0])
    assert match_boxes(left, right).tolist() == [[0, 1], [1, 0]]
    assert match_boxes(left, right.replace(labels=np.array([2, 2]))).tolist() == []
    far = right.replace(boxes_xyxy=right.boxes_xyxy + 200)
    assert match_boxes(left, far).tolist() == []


def test_cuts_are_found_and_motion_and_flicker_are_not():
    rng = np.random.default_rng(0)
    detector = SceneCutDetector()
    first = np.clip(rng.normal(0.3, 0.05, (60, 80)), 0, 1).astype(np.float32)
    other = np.where(rng.random((60, 80)) < 0.5, 0.2, 0.9).astype(np.float32)
    assert detector(first, other)
    assert not detector(first, np.roll(first, 9, axis=1))
    assert not detector(first, np.clip(first * 1.06, 0, 1))
    here, there = first.copy(), first.copy()
    here[20:40, 20:40] = there[24:44, 32:52] = 0.9  # something bright moves by half its size
    assert not detector(here, there)
