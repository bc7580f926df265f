"""Boxes carried by sparse flow through pictures whose movement is known, and on a real video."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.lattice.core.keyframes import AdaptiveKeyframes, UniformKeyframes
from vision.lattice.core.structures import FrameBoxes
from vision.lattice.runtime.flow import FlowFiller, FlowOptions, shrunk_grey
from vision.lattice.runtime.methods import METHODS, build_engine, build_filler, build_policy

GAP = 8


def texture(seed, height, width):
    """(h, w, 3) uint8 with structure of all sizes, as photographs have it."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    layers = [sigma * cv2.GaussianBlur(noise, (0, 0), sigma) for sigma in (12, 5, 2)]
    return np.clip(128 + 80 * sum(layers), 0, 255).astype(np.uint8)


class Scene:
    """Textured rectangles on their ways over a textured ground that the camera may pan over.

    A detector, too: it knows the true boxes of the frame that it is shown (looked up by the
    array itself), also where these end outside of the picture.

    Args:
        ways: for each rectangle a function of the frame's number -> x, y of its top left corner.
        sides: (w, h) of each rectangle.
        pan: function of the frame's number -> x, y of the camera, >= 0.
    """

    classes = ('thing',)

    def __init__(self, ways, *, sides=None, num_frames=25, height=240, width=320,
                 pan=lambda t: (0, 0)):
        self.boxes, self.images = [], []
        self.height, self.width = height, width
        sides = sides or [(48, 40)] * len(ways)
        ground = texture(1, height + 120, width + 120)
        patches = [texture(10 + i, h, w) for i, (w, h) in enumerate(sides)]
        for t in range(num_frames):
            pan_x, pan_y = (int(value) for value in pan(t))
            image = ground[pan_y:pan_y + height, pan_x:pan_x + width].copy()
            boxes = []
            for way, patch in zip(ways, patches, strict=True):
                x, y = (int(round(float(value))) for value in way(t))
                boxes.append([x, y, x + patch.shape[1], y + patch.shape[0]])
                self._paste(image, patch, x, y)
            self.images.append(image)
            self.boxes.append(np.array(boxes, float).reshape(-1, 4))

    def _paste(self, image, patch, x, y):
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + patch.shape[1], self.width), min(y + patch.shape[0], self.height)
        if x1 > x0 and y1 > y0:
            image[y0:y1, x0:x1] = patch[y0 - y:y1 - y, x0 - x:x1 - x]

    def detect(self, image):
        t = next(t for t, known in enumerate(self.images) if known is image)
        boxes = self.boxes[t]
        return FrameBoxes(boxes, np.full(len(boxes), 0.9), np.zeros(len(boxes)))

    def truth(self, t):
        return np.clip(self.boxes[t], 0, [self.width, self.height] * 2)


def run(scene, method='flow', *, keyframes=GAP, **options):
    engine = build_engine(scene, method=method, keyframes=keyframes, **options)
    results = [r for t, image in enumerate(scene.images) for r in engine.push(image, t)]
    return results + engine.flush()


def worst(scene, results):
    """Largest error of any side on any frame, px; every object must be there."""
    errors = []
    for result in results:
        truth = scene.truth(result.frame_id)
        assert len(result.boxes) == len(truth)
        errors.append(np.abs(result.boxes.boxes_xyxy - truth).max())
    assert len(errors) == len(scene.images)
    return max(errors)


def curve(t):
    return 20 + 6 * t, 90 + 25 * np.sin(t / 4)


def other_curve(t):
    return 250 - 5 * t, 180 - 20 * np.sin(t / 4)


@pytest.mark.parametrize(('height', 'width', 'limit'), [
    (240, 320, 1), (480, 640, 2), (300, 1000, 2)])  # the last two are followed on smaller frames
