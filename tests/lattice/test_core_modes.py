"""When results come out: modes without look-ahead, holes in time, borders of the picture."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.lattice.core.engine import HOLE_S, MODES, USUAL_STEPS, LatticeEngine
from vision.lattice.core.interval import NodeFiller, Propagated, Refined
from vision.lattice.core.keyframes import AdaptiveKeyframes, UniformKeyframes
from vision.lattice.core.structures import FrameBoxes

HEIGHT, WIDTH = 120, 160
OTHER = 128  # frames of this number and more show another world


class World:
    """Objects on curved ways; the number of the frame is written into its pixels.

    Propagation follows the way of whichever object is nearest, from one frame to any other.
    """

    def __init__(self, num_objects=3, born=(0, 5, 14), died=(99, 99, 30)):
        self.lives = list(zip(born, died, strict=True))[:num_objects]

    def box(self, i, t):
        if t >= OTHER:
            return np.array([100.0, 30 * i, 130, 30 * i + 25])
        x, y = 20 + 30 * i + 12 * np.sin(t / 4 + i), 30 + 20 * i + 1.5 * (t % 20)
        return np.array([x, y, x + 24, y + 18])

    def image(self, t):
        return np.full((HEIGHT, WIDTH, 3), t, np.uint8)

    def grey(self, image):
        return np.full((6, 8), image[0, 0, 0] / 255, np.float32)

    def detect(self, image):
        t = int(image[0, 0, 0])
        rows = [i for i, (born, died) in enumerate(self.lives) if born <= t % OTHER < died]
        return FrameBoxes([self.box(i, t) for i in rows], [0.9 - 0.2 * i for i in rows],
                          np.array(rows) % 2)

    def propagate(self, boxes, greys, *, frame_size, stage):
        start, end = (round(float(grey[0, 0]) * 255) for grey in (greys[0], greys[-1]))
        moved = []
        for box in boxes.boxes_xyxy:
            i = int(np.argmin([np.abs(self.box(i, start) - box).max()
                               for i in range(len(self.lives))]))
            moved.append(self.box(i, end) + box - self.box(i, start))
        return Propagated(np.array(moved), np.ones(len(moved)))

    def refine(self, boxes, image, *, stage):
        return Refined(boxes.boxes_xyxy, np.ones(len(boxes)))


def engine_of(world, mode='buffered', *, gap=8, policy=None, num_stages=2, **options):
    options.setdefault('cut_detector', None)
    filler = NodeFiller(world, num_stages=num_stages, merge='median', min_score=0.05)
    return LatticeEngine(world, filler, policy or UniformKeyframes(gap), mode=mode, **options)


def run(engine, images):
    """Results by the step at which they came; the last step is ``flush``."""
    return [*(engine.push(image, t) for t, image in enumerate(images)), engine.flush()]


def flat(steps):
    return [result for step in steps for result in step]


def finals(steps):
    return [result for result in flat(steps) if result.status == 'final']


def is_cut_at(*cuts):
    return lambda before, after: round(float(after[0, 0]) * 255) in cuts


def assert_same(one, other, *, boxes_only=False):
    assert [r.frame_id for r in one] == [r.frame_id for r in other]
    for a, b in zip(one, other, strict=True):
        for name in ('boxes_xyxy', 'scores', 'labels', 'track_ids'):
            np.testing.assert_array_equal(getattr(a.boxes, name), getattr(b.boxes, name))
        assert boxes_only or (a.source, a.is_keyframe) == (b.source, b.is_keyframe)


@pytest.mark.parametrize('length', [1, 2, 8, 9, 10, 17, 40])
@pytest.mark.parametrize('gap', [1, 3, 8])
@pytest.mark.parametrize('num_stages', [0, 2])
def test_causal_gives_every_frame_at_once_and_once(length, gap, num_stages):
    world = World()
    engine = engine_of(world, 'causal', gap=gap, num_stages=num_stages,
                       cut_detector=is_cut_at(5, 30, 31))
    steps = run(engine, [world.image(t) for t in range(length)])
    assert [[r.frame_id for r in step] for step in steps] == [[t] for t in range(length)] + [[]]
    assert {r.status for r in flat(steps)} == {'final'}
    begins = [0, *(cut for cut in (5, 30, 31) if cut < length)]
    keyframes = [t for a, b in zip(begins, [*begins[1:], length], strict=True)
                 for t in range(a, b, gap)]
    assert [r.frame_id for r in flat(steps) if r.is_keyframe] == keyframes
    assert engine.stats.num_keyframes == len(keyframes) and engine.num_buffered_frames == 0


@pytest.mark.parametrize('mode', ['causal', 'causal+revise'])
@pytest.mark.parametrize('num_stages', [0, 1])
def test_what_comes_later_changes_nothing_that_was_said(mode, num_stages):
    world, length = World(), 26
    whole = run(engine_of(world, mode, num_stages=num_stages),
                [world.image(t) for t in range(length)])
    for known in range(1, length):
        images = [world.image(t if t < known else OTHER + t) for t in range(length)]
        steps = run(engine_of(world, mode, num_stages=num_stages), images)
        assert_same(flat(steps[:known]), flat(whole[:known]))
        assert flat(steps[:known])  # each frame has a result by then
        assert {r.frame_id for r in flat(steps[:known])} == set(range(known))


POLICIES = pytest.mark.parametrize('make_policy', [
    lambda: UniformKeyframes(8), lambda: UniformKeyframes(1),
    lambda: AdaptiveKeyframes(8, 0.5, max_depth=2)], ids=['uniform', 'every', 'deep'])


@POLICIES
@pytest.mark.parametrize('num_stages', [0, 2])
@pytest.mark.parametrize('cuts', [(), (13, 14, 27)])
def test_revised_results_are_those_of_the_buffered_mode(make_policy, num_stages, cuts):
    world = World()
    images = [world.image(t) for t in range(45)]
    options = dict(num_stages=num_stages, cut_detector=is_cut_at(*cuts))
    buffered = engine_of(world, 'buffered', policy=make_policy(), **options)
    expected = finals(run(buffered, images))
    revising = engine_of(world, 'causal+revise', policy=make_policy(), **options)
    steps = run(revising, images)
    assert_same(finals(steps), expected)
    assert revising.stats == buffered.stats
    assert len(expected) == 45


@POLICIES
def test_a_frame_between_keyframes_is_provisional_at_once_and_final_later(make_policy):
    world, policy = World(), make_policy()
    steps = run(engine_of(world, 'causal+revise', policy=policy),
                [world.image(t) for t in range(45)])
    for t, step in enumerate(steps[:-1]):
        newest = [r for r in step if r.frame_id == t]
        is_grid = t % policy.gap_frames == 0
        assert [r.status for r in newest] == ['final' if is_grid else 'provisional']
        assert newest[0].is_keyframe == is_grid and newest[0] is step[-1]
        assert all(r.status == 'final' for r in step[:-1])
    for t in range(45):
        statuses = [r.status for r in flat(steps) if r.frame_id == t]
        assert statuses == (['final'] if t % policy.gap_frames == 0 else ['provisional', 'final'])


@pytest.mark.parametrize('num_stages', [0, 1, 2])
def test_provisional_results_are_those_of_the_causal_mode(num_stages):
    world = World()
    images = [world.image(t) for t in range(41)]
    causal = flat(run(engine_of(world, 'causal', num_stages=num_stages), images))
    steps = run(engine_of(world, 'causal+revise', num_stages=num_stages), images)
    firsts = {}
    for result in flat(steps):
        firsts.setdefault(result.frame_id, result)
    assert_same(causal, [firsts[t] for t in range(41)], boxes_only=True)


def test_causal_boxes_go_with_the_network_or_stand():
    world = World(1)
    images = [world.image(t) for t in range(8)]
    for num_stages in (0, 1, 2):
        for result in flat(run(engine_of(world, 'causal', num_stages=num_stages), images)):
            expected = world.box(0, result.frame_id if num_stages else 0)
            np.testing.assert_allclose(result.boxes.boxes_xyxy, [expected], atol=1e-3)
            assert result.boxes.track_ids.tolist() == [1]
            assert result.boxes.scores.tolist() == [np.float32(0.9)]


def test_boxes_too_weak_for_the_network_stand():
    class Weak(World):
        def detect(self, image):
            boxes = super().detect(image)
            return boxes.replace(scores=np.array([0.9, 0.03])[:len(boxes)])

    world = Weak(2, born=(0, 0, 0))
    results = flat(run(engine_of(world, 'causal', num_stages=1),
                       [world.image(t) for t in range(8)]))
    for result in results:
        np.testing.assert_allclose(
            result.boxes.boxes_xyxy, [world.box(0, result.frame_id), world.box(1, 0)], atol=1e-3)


@pytest.mark.parametrize('mode', ['causal', 'causal+revise'])
def test_an_executor_changes_nothing_and_is_waited_for(mode):
    world = World()
    images = [world.image(t) for t in range(30)]
    expected = run(engine_of(world, mode), images)
    with ThreadPoolExecutor(1) as executor:
        steps = run(engine_of(world, mode, executor=executor), images)
    assert [len(step) for step in steps] == [len(step) for step in expected]
    assert_same(flat(steps), flat(expected))


def test_a_detector_that_fails_beside_the_frames_costs_no_finished_frame():
    class Failing(World):
        def detect(self, image):
            if image[0, 0, 0] == 16:
                raise ValueError('out of memory')
            return super().detect(image)

    world, results = Failing(), []
    with ThreadPoolExecutor(1) as executor:
        engine = engine_of(world, executor=executor)
        with pytest.raises(ValueError, match='out of memory'):
            for t in range(30):
                results += engine.push(world.image(t), t)
    assert [r.frame_id for r in results] == list(range(9))


def test_an_unknown_mode_lists_the_modes():
    with pytest.raises(VisionError, match='VIS-CONFIG-106') as caught:
        engine_of(World(), 'live')
    assert all(mode in str(caught.value) for mode in MODES)


# holes in time

def push_at(engine, world, times, start=0):
    return [r for t, time_s in enumerate(times, start) for r in engine.push(world.image(t), t,
                                                                            time_s)]


def test_after_an_outage_of_fifteen_seconds_objects_are_new():
    world = World(2, born=(0, 0, 0))
    engine = engine_of(world)
    times = [0.04 * t + (15 if t >= 13 else 0) for t in range(30)]
    results = {r.frame_id: r for r in push_at(engine, world, times) + engine.flush()}
    assert sorted(results) == list(range(30)) and engine.stats.num_holes == 1
    assert [t for t in range(30) if results[t].is_keyframe] == [0, 8, 12, 13, 21, 29]
    for t in range(30):
        assert results[t].boxes.track_ids.tolist() == ([1, 2] if t < 13 else [3, 4])
    assert engine.stats.num_cuts == 0


@pytest.mark.parametrize('mode', MODES)
def test_a_time_lapse_has_no_holes(mode):
    world = World(1)
    engine = engine_of(world, mode)
    results = push_at(engine, world, [10.0 * t for t in range(30)]) + engine.flush()
    assert engine.stats.num_holes == 0
    assert {i for r in results for i in r.boxes.track_ids.tolist()} == {1}


def test_frames_without_times_have_no_holes():
    world = World(1)
    engine = engine_of(world)
    results = run(engine, [world.image(t) for t in range(20)])
    assert engine.stats.num_holes == 0 and len(flat(results)) == 20


@pytest.mark.parametrize(('steps', 'num_holes'), [
    ([0.04] * 10 + [HOLE_S - 0.01] + [0.04] * 5, 0),
    ([0.04] * 10 + [HOLE_S + 0.01] + [0.04] * 5, 1),
    ([0.5] * 10 + [2.4] + [0.5] * 5, 0),
    ([0.5] * 10 + [2.6] + [0.5] * 5, 1),
    ([0.04] * 10 + [15, 15, 0.04, 15, 0.04, 3], 4),  # a stream that is lost again and again
    ([0.04] * 3 + [15] + [0.04] * 3, 1),
    ([0.04, 0.4, 0.02, 0.3, 0.04, 0.5, 0.02, 0.9, 0.1], 0)])
def test_holes_are_counted(steps, num_holes):
    world = World(1)
    engine = engine_of(world, num_stages=0)
    push_at(engine, world, np.cumsum([7.0, *steps]).tolist())
    assert engine.stats.num_holes == num_holes


def test_a_camera_that_goes_over_to_a_slower_pace_is_followed():
    world = World(1)
    engine = engine_of(world, 'causal')
    times = np.cumsum([0.04] * 20 + [10.0] * 30).tolist()
    results = push_at(engine, world, times)
    assert 1 <= engine.stats.num_holes <= USUAL_STEPS // 2 + 1
    assert len({i for r in results[-24:] for i in r.boxes.track_ids.tolist()}) == 1


def test_another_video_has_a_pace_and_a_clock_of_its_own():
    world = World(1)
    engine = engine_of(world)
    push_at(engine, world, [0.04 * t for t in range(12)])
    engine.flush()
    results = push_at(engine, world, [10.0 * t for t in range(12)]) + engine.flush()
    assert engine.stats.num_holes == 0 and len(results) == 12


@pytest.mark.parametrize('time_s', [1.0, 0.5, -3.0, float('nan')])
def test_time_must_grow(time_s):
    world = World(1)
    engine = engine_of(world)
    engine.push(world.image(0), 0, 1.0)
    with pytest.raises(VisionError, match='VIS-INPUT-102'):
        engine.push(world.image(1), 1, time_s)
    assert [r.frame_id for r in engine.push(world.image(1), 1, 1.04) + engine.flush()] == [1]


def test_numbers_may_not_jump_or_stand():
    world = World(1)
    engine = engine_of(world)
    engine.push(world.image(3), 3)
    for frame_id in (3, 5, 2):
        with pytest.raises(VisionError, match='VIS-INPUT-102'):
            engine.push(world.image(4), frame_id)


# borders of the picture

class Border(World):
    """Boxes over each border, around the whole frame, outside of it, and a sliver inside."""

    BOXES = [[-9, 10, 20, 40], [150, -8, 170, 30], [10, 100, 40, 190], [-50, -50, 300, 300],
             [200, 10, 220, 40], [-40, 5, 0, 30], [-40, 5, 0.5, 30], [159.5, 3, 190, 30]]
    INSIDE = [[0, 10, 20, 40], [150, 0, 160, 30], [10, 100, 40, 120], [0, 0, 160, 120]]

    def detect(self, image):
        return FrameBoxes(self.BOXES, np.linspace(0.9, 0.2, 8), np.arange(8))

    def propagate(self, boxes, greys, *, frame_size, stage):
        return Propagated(boxes.boxes_xyxy + [400, 0, 400, 0], np.ones(len(boxes)))


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('gap', [1, 4])
def test_boxes_of_keyframes_and_between_end_at_the_border(mode, gap):
    world = Border()
    results = flat(run(engine_of(world, mode, gap=gap, num_stages=0),
                       [world.image(t) for t in range(9)]))
    for result in results:
        np.testing.assert_allclose(result.boxes.boxes_xyxy, Border.INSIDE, atol=1e-3)
        assert result.boxes.labels.tolist() == [0, 1, 2, 3]
        assert result.boxes.track_ids.tolist() == [1, 2, 3, 4]


def test_a_box_carried_out_of_the_picture_is_not_reported():
    world = Border()
    results = flat(run(engine_of(world, 'causal', gap=4, num_stages=1),
                       [world.image(t) for t in range(4)]))
    assert [len(r.boxes) for r in results] == [4, 0, 0, 0]


def test_bytes_as_grey_frames_are_no_motion_where_nothing_moves():
    """Without objects an interval is easy unless the picture moves; sensor noise is no motion."""
    class Noisy(World):
        def grey(self, image):
            return np.random.default_rng(int(image[0, 0, 0])).integers(100, 103, (30, 40),
                                                                       dtype=np.uint8)

    world = Noisy(0)
    engine = engine_of(world, policy=AdaptiveKeyframes(8, 0.5), num_stages=0)
    run(engine, [world.image(t) for t in range(17)])
    assert engine.stats.num_keyframes == 3
