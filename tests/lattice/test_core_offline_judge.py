"""The engine, fed frame by frame, against a slow judge that sees the whole video at once.

The judge is written from the description of the method: one object after the other, plain floats,
recursion over spans. It shares with the engine only the assignment (judged by brute force in
``test_core_linking``) and the policy's yes or no. The networks are arbitrary but repeatable.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from vision.lattice.core.engine import LatticeEngine, Propagated, Refined
from vision.lattice.core.interval import UNPAIRED_FACTOR
from vision.lattice.core.keyframes import (
    AdaptiveKeyframes,
    BudgetKeyframes,
    Interval,
    RandomKeyframes,
    UniformKeyframes,
)
from vision.lattice.core.matching import CONFIDENT_SCORE, match_at_middle, match_boxes
from vision.lattice.core.structures import FrameBoxes

HEIGHT, WIDTH = 90, 120
MIN_SCORE = 0.05


class Film:
    """Random detections on every frame, and networks that are repeatable functions of one box.

    A few objects drift, are missed and wrongly scored; clutter comes and goes; some stretches are
    empty. The number of the frame is written into its pixels.
    """

    def __init__(self, seed, num_frames):
        rng = np.random.default_rng(seed)
        start, speed = rng.uniform(10, 80, (4, 2)), rng.uniform(-3, 3, (4, 2))
        self.num_frames = num_frames
        self.detections = [self._detect(rng, start + speed * t) if rng.random() > 0.1
                           else FrameBoxes.empty() for t in range(num_frames)]

    def _detect(self, rng, places):
        places = np.concatenate([places[rng.random(4) > 0.2], rng.uniform(0, 90, (2, 2))])
        boxes = np.concatenate([places, places + rng.uniform(12, 18, places.shape)], axis=1)
        scores = np.where(np.arange(len(places)) < len(places) - 2, rng.uniform(0.2, 1),
                          rng.uniform(0.01, 0.2))
        return FrameBoxes(boxes, scores, np.arange(len(places)) % 2)

    def image(self, t):
        return np.full((HEIGHT, WIDTH, 3), t, np.uint8)

    def grey(self, image):
        return np.full((4, 6), image[0, 0, 0] / 255, np.float32)

    def detect(self, image):
        return self.detections[image[0, 0, 0]]

    def move(self, box, start, end):
        shift = (end - start) * np.array([1.5, -0.5, 1.7, -0.6]) + np.sin(box[[1, 0, 3, 2]] / 9)
        return box + shift, 0.5 + 0.4 * np.cos(box[0] + start)

    def correct(self, box, t, stage):
        return box + 0.8 * np.sin(box + t + stage), 0.6 + 0.3 * np.sin(box[1] + t)

    def propagate(self, boxes, greys, *, frame_size, stage):
        assert frame_size == (HEIGHT, WIDTH) and len(boxes)
        times = [round(float(grey[0, 0]) * 255) for grey in greys]
        assert np.abs(np.diff(times)).tolist() == [1] * (len(times) - 1)  # no frame is skipped
        moved = [self.move(box, times[0], times[-1]) for box in boxes.boxes_xyxy.astype(float)]
        return Propagated(*(np.array(column) for column in zip(*moved, strict=True)))

    def refine(self, boxes, image, *, stage):
        assert len(boxes)
        better = [self.correct(box, int(image[0, 0, 0]), stage)
                  for box in boxes.boxes_xyxy.astype(float)]
        return Refined(*(np.array(column) for column in zip(*better, strict=True)))


@dataclass
class Thing:
    """One object of an interval: what it is, and {frame: (box or None, score)}."""

    label: int
    track_id: int
    is_paired: bool
    knots: dict = field(default_factory=dict)


def lerp(before, after, weight):
    (box_a, score_a), (box_b, score_b) = before, after
    if box_a is not None and box_b is not None:
        box = (1 - weight) * box_a + weight * box_b
    else:
        box = box_b if box_a is None else box_a
    return box, (1 - weight) * score_a + weight * score_b


class Judge:
    """All frames of a film at once: ``boxes[t]`` and ``sources[t]``."""

    def __init__(self, film, policy, num_stages, merge, cuts):
        self.film, self.policy = film, policy
        self.num_stages, self.merge = num_stages, merge
        self.boxes, self.sources = {}, {}
        self.next_id = 1
        walls = [0, *cuts, film.num_frames]
        for first, end in zip(walls, walls[1:], strict=False):
            self.segment(first, end - 1)

    def new_id(self):
        self.next_id += 1
        return self.next_id - 1

    def segment(self, first, last):
        self.policy.start_segment()
        boxes = self.film.detections[first]
        ids = [self.new_id() for _ in range(len(boxes))]
        self.boxes[first], self.sources[first] = boxes.replace(track_ids=np.array(ids)), 'detected'
        self.lost = FrameBoxes.empty()
        grid = sorted({*range(first, last + 1, self.policy.gap_frames), last})
        for a, b in zip(grid, grid[1:], strict=False):
            self.interval(a, b, depth=0)

    def interval(self, a, b, depth):
        if depth == 0 or depth < self.policy.max_depth:
            greys = [self.film.grey(self.film.image(t)) for t in range(a, b + 1)]
            seen = Interval(self.boxes[a], self.film.detections[b], greys, (HEIGHT, WIDTH))
            if self.policy.split(seen) and b - a >= 2:
                mid = (a + b) // 2
                self.interval(a, mid, depth + 1)
                return self.interval(mid, b, depth + 1)
        things = self.things(a, b)
        self.fill(things, a, b, stage=0, keyframes=(a, b))
        for t in range(a + 1, b):
            self.show(things, t)

    def things(self, a, b):
        left, right = self.boxes[a], self.film.detections[b]
        if self.num_stages and b - a >= 2:
            mid = (a + b) // 2
            pairs = match_at_middle(left, right, self.all_moved(left, a, mid),
                                    self.all_moved(right, b, mid))
        else:
            pairs = match_boxes(left, right)
        partner = dict(pairs.tolist())
        ids = {j: int(left.track_ids[i]) for i, j in partner.items()}
        newborn = [j for j in range(len(right)) if j not in ids]
        for k, n in match_boxes(self.lost, right.select(np.array(newborn, int))).tolist():
            ids[newborn[n]] = int(self.lost.track_ids[k])
        for j in newborn:
            ids.setdefault(j, None)
            ids[j] = self.new_id() if ids[j] is None else ids[j]
        self.lost = left.select(np.array([i for i in range(len(left)) if i not in partner
                                          and left.scores[i] >= CONFIDENT_SCORE], int))
        self.boxes[b] = right.replace(track_ids=np.array([ids[j] for j in range(len(right))], int))
        self.sources[b] = 'detected'
        rows = [(i, partner.get(i)) for i in range(len(left))] + [(None, j) for j in newborn]
        return [self.thing(a, b, i, j) for i, j in rows]

    def all_moved(self, boxes, start, end):
        moved = [self.film.move(box, start, end)[0] for box in boxes.boxes_xyxy.astype(float)]
        return SimpleNamespace(boxes_xyxy=np.array(moved).reshape(-1, 4),
                               is_known=boxes.scores >= MIN_SCORE)

    def thing(self, a, b, i, j):
        knots = {}
        for t, row in ((a, i), (b, j)):
            boxes = self.boxes[t]
            knots[t] = (None, 0.0) if row is None else (boxes.boxes_xyxy[row].astype(float),
                                                        float(boxes.scores[row]))
        boxes, row = (self.boxes[a], i) if i is not None else (self.boxes[b], j)
        return Thing(int(boxes.labels[row]), int(boxes.track_ids[row]),
                     i is not None and j is not None, knots)

    def fill(self, things, a, b, stage, keyframes):
        if stage == self.num_stages or b - a < 2:
            return
        mid = (a + b) // 2
        for thing in things:
            thing.knots[mid] = self.node(thing, a, mid, b, stage, keyframes)
        self.sources[mid] = 'propagated'
        self.fill(things, a, mid, stage + 1, keyframes)
        self.fill(things, mid, b, stage + 1, keyframes)

    def node(self, thing, a, mid, b, stage, keyframes):
        weight = (mid - a) / (b - a)
        line, score = lerp(thing.knots[a], thing.knots[b], weight)
        best = max(thing.knots[t][1] for t in keyframes)
        moved = {}
        for t in (a, b):
            box = thing.knots[t][0]
            if box is not None and best >= MIN_SCORE:
                moved[t] = self.film.move(box, t, mid)
        if not moved:
            return line, score
        if len(moved) == 1:
            box = next(iter(moved.values()))[0]
        elif self.merge == 'median':
            box = np.array([sorted(values)[1] for values in
                            zip(moved[a][0], moved[b][0], line, strict=True)])
        else:
            left, right = (1 - weight) * thing.knots[a][1], weight * thing.knots[b][1]
            box = (left * moved[a][0] + right * moved[b][0]) / (left + right)
        box, confidence = self.film.correct(box, mid, stage)
        belief = max(visibility for _, visibility in moved.values()) * confidence
        return box, score * (1 if thing.is_paired else belief)

    def show(self, things, t):
        rows = []
        for thing in things:
            before = max(k for k in thing.knots if k <= t)
            after = min(k for k in thing.knots if k >= t)
            weight = 0 if before == after else (t - before) / (after - before)
            box, score = lerp(thing.knots[before], thing.knots[after], weight)
            box = np.clip(box, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
            if min(box[2] - box[0], box[3] - box[1]) >= 1:
                rows.append((box, score * (1 if thing.is_paired else UNPAIRED_FACTOR),
                             thing.label, thing.track_id))
        columns = zip(*rows, strict=True) if rows else ([], [], [], [])
        self.boxes[t] = FrameBoxes(*(np.array(column) for column in columns))
        self.sources.setdefault(t, 'interpolated')


def run(film, policy, num_stages, merge, cuts):
    def is_cut(before, after):
        return round(float(after[0, 0]) * 255) in cuts
    engine = LatticeEngine(film, policy, num_stages=num_stages, merge=merge,
                           cut_detector=is_cut, min_score=MIN_SCORE)
    results = []
    for t in range(film.num_frames):
        results += engine.push(film.image(t), t)
    return results + engine.flush(), engine.stats


def assert_judged_equal(film, make_policy, num_stages, merge='median', cuts=()):
    results, stats = run(film, make_policy(), num_stages, merge, cuts)
    judge = Judge(film, make_policy(), num_stages, merge, cuts)
    assert [r.frame_id for r in results] == list(range(film.num_frames)) == sorted(judge.boxes)
    for result in results:
        expected = judge.boxes[result.frame_id]
        assert result.source == judge.sources[result.frame_id]
        assert result.boxes.track_ids.tolist() == expected.track_ids.tolist()
        assert result.boxes.labels.tolist() == expected.labels.tolist()
        assert np.allclose(result.boxes.boxes_xyxy, expected.boxes_xyxy, atol=1e-3)
        assert np.allclose(result.boxes.scores, expected.scores, atol=1e-5)
    assert stats.num_keyframes == list(judge.sources.values()).count('detected')
    return sum(len(result.boxes) for result in results)


@pytest.mark.parametrize('gap', [*range(1, 10), 12, 13, 16, 24, 25])
@pytest.mark.parametrize('num_stages', [0, 1, 2, 3])
def test_every_gap_and_number_of_stages(gap, num_stages):
    num_boxes = assert_judged_equal(Film(gap, 53), lambda: UniformKeyframes(gap), num_stages)
    assert num_boxes > 50  # otherwise nothing was compared


@pytest.mark.parametrize('length', range(1, 20))
def test_every_length_of_the_tail(length):
    assert_judged_equal(Film(length, length), lambda: UniformKeyframes(8), num_stages=2)


@pytest.mark.parametrize('merge', ['median', 'pair'])
@pytest.mark.parametrize('seed', range(8))
def test_cuts_anywhere(seed, merge):
    cuts = sorted(np.random.default_rng(seed).choice(np.arange(1, 50), 4, replace=False).tolist())
    cuts += [cuts[-1] + 1]  # a scene of one frame
    assert_judged_equal(Film(seed, 53), lambda: UniformKeyframes(7), 2, merge, cuts)


@pytest.mark.parametrize('make_policy', [
    lambda: AdaptiveKeyframes(8, 0.2), lambda: AdaptiveKeyframes(13, 0.4, max_depth=3),
    lambda: BudgetKeyframes(9, 0.17), lambda: RandomKeyframes(9, 0.17, seed=3)],
    ids=['adaptive', 'deep', 'budget', 'random'])
@pytest.mark.parametrize('num_stages', [0, 2])
@pytest.mark.parametrize('seed', range(4))
def test_every_policy(make_policy, num_stages, seed):
    assert_judged_equal(Film(seed, 90), make_policy, num_stages, cuts=(31, 40))


def test_a_film_without_any_box():
    film = Film(0, 30)
    film.detections = [FrameBoxes.empty()] * 30
    assert assert_judged_equal(film, lambda: UniformKeyframes(8), num_stages=2) == 0