def test_a_square_on_a_curved_way_is_followed(height, width, limit):
    zoom = height / 240
    scene = Scene([lambda t: np.multiply(curve(t), zoom)], sides=[(round(48 * zoom),) * 2],
                  height=height, width=width)
    assert worst(scene, run(scene, 'linear')) > 10 * zoom
    flow = run(scene)
    assert worst(scene, flow) < limit
    assert {r.source for r in flow} == {'detected', 'propagated'}
    assert {i for r in flow for i in r.boxes.track_ids.tolist()} == {1}


def test_two_squares_keep_their_ids():
    scene = Scene([curve, other_curve])
    results = run(scene)
    assert worst(scene, results) < 1 and worst(scene, run(scene, 'linear')) > 4
    assert all(r.boxes.track_ids.tolist() == [1, 2] for r in results)


def test_the_camera_pans_and_the_object_moves():
    def pan(t):
        return 50 + 30 * np.sin(t / 4), 40 + 30 * np.cos(t / 5)

    scene = Scene([lambda t: (130 - 3 * t, 90 + 10 * np.sin(t / 3))], pan=pan)
    assert worst(scene, run(scene)) < 1 and worst(scene, run(scene, 'linear')) > 4
    still = Scene([lambda t: np.array([150, 120]) - np.array(pan(t)).astype(int) + [40, 30]],
                  pan=pan)  # stands on the ground
    assert worst(still, run(still, 'linear')) > 4 and worst(still, run(still)) < 1


def test_no_objects():
    scene = Scene([], num_frames=11)
    results = run(scene)
    assert [len(r.boxes) for r in results] == [0] * 11
    assert [r.frame_id for r in results if r.is_keyframe] == [0, 8, 10]


def test_an_object_partly_outside():
    scene = Scene([lambda t: (-20 + t, 90 + 40 * np.sin(t / 4)),
                   lambda t: (290 - t, 40 + 2 * t)], num_frames=17)
    results = run(scene)
    for result in results:
        boxes = result.boxes.boxes_xyxy
        assert len(boxes) == 2 and boxes.min() >= 0
        assert boxes[:, [0, 2]].max() <= 320 and boxes[:, [1, 3]].max() <= 240
        # The box of a thing at the border gets a new place in it as more comes into view.
        assert np.abs(boxes - scene.truth(result.frame_id)).max() < 5
    assert worst(scene, run(scene, 'linear')) > 8


def test_an_object_that_leaves_and_one_that_enters():
    scene = Scene([lambda t: (200 + 10 * t, 100), lambda t: (-250 + 10 * t, 30)], num_frames=41)
    for result in run(scene):
        shown, truth = result.boxes, scene.truth(result.frame_id)
        is_there = (truth[:, 2:] - truth[:, :2] >= 1).all(axis=1)
        if result.is_keyframe:
            np.testing.assert_allclose(shown.boxes_xyxy, truth[is_there])
        assert len(shown) <= 2 and shown.boxes_xyxy[:, [0, 2]].max(initial=0) <= 320


@pytest.mark.parametrize('length', [1, 2, 3])
def test_very_short_videos(length):
    scene = Scene([curve], num_frames=length)
    assert worst(scene, run(scene)) < 1


@pytest.mark.parametrize(('height', 'width'), [(8, 8), (1, 1), (3, 500), (17, 2)])
def test_tiny_frames(height, width):
    scene = Scene([lambda t: (0, 0)], sides=[(8, 8)], num_frames=11, height=height, width=width)
    assert worst(scene, run(scene)) < 1


def test_a_box_larger_than_the_frame():
    scene = Scene([lambda t: (-30 + t, -40 + t)], sides=[(600, 500)], num_frames=11)
    assert worst(scene, run(scene)) < 0.01


def test_a_size_change_begins_anew():
    scene, other = Scene([curve], num_frames=5), Scene([curve], num_frames=5, height=200)
    scene.images, scene.boxes = scene.images + other.images, scene.boxes + other.boxes
    results = run(scene)
    assert [r.frame_id for r in results if r.is_keyframe] == [0, 4, 5, 9]
    assert {i for r in results[5:] for i in r.boxes.track_ids.tolist()} == {2}


