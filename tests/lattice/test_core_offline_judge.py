"""The engine, fed frame by frame, against a slow judge that sees the whole video at once.

The judge is written from the description of the method: one object after the other, plain floats,
recursion over spans. It shares with the engine only the assignment of boxes of one class (judged
by brute force in ``test_core_linking``), the measure of easiness and the policy's yes or no. The
networks are arbitrary but repeatable.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest

from vision.lattice.core.easiness import interval_easiness
from vision.lattice.core.engine import LatticeEngine
from vision.lattice.core.interval import UNPAIRED_FACTOR, NodeFiller, Propagated, Refined
from vision.lattice.core.keyframes import (
    AdaptiveKeyframes,
    BudgetKeyframes,
    Interval,
    RandomKeyframes,
    UniformKeyframes,
)
from vision.lattice.core.matching import CONFIDENT_SCORE, FLIP_IOU, match_boxes
from vision.lattice.core.structures import FrameBoxes

HEIGHT, WIDTH = 90, 120
MIN_SCORE = 0.05
GATE_AT_MIDDLE, GATE = 1.25, 3.0  # of ``match_at_middle``, in mean box sizes


class Film:
    """Random detections on every frame, and networks that are repeatable functions of one box.

    A few objects drift, are missed, change their class and are wrongly scored; clutter comes and
    goes, also across the border; some stretches are empty. The number of the frame is written into
    its pixels. ``times``: when the frames were taken; None leaves it to the engine.
    """

    def __init__(self, seed, num_frames, times=None):
        rng = np.random.default_rng(seed)
        self.times = times
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

    def seen(self, t):
        """What is left of the detections inside the picture."""
        found = self.detections[t]
        rows, boxes = [], []
        for i, (x0, y0, x1, y1) in enumerate(found.boxes_xyxy.tolist()):
            x0, x1 = max(x0, 0), min(x1, WIDTH)
            y0, y1 = max(y0, 0), min(y1, HEIGHT)
            if x1 - x0 >= 1 and y1 - y0 >= 1:
                rows.append(i)
                boxes.append([x0, y0, x1, y1])
        return FrameBoxes(boxes, found.scores[rows], found.labels[rows])

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


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def best_overlaps(lefts, rights):
    """Pairs (i, j, overlap) of the assignment with the largest sum: all of them are tried."""
    is_turned = len(lefts) > len(rights)
    short, long = (rights, lefts) if is_turned else (lefts, rights)
    tables = [[overlap(a, b) for b in long] for a in short]
    best = max(permutations(range(len(long)), len(short)),
               key=lambda order: sum(tables[i][j] for i, j in enumerate(order)))
    pairs = [(i, j, tables[i][j]) for i, j in enumerate(best)]
    return [(j, i, iou) for i, j, iou in pairs] if is_turned else pairs


class Judge:
    """All frames of a film at once: ``boxes[t]`` and ``sources[t]``."""

    def __init__(self, film, policy, num_stages, merge, cuts):
        self.film, self.policy = film, policy
        self.times = range(film.num_frames) if film.times is None else film.times
        self.num_flips = 0
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
        boxes = self.film.seen(first)
        ids = [self.new_id() for _ in range(len(boxes))]
        self.boxes[first], self.sources[first] = boxes.replace(track_ids=np.array(ids)), 'detected'
        self.lost = FrameBoxes.empty()
        grid = sorted({*range(first, last + 1, self.policy.gap_frames), last})
        for a, b in zip(grid, grid[1:], strict=False):
            self.interval(a, b, depth=0)

    def interval(self, a, b, depth):
        if depth == 0 or depth < self.policy.max_depth:
            greys = [self.film.grey(self.film.image(t)) for t in range(a, b + 1)]
            left, right = self.boxes[a], self.film.seen(b)
            interval = Interval(left, right, b - a, lambda size_cap: interval_easiness(
                left, right, greys, (HEIGHT, WIDTH), size_cap=size_cap))
            if self.policy.split(interval) and b - a >= 2:
                mid = (a + b) // 2
                self.interval(a, mid, depth + 1)
                return self.interval(mid, b, depth + 1)
        things = self.things(a, b)
        self.fill(things, a, b, stage=0, keyframes=(a, b))
        for t in range(a + 1, b):
            self.show(things, t)

    def things(self, a, b):
        left, right = self.boxes[a], self.film.seen(b)
        if self.num_stages and b - a >= 2:
            partner = self.meet(left, right, a, (a + b) // 2, b)
        else:
            partner = dict(match_boxes(left, right).tolist())
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

    def meet(self, left, right, a, mid, b):
        """{row of left: row of right}: where they meet, then where they stand, then whatever the
        classes: what is sure and overlaps on the middle frame."""
        ahead, back = self.all_moved(left, a, mid), self.all_moved(right, b, mid)
        partner = {}
        for boxes_l, boxes_r, gate, rows, columns in (
                (ahead.boxes_xyxy, back.boxes_xyxy, GATE_AT_MIDDLE,
                 np.flatnonzero(ahead.is_known), np.flatnonzero(back.is_known)),
                (left.boxes_xyxy, right.boxes_xyxy, GATE, np.arange(len(left)),
                 np.arange(len(right)))):
            rows = [i for i in rows.tolist() if i not in partner]
            columns = [j for j in columns.tolist() if j not in partner.values()]
            found = match_boxes(left.replace(boxes_xyxy=boxes_l).select(np.array(rows, int)),
                                right.replace(boxes_xyxy=boxes_r).select(np.array(columns, int)),
                                max_distance=gate)
            partner |= {rows[i]: columns[j] for i, j in found.tolist()}
        rows = [i for i in range(len(left))
                if i not in partner and left.scores[i] >= CONFIDENT_SCORE]
        columns = [j for j in range(len(right))
                   if j not in partner.values() and right.scores[j] >= CONFIDENT_SCORE]
        for i, j, iou in best_overlaps(ahead.boxes_xyxy[rows], back.boxes_xyxy[columns]):
            if iou >= FLIP_IOU:
                assert left.labels[rows[i]] != right.labels[columns[j]]
                partner[rows[i]] = columns[j]
                self.num_flips += 1
        return partner

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
        label = int(boxes.labels[row])
        if i is not None and j is not None and self.boxes[b].scores[j] > boxes.scores[i]:
            label = int(self.boxes[b].labels[j])
        return Thing(label, int(boxes.track_ids[row]),
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
        weight = (self.times[mid] - self.times[a]) / (self.times[b] - self.times[a])
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
            weight = 0 if before == after else (self.times[t] - self.times[before]) / (
                self.times[after] - self.times[before])
            box, score = lerp(thing.knots[before], thing.knots[after], weight)
            box = np.clip(box, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
            if min(box[2] - box[0], box[3] - box[1]) >= 1:
                rows.append((box, score * (1 if thing.is_paired else UNPAIRED_FACTOR),
                             thing.label, thing.track_id))
        columns = zip(*rows, strict=True) if rows else ([], [], [], [])
        self.boxes[t] = FrameBoxes(*(np.array(column) for column in columns))
        self.sources.setdefault(t, 'interpolated')


def run(film, policy, num_stages, merge, cuts, executor=None):
    def is_cut(before, after):
        return round(float(after[0, 0]) * 255) in cuts
    filler = NodeFiller(film, num_stages=num_stages, merge=merge, min_score=MIN_SCORE)
    engine = LatticeEngine(film, filler, policy, cut_detector=is_cut, executor=executor)
    results = []
    for t in range(film.num_frames):
        results += engine.push(film.image(t), t, None if film.times is None else film.times[t])
        assert engine.num_buffered_frames <= (1 if executor is None else 2) * policy.gap_frames + 1
    return results + engine.flush(), engine.stats


def assert_judged_equal(film, make_policy, num_stages, merge='median', cuts=(), executor=None):
    results, stats = run(film, make_policy(), num_stages, merge, cuts, executor)
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
    assert (stats.num_cuts, stats.num_holes) == (len(cuts), 0)
    return sum(len(result.boxes) for result in results), judge.num_flips


@pytest.mark.parametrize('gap', [*range(1, 10), 12, 13, 16, 24, 25])
@pytest.mark.parametrize('num_stages', [0, 1, 2, 3])
def test_every_gap_and_number_of_stages(gap, num_stages):
    num_boxes, _ = assert_judged_equal(Film(gap, 53), lambda: UniformKeyframes(gap), num_stages)
    assert num_boxes > 50  # otherwise nothing was compared


class FlippingFilm(Film):
    """Four slow objects, now of the one class and now of the other, and networks that follow."""

    def _detect(self, rng, places):
        places = places / 5 + [[0, 0], [60, 0], [0, 45], [60, 45]]
        places = places[rng.random(4) > 0.2]
        boxes = np.concatenate([places, places + rng.uniform(15, 17, places.shape)], axis=1)
        return FrameBoxes(boxes, rng.uniform(0.2, 1, len(boxes)), rng.integers(0, 2, len(boxes)))

    def move(self, box, start, end):
        return box + np.sin(box[[1, 0, 3, 2]]), 0.5 + 0.4 * np.cos(box[0] + start)


@pytest.mark.parametrize('seed', range(4))
def test_a_class_that_flips_splits_no_object(seed):
    film = FlippingFilm(seed, 53)
    _, num_flips = assert_judged_equal(film, lambda: UniformKeyframes(4), num_stages=2)
    assert num_flips >= 5


def uneven(seed, num_frames):
    """Steps of 20 to 400 ms."""
    return 5 + np.cumsum(np.random.default_rng(seed).uniform(0.02, 0.4, num_frames))


@pytest.mark.parametrize('gap', [1, 2, 3, 8, 13])
@pytest.mark.parametrize('num_stages', [0, 1, 2])
@pytest.mark.parametrize('merge', ['median', 'pair'])
def test_boxes_move_in_time_and_not_in_frames(gap, num_stages, merge):
    film = Film(gap, 53, uneven(gap, 53))
    assert_judged_equal(film, lambda: UniformKeyframes(gap), num_stages, merge, cuts=(17,))


class SlowFilm(Film):
    """Takes its time to detect, now more and now less, and notices two calls at once."""

    def __init__(self, seed, num_frames):
        super().__init__(seed, num_frames)
        self.delays = np.random.default_rng(seed).choice([0, 0.001, 0.01], num_frames)
        self.calling, self.threads = threading.Lock(), set()

    def detect(self, image):
        assert self.calling.acquire(blocking=False), 'two calls at once'
        self.threads.add(threading.get_ident())
        time.sleep(self.delays[image[0, 0, 0]])
        self.calling.release()
        return super().detect(image)


@pytest.mark.parametrize('num_workers', [0, 1, 4])
@pytest.mark.parametrize('make_policy', [
    lambda: UniformKeyframes(5), lambda: AdaptiveKeyframes(9, 0.4, max_depth=2)],
    ids=['uniform', 'deep'])
@pytest.mark.parametrize('num_stages', [0, 2])
def test_a_detector_beside_the_frames_changes_nothing(num_workers, make_policy, num_stages):
    film = SlowFilm(num_stages, 70)
    cuts = (20, 21, 37)
    if not num_workers:
        assert_judged_equal(film, make_policy, num_stages, cuts=cuts)
        assert film.threads == {threading.get_ident()}
        return
    with ThreadPoolExecutor(num_workers) as executor:
        assert_judged_equal(film, make_policy, num_stages, cuts=cuts, executor=executor)
    assert threading.get_ident() not in film.threads


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
    assert assert_judged_equal(film, lambda: UniformKeyframes(8), num_stages=2) == (0, 0)
