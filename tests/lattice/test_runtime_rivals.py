"""Rivals of the lattice: the Kalman filter beside its usual form, boxes on a moving texture."""

import numpy as np
import pytest

from vision.common.core.boxes import paired_iou
from vision.common.core.errors import VisionError
from vision.lattice.core.byte_track import LOST_FRAMES, BoxFilter, ByteTracker, as_measured
from vision.lattice.core.structures import FrameBoxes
from vision.lattice.runtime.rivals import RIVALS, build_rival

SIDE, SHAPE = 48, (160, 240)


def usual_filter(boxes, gaps):
    """One box with 8 x 8 matrices, as in the published code: means after each detection."""
    mean = np.r_[as_measured(boxes[:1])[0], np.zeros(4)]
    h = mean[3]
    covariance = np.diag(np.square([h / 10, h / 10, 1e-2, h / 10, h / 16, h / 16, 1e-5, h / 16]))
    move, see, means = np.eye(8) + np.eye(8, k=4), np.eye(4, 8), [mean]
    for box, gap in zip(boxes[1:], gaps, strict=True):
        for _ in range(gap):
            h = mean[3]
            noise = [h / 20, h / 20, 1e-2, h / 20, h / 160, h / 160, 1e-5, h / 160]
            mean = move @ mean
            covariance = move @ covariance @ move.T + np.diag(np.square(noise))
        h = mean[3]
        spread = see @ covariance @ see.T + np.diag(np.square([h / 20, h / 20, 1e-1, h / 20]))
        gain = covariance @ see.T @ np.linalg.inv(spread)
        mean = mean + gain @ (as_measured(box[None])[0] - see @ mean)
        covariance = covariance - gain @ spread @ gain.T
        means.append(mean)
    return means


def test_four_small_filters_are_the_one_with_large_matrices():
    rng, gaps = np.random.default_rng(0), [1, 4, 2, 8]
    corners = np.cumsum(rng.uniform(0, 9, (5, 2)), axis=0)
    boxes = np.c_[corners, corners + rng.uniform(30, 50, (5, 2))]
    filters, expected = BoxFilter(boxes[:1]), usual_filter(boxes, gaps)
    for box, gap, mean in zip(boxes[1:], gaps, expected[1:], strict=True):
        for _ in range(gap):
            filters.predict()
        filters.update(np.array([0]), box[None])
        np.testing.assert_allclose(filters.mean[0].T.ravel(), mean, rtol=1e-9)


def seen(*corners, score=0.9, label=0):
    boxes = [(x, y, x + SIDE, y + SIDE) for x, y in corners]
    return FrameBoxes(np.reshape(boxes, (-1, 4)), np.full(len(boxes), score),
                      np.full(len(boxes), label))


def test_ids_follow_two_objects_that_cross_and_weak_boxes_go_on():
    tracker = ByteTracker()
    assert tracker.update(seen((0, 0), (150, 0))).track_ids.tolist() == [1, 2]
    for t in range(1, 6):
        for _ in range(2):
            tracker.predict()
        x = 12 * t
        found = tracker.update(seen((150 - x, 0), (x, 0), score=0.9 if t != 3 else 0.15))
        assert found.track_ids.tolist() == [2, 1], t
    for _ in range(4):
        tracker.predict()
    centres = tracker.boxes().boxes_xyxy[:, 0]
    np.testing.assert_allclose(centres, (60 + 24, 90 - 24), atol=4)


def test_a_lost_track_is_not_shown_and_comes_back_or_is_forgotten():
    tracker = ByteTracker()
    tracker.update(seen((0, 0)))
    tracker.predict()
    assert tracker.update(seen()).track_ids.tolist() == [] and len(tracker.boxes()) == 0
    tracker.predict()
    assert tracker.update(seen((0, 0))).track_ids.tolist() == [1]
    tracker.update(seen())
    for _ in range(LOST_FRAMES + 1):
        tracker.predict()
    tracker.update(seen())
    assert tracker.update(seen((0, 0))).track_ids.tolist() == [2]