def test_frames_at_uneven_times():
    """Flow sees each frame: where an object is does not depend on when the frame was taken; the
    straight line that corrects the drift does."""
    scene = Scene([curve])
    times = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.4, 25))
    engine = build_engine(scene, keyframes=GAP)
    results = [r for t, image in enumerate(scene.images)
               for r in engine.push(image, t, times[t])] + engine.flush()
    assert worst(scene, results) < 1.5


def test_without_looking_ahead_boxes_go_with_their_points():
    scene = Scene([curve])
    causal = run(scene, mode='causal')
    assert [r.frame_id for r in causal if r.is_keyframe] == [0, 8, 16, 24]
    assert worst(scene, causal) < 1.5
    assert worst(scene, run(scene, 'linear', mode='causal')) > 30
    for known in (4, 11):
        cut = Scene([curve])
        cut.images[known:] = Scene([other_curve]).images[known:]
        engine = build_engine(cut, keyframes=GAP, mode='causal', cut_detector=None)
        found = [r for t, image in enumerate(cut.images) for r in engine.push(image, t)]
        for one, same in zip(found[:known], causal[:known], strict=True):
            np.testing.assert_array_equal(one.boxes.boxes_xyxy, same.boxes.boxes_xyxy)


@pytest.mark.parametrize('policy', [lambda: UniformKeyframes(6),
                                    lambda: AdaptiveKeyframes(12, 1.0, max_depth=2)],
                         ids=['uniform', 'deep'])
def test_a_detector_beside_the_frames_and_revision_change_nothing(policy):
    scene = Scene([curve, other_curve])
    expected = run(scene, keyframes=policy())
    with ThreadPoolExecutor(2) as executor:
        beside = run(scene, keyframes=policy(), executor=executor)
    revised = [r for r in run(scene, keyframes=policy(), mode='causal+revise')
               if r.status == 'final']
    for found in (beside, revised):
        assert [r.frame_id for r in found] == list(range(25))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.boxes.boxes_xyxy, other.boxes.boxes_xyxy)
            np.testing.assert_array_equal(one.boxes.track_ids, other.boxes.track_ids)
            assert one.is_keyframe == other.is_keyframe


def test_a_carrier_as_it_was_is_one_that_never_went_further():
    scene, filler = Scene([curve, other_curve], num_frames=9), FlowFiller()
    left, prepared = scene.detect(scene.images[0]), [filler.prepare(i) for i in scene.images]
    carriers = [filler.carry(left, prepared[0], (240, 320)) for _ in range(9)]
    for num_steps, carrier in enumerate(carriers):
        for frame in prepared[1:num_steps + 1]:
            carrier.step(frame)
    for num_steps, expected in enumerate(carriers):
        earlier = carriers[-1].until(num_steps).tracked()
        np.testing.assert_array_equal(earlier.paths.xy, expected.tracked().paths.xy)
        np.testing.assert_array_equal(earlier.paths.is_good, expected.tracked().paths.is_good)
    assert len(carriers[-1].tracked().paths.xy) == 9  # left as it was


def test_more_boxes_than_are_followed_and_weak_ones():
    scene = Scene([lambda t: (4 * t, 20), lambda t: (4 * t, 80), lambda t: (4 * t, 140)],
                  num_frames=9)
    scene.detect = lambda image, detect=scene.detect: detect(image).replace(
        scores=np.array([0.9, 0.8, 0.05]))
    engine = build_engine(scene, keyframes=GAP, flow=FlowOptions(max_boxes=1), mode='causal')
    results = [r for t, image in enumerate(scene.images) for r in engine.push(image, t)]
    moved = results[5].boxes.boxes_xyxy - results[0].boxes.boxes_xyxy
    np.testing.assert_allclose(moved[:, 0], [20, 0, 0], atol=1)


