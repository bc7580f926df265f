"""The engine against a slow judge, and its laws, on networks that know the truth or nothing."""

import weakref

import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.lattice.core.engine import LatticeEngine
from vision.lattice.core.interval import NodeFiller, Propagated, Refined
from vision.lattice.core.keyframes import (
    AdaptiveKeyframes,
    BudgetKeyframes,
    RandomKeyframes,
    UniformKeyframes,
)
from vision.lattice.core.structures import FrameBoxes

SIZE = (120, 160)


class World:
    """Networks over objects whose path is known: box(i, t) for object i at frame t.

    The frame number is written into the pixels, so that every call can see where it is.
    """

    def __init__(self, paths, *, lifetimes=None, num_frames=40):
        self.paths, self.num_frames = paths, num_frames
        self.lifetimes = lifetimes or [(0, num_frames)] * len(paths)
        self.detected = []

    def box(self, i, t):
        x, y = self.paths[i](t)
        return [x, y, x + 20, y + 16]

    def alive(self, t):
        return [i for i, (start, end) in enumerate(self.lifetimes) if start <= t < end]

    def image(self, t):
        return np.full((*SIZE, 3), t, np.uint8)

    def detect(self, image):
        t = int(image[0, 0, 0])
        self.detected.append(t)
        rows = self.alive(t)
        return FrameBoxes(np.array([self.box(i, t) for i in rows]).reshape(-1, 4),
                          np.full(len(rows), 0.9), np.array(rows) % 2)

    def grey(self, image):
        return np.full((6, 8), image[0, 0, 0] / 255, np.float32)

    def propagate(self, boxes, greys, *, frame_size, stage):
        start, end = (int(round(float(g[0, 0]) * 255)) for g in (greys[0], greys[-1]))
        moved = []
        for box in boxes.boxes_xyxy:
            gaps = [np.abs(np.array(self.box(i, start)) - box).max()
                    for i in range(len(self.paths))]
            i = int(np.argmin(gaps))
            moved.append(np.array(self.box(i, end)) + box - self.box(i, start))
        return Propagated(np.array(moved), np.ones(len(moved)))

    def refine(self, boxes, image, *, stage):
        return Refined(boxes.boxes_xyxy, np.ones(len(boxes)))


def linear(x, y, dx, dy):
    return lambda t: (x + dx * t, y + dy * t)


def curved(t):
    return 70 + 40 * np.sin(t / 5), 50 + 30 * np.cos(t / 7)


def run(engine, world, frames=None):
    results = []
    for t in range(world.num_frames) if frames is None else frames:
        results += engine.push(world.image(t), t)
    return results + engine.flush()


NODE_OPTIONS = dict(num_stages=2, merge='median', min_score=0.05)


def engine_of(world, gap=8, **options):
    options.setdefault('cut_detector', None)
    nodes = {name: options.pop(name, value) for name, value in NODE_OPTIONS.items()}
    policy = options.pop('policy', None) or UniformKeyframes(gap)
    return LatticeEngine(world, NodeFiller(world, **nodes), policy, **options)


@pytest.mark.parametrize('length', [1, 2, 3, 8, 9, 10, 15, 17, 40])
@pytest.mark.parametrize('gap', [1, 2, 3, 8])
@pytest.mark.parametrize('num_stages', [0, 1, 2, 3])
def test_every_frame_comes_once_in_order_and_ends_with_a_keyframe(length, gap, num_stages):
    world = World([linear(5, 5, 2, 1)], num_frames=length)
    results = run(engine_of(world, gap, num_stages=num_stages), world)
    assert [r.frame_id for r in results] == list(range(length))
    keyframes = [r.frame_id for r in results if r.is_keyframe]
    assert keyframes == sorted({*range(0, length, gap), length - 1}) == world.detected
    assert all((r.source == 'detected') == r.is_keyframe for r in results)


@pytest.mark.parametrize('merge', ['union_nms', 'pair', 'median', 'agree'])
@pytest.mark.parametrize('num_stages', [0, 1, 2])
@pytest.mark.parametrize('gap', [2, 5, 8])
def test_constant_motion_is_exact_on_every_frame(gap, num_stages, merge):
    world = World([linear(5, 5, 2, 1), linear(130, 90, -2, -1.5)])
    for result in run(engine_of(world, gap, num_stages=num_stages, merge=merge), world):
        assert np.allclose(result.boxes.boxes_xyxy, [world.box(i, result.frame_id)
                                                     for i in (0, 1)], atol=1e-3)
        assert result.boxes.track_ids.tolist() == [1, 2]


def test_class_opinion_of_refinement_changes_propagated_scores_and_what_lies_between():
    class Judge(World):
        def refine(self, boxes, image, *, stage):
            opinion = np.tile([0.4, 0.1], (len(boxes), 1))
            return Refined(boxes.boxes_xyxy, np.ones(len(boxes)), opinion)

    world = Judge([linear(5, 5, 2, 1)], num_frames=9)
    results = run(engine_of(world, num_stages=1), world)
    seen = np.sqrt(0.9 * 0.4)
    expected = [0.9, *np.linspace(0.9, seen, 5)[1:], *np.linspace(seen, 0.9, 5)[1:]]
    assert np.allclose([result.boxes.scores[0] for result in results], expected)