def test_a_track_has_one_class():
    tracker = ByteTracker()
    tracker.update(seen((0, 0)))
    assert tracker.update(seen((0, 0), label=1)).track_ids.tolist() == [2]


@pytest.fixture(scope='module')
def clip():
    """17 frames of a texture that turns back at frame 4 (of 8), and its true boxes."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 80, (*SHAPE, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    ground = np.ascontiguousarray(ground[:SHAPE[0], :SHAPE[1]])
    texture = rng.integers(100, 255, (SIDE // 4, SIDE // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    images, boxes = [], []
    for t in range(17):
        x, y = 60 + 3 * abs(t % 8 - 4), 50 + 2 * t
        image = ground.copy()
        image[y:y + SIDE, x:x + SIDE] = texture
        images.append(image)
        boxes.append((x, y, x + SIDE, y + SIDE))
    return images, np.array(boxes)


class Table:
    def __init__(self, images, boxes):
        self.boxes = {id(image): box for image, box in zip(images, boxes, strict=True)}
        self.num_calls = 0

    def detect(self, image):
        self.num_calls += 1
        return FrameBoxes([self.boxes[id(image)]], [0.9], [0])


@pytest.mark.parametrize('name', RIVALS)
def test_every_rival_fills_every_frame(name, clip):
    images, truth = clip
    detector = Table(images, truth)
    engine = build_rival(name, detector, 8)
    results = [result for t, image in enumerate(images) for result in engine.push(image, t)]
    results += engine.flush()
    assert [result.frame_id for result in results] == list(range(17))
    assert engine.stats.num_keyframes == detector.num_calls == 3
    assert {tuple(result.boxes.track_ids.tolist()) for result in results} == {(1,)}
    boxes = np.concatenate([result.boxes.boxes_xyxy for result in results])
    assert np.array_equal(boxes[::8], truth[::8])
    if name in ('lk', 'dis'):
        # Between the keyframes the object leaves the straight line by 12 px; flow follows it.
        assert paired_iou(boxes, truth)[4] > 0.9 and paired_iou(boxes, truth).mean() > 0.85
    if name == 'bytetrack-offline':
        line = truth[0] + np.arange(9)[:, None] / 8 * (truth[8] - truth[0])
        np.testing.assert_allclose(boxes[:9], line, atol=1e-3)


@pytest.mark.parametrize('name', RIVALS)
def test_frames_without_objects_and_a_video_that_ends_early(name, clip):
    class Nothing:
        def detect(self, image):
            return FrameBoxes.empty()
    engine = build_rival(name, Nothing(), 4)
    results = [result for t, image in enumerate(clip[0][:7]) for result in engine.push(image, t)]
    results += engine.flush()
    assert len(results) == 7 and not any(len(result.boxes) for result in results)


def test_an_object_that_one_keyframe_knows_is_carried_and_worth_less(clip):
    images, truth = clip
    engine = build_rival('dis', Once(images, truth), 4)
    results = [result for t, image in enumerate(images[:5]) for result in engine.push(image, t)]
    assert [len(result.boxes) for result in results] == [1, 1, 1, 1, 0]
    assert paired_iou(results[3].boxes.boxes_xyxy, truth[3:4])[0] > 0.8
    scores = [float(result.boxes.scores[0]) for result in results[:4]]
    np.testing.assert_allclose(scores, [0.9, 0.54, 0.36, 0.18], atol=1e-6)


class Once(Table):
    def detect(self, image):
        found = super().detect(image)
        return found if self.num_calls == 1 else FrameBoxes.empty()


def test_dense_flow_has_no_measure_of_easiness(clip):
    from vision.lattice.core.engine import LatticeEngine
    from vision.lattice.core.keyframes import AdaptiveKeyframes
    from vision.lattice.runtime.rivals import DenseFlowFiller
    engine = LatticeEngine(Table(*clip), DenseFlowFiller(), AdaptiveKeyframes(4, 0.5))
    with pytest.raises(VisionError, match='VIS-CONFIG-110'):
        for t, image in enumerate(clip[0]):
            engine.push(image, t)