def test_a_grey_frame_is_the_mean_of_whole_blocks():
    image = texture(0, 241, 643)
    grey, factor = shrunk_grey(image, 160)
    assert factor == 4 and grey.shape == (60, 160) and grey.dtype == np.uint8
    blocks = image[:240, :640].reshape(60, 4, 160, 4, 3).mean(axis=(1, 3))
    expected = blocks @ [0.114, 0.587, 0.299]
    assert np.abs(grey - expected).max() < 2
    small, factor = shrunk_grey(image[:50, :70], 160)
    assert factor == 1 and small.shape == (50, 70)
    assert FlowFiller().prepare(image).grey.shape[1] <= 120


def test_methods_by_name():
    scene = Scene([curve], num_frames=9)
    assert all(r.is_keyframe for r in run(scene, 'detect'))
    with pytest.raises(VisionError, match='VIS-CONFIG-111') as caught:
        build_filler('magic')
    assert all(method in str(caught.value) for method in METHODS)
    policy = UniformKeyframes(3)
    assert build_policy(policy) is policy and build_policy(7).gap_frames == 7
    assert build_engine(scene).policy.gap_frames == 8
    assert build_policy(dict(type='UniformKeyframes', gap_frames=5)).gap_frames == 5
    for bad, code in ((dict(type='Uniform'), 704), (dict(gap_frames=5), 704),
                      (dict(type='UniformKeyframes', gap=8), 709)):
        with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}'):
            build_policy(bad)
    with pytest.raises(VisionError, match='VIS-CONFIG-105'):
        build_policy(0)


# a real video

class Replay:
    """Detections that were made once, by the number of the frame."""

    classes = ('person',)

    def __init__(self, images, detections):
        self.found = {id(image): boxes for image, boxes in zip(images, detections, strict=True)}

    def detect(self, image):
        return self.found[id(image)]


@pytest.fixture(scope='module')
def campus(shared_data):
    """Images, true boxes and YOLOX-nano's people of TUD-Campus."""
    from vision.lattice.core.cocovid import load_cocovid
    from vision.lattice.core.vid_eval import TruthFrame
    from vision.lattice.runtime.detectors import as_detector
    folder = shared_data / 'mot15-mini'
    video, = load_cocovid(folder / 'annotations' / 'val.json').videos
    images = [cv2.imread(str(folder / frame.file_name)) for frame in video.frames]
    truths = [TruthFrame(0, frame.frame_id, frame.boxes_xyxy, frame.labels, frame.instance_ids,
                         frame.is_crowd) for frame in video.frames]
    detector = as_detector('zoo:yolox-nano_coco')
    found = [detector.detect(image) for image in images]
    people = [boxes.select(boxes.labels == detector.classes.index('person')) for boxes in found]
    return images, truths, [boxes.replace(labels=np.zeros(len(boxes))) for boxes in people]


def test_flow_is_above_straight_lines_on_walking_people(campus):
    from vision.lattice.core.vid_eval import IOU_THRESHOLDS, VideoEvaluation
    images, truths, detections = campus
    scores = {}
    for method in METHODS:
        engine = build_engine(Replay(images, detections), method=method, keyframes=GAP)
        results = [r for t, image in enumerate(images) for r in engine.push(image, t)]
        results += engine.flush()
        judge = VideoEvaluation(truths, [r.boxes for r in results], num_classes=1,
                                protocol='coco')
        scores[method] = 100 * np.array([judge.mean_ap(), judge.mean_ap(IOU_THRESHOLDS)])
        assert engine.stats.num_keyframes == (71 if method == 'detect' else 10)
    assert scores['flow'][0] >= scores['linear'][0] + 3, scores
    assert scores['flow'][1] > scores['linear'][1], scores
    assert scores['flow'][0] > scores['detect'][0] - 5, scores