def test_propagation_follows_a_curve_that_interpolation_cuts():
    world = World([curved])
    errors = {}
    for num_stages in (0, 2):
        errors[num_stages] = [np.abs(r.boxes.boxes_xyxy[0] - world.box(0, r.frame_id)).max()
                              for r in run(engine_of(world, 12, num_stages=num_stages), world)]
    assert max(errors[2]) < 0.5 * max(errors[0]) and np.mean(errors[2]) < 0.3 * np.mean(errors[0])
    sources = {r.frame_id: r.source for r in run(engine_of(world, 12, num_stages=2), world)}
    assert [sources[t] for t in (0, 3, 4, 6, 9)] == ['detected', 'propagated', 'interpolated',
                                                    'propagated', 'propagated']


def slow_judge(world, gap):
    """Keyframes and linear interpolation over the whole list, written without the engine."""
    last = world.num_frames - 1
    keys = sorted({*range(0, last + 1, gap), last})
    boxes = {}
    for a, b in zip(keys, keys[1:], strict=False):
        for t in range(a, b + 1):
            w = (t - a) / (b - a)
            boxes[t] = [(1 - w) * np.array(world.box(i, a)) + w * np.array(world.box(i, b))
                        for i in range(len(world.paths))]
    return boxes


@pytest.mark.parametrize('gap', [2, 3, 7, 8, 24])
def test_no_stages_equals_interpolation_over_the_whole_list(gap):
    world = World([lambda t: (70 + 20 * np.sin(t / 9), 50), linear(5, 100, 1, -0.5)])
    expected = slow_judge(world, gap)
    for result in run(engine_of(world, gap, num_stages=0), world):
        assert np.allclose(result.boxes.boxes_xyxy, expected[result.frame_id], atol=1e-3)


@pytest.mark.parametrize('policy', [lambda: UniformKeyframes(8), lambda: AdaptiveKeyframes(8, 0.5),
                                    lambda: BudgetKeyframes(8, 0.2),
                                    lambda: RandomKeyframes(8, 0.2)])
def test_results_do_not_depend_on_when_they_are_asked_for(policy):
    world = World([curved, linear(5, 5, 3, 1)], lifetimes=[(0, 40), (6, 25)])
    at_once = run(engine_of(world, policy=policy()), world)
    engine, piecewise = engine_of(world, policy=policy()), []
    for t in range(world.num_frames):
        new = engine.push(world.image(t), t)
        assert all(t - r.frame_id <= 8 for r in new)
        piecewise += new
    piecewise += engine.flush()
    for a, b in zip(at_once, piecewise, strict=True):
        assert a.frame_id == b.frame_id and a.source == b.source
        assert np.array_equal(a.boxes.boxes_xyxy, b.boxes.boxes_xyxy)
        assert np.array_equal(a.boxes.track_ids, b.boxes.track_ids)


@pytest.mark.parametrize('weak_frame', [0, 8])
@pytest.mark.parametrize('merge', ['union_nms', 'pair', 'median', 'agree'])
def test_an_object_that_one_keyframe_knows_weakly_is_propagated_from_both(weak_frame, merge):
    class Drifting(World):
        """Each propagation lands 8 px too far, so that both sides miss by as much as they can."""
        calls = []

        def detect(self, image):
            boxes = super().detect(image)
            weak = int(image[0, 0, 0]) == weak_frame
            return boxes.replace(scores=np.array([0.9, 0.03 if weak else 0.9]))

        def propagate(self, boxes, greys, **options):
            start, end = (round(float(grey[0, 0]) * 255) for grey in (greys[0], greys[-1]))
            self.calls.append((start, end, len(boxes)))
            moved = super().propagate(boxes, greys, **options)
            drift = 8 if end > start else -8
            return Propagated(moved.boxes_xyxy + [drift, 0, drift, 0], moved.visibility)

    world = Drifting([linear(5, 5, 1, 0), linear(100, 80, -1, 0)], num_frames=9)
    world.calls = []
    results = run(engine_of(world, num_stages=1, min_score=0.05, merge=merge), world)
    sure = (0, 8) if weak_frame == 8 else (8, 0)
    # Both keyframes' sure boxes, then, when its partner is known, the weak one.
    assert sorted(world.calls) == sorted([(sure[0], 4, 2), (sure[1], 4, 1), (sure[1], 4, 1)])
    boxes = results[4].boxes.boxes_xyxy
    # The second object ends as the first, which both keyframes are sure of: the drifts cancel
    # (``union_nms`` takes one of the two, ``pair`` weighs them by the keyframes' scores).
    expected = np.array([world.box(i, 4) for i in (0, 1)], float)
    if merge in ('median', 'agree'):
        assert np.allclose(boxes, expected, atol=1e-3)
    elif merge == 'pair':
        drift = 8 * (0.9 - 0.03) / (0.9 + 0.03) * (1 if weak_frame == 8 else -1)
        expected[1, [0, 2]] += drift
        assert np.allclose(boxes, expected, atol=1e-3)


def test_an_object_that_both_keyframes_know_weakly_is_left_to_the_line():
    class Weak(World):
        def detect(self, image):
            boxes = super().detect(image)
            return boxes.replace(scores=np.full(len(boxes), 0.03))

    world = Weak([curved], num_frames=9)
    filler = NodeFiller(world, num_stages=1, merge='median', min_score=0.05)
    results = run(LatticeEngine(world, filler, UniformKeyframes(8), cut_detector=None), world)
    middle = np.mean([world.box(0, 0), world.box(0, 8)], axis=0)
    assert filler.num_propagations == filler.num_refinements == 0
    assert np.allclose(results[4].boxes.boxes_xyxy[0], middle, atol=1e-3)


def test_births_and_deaths_fade_and_ids_are_never_reused():
    world = World([linear(5, 5, 1, 0), linear(100, 80, 0, 0)], lifetimes=[(0, 13), (20, 40)])
    results = run(engine_of(world), world)
    first = {r.frame_id: r.boxes.scores[r.boxes.track_ids == 1] for r in results}
    assert len(first[8]) == 1 and first[8][0] == pytest.approx(0.9)
    fading = [first[t][0] for t in range(9, 16)]
    assert all(a > b for a, b in zip(fading, fading[1:], strict=False)) and not len(first[16])
    ids = {i for r in results if r.frame_id > 24 for i in r.boxes.track_ids.tolist()}
    assert ids and 1 not in ids


def test_empty_frames_give_empty_results():
    world = World([], num_frames=20)
    assert all(len(r.boxes) == 0 for r in run(engine_of(world), world))


def test_memory_is_bounded_and_frames_are_released():
    world, alive = World([linear(5, 5, 0, 0)], num_frames=200), []
    engine = engine_of(world)
    for t in range(200):
        image = world.image(t)
        alive.append(weakref.ref(image))
        engine.push(image, t)
        del image
        assert engine.num_buffered_frames <= 9
        assert sum(ref() is not None for ref in alive) <= 9


def test_a_second_video_starts_anew():
    world = World([linear(5, 5, 1, 1)], num_frames=12)
    engine = engine_of(world)
    first, second = run(engine, world), run(engine, world)
    assert [r.boxes.track_ids.tolist() for r in first] == \
        [r.boxes.track_ids.tolist() for r in second]
    assert engine.stats.num_frames == 24


def test_a_cut_is_a_wall():
    world = World([linear(5, 5, 1, 0), linear(100, 60, 0, 0)], lifetimes=[(0, 13), (13, 40)])
    engine = engine_of(world, cut_detector=lambda a, b: round(float(b[0, 0]) * 255) == 13)
    results = {r.frame_id: r for r in run(engine, world)}
    assert results[12].is_keyframe and results[13].is_keyframe and engine.stats.num_cuts == 1
    for t in range(13):
        assert np.allclose(results[t].boxes.boxes_xyxy, [world.box(0, t)], atol=1e-3)
    for t in range(13, 40):
        assert np.allclose(results[t].boxes.boxes_xyxy, [world.box(1, t)], atol=1e-3)
    assert set(results[12].boxes.track_ids) & set(results[13].boxes.track_ids) == set()


def test_another_frame_size_begins_a_new_scene():
    world = World([linear(5, 5, 0, 0)])
    engine = engine_of(world)
    results = [r for t in range(5) for r in engine.push(world.image(t), t)]
    results += engine.push(np.full((50, 60, 3), 5, np.uint8), 5) + engine.flush()
    assert [r.is_keyframe for r in results] == [True, False, False, False, True, True]


def test_wrong_frames_are_refused():
    world = World([linear(5, 5, 0, 0)])
    engine = engine_of(world)
    engine.push(world.image(0), 0)
    with pytest.raises(VisionError, match='VIS-INPUT-102'):
        engine.push(world.image(2), 2)
    with pytest.raises(VisionError, match='VIS-INPUT-103'):
        engine.push(np.zeros((4, 4), np.uint8), 1)
    with pytest.raises(VisionError, match='VIS-CONFIG-101'):
        engine_of(world, num_stages=-1)
    with pytest.raises(VisionError, match='VIS-CONFIG-104.*|median'):
        engine_of(world, merge='mean')


def test_networks_that_give_nan_are_stopped():
    class Broken(World):
        def propagate(self, boxes, greys, *, frame_size, stage):
            return Propagated(np.full((len(boxes), 4), np.nan), np.ones(len(boxes)))

    world = Broken([linear(5, 5, 0, 0)])
    with pytest.raises(VisionError, match='VIS-RUN-106'):
        run(engine_of(world), world)
