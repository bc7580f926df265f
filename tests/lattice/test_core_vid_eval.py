import io
from contextlib import redirect_stdout

import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.lattice.core import vid_eval
from vision.lattice.core.structures import FrameBoxes
from vision.lattice.core.vid_eval import (
    IOU_THRESHOLDS,
    SPEEDS,
    TruthFrame,
    VideoEvaluation,
    evaluate_video,
)


def truth(frame, boxes, labels=None, ids=None, video=1, crowd=None):
    count = len(boxes)
    return TruthFrame(video, frame, np.array(boxes, float).reshape(-1, 4),
                      np.zeros(count, int) if labels is None else np.array(labels),
                      np.arange(1, count + 1) if ids is None else np.array(ids), crowd)


def found(boxes, scores, labels=None):
    return FrameBoxes(np.array(boxes).reshape(-1, 4), np.array(scores),
                      np.zeros(len(scores)) if labels is None else np.array(labels))


def random_video(seed, num_frames=30, num_classes=3):
    rng = np.random.default_rng(seed)
    truths, detections = [], []
    start = rng.uniform(0, 200, (5, 2))
    speed = np.array([[0, 0], [.8, .3], [.7, .7], [2, 3], [9, 4]])
    size, labels = rng.uniform(20, 60, (5, 2)), rng.integers(num_classes, size=5)
    for t in range(num_frames):
        here = rng.random(5) < 0.9
        boxes = np.hstack([start + t * speed, start + t * speed + size])[here]
        truths.append(truth(t, boxes, labels[here], np.arange(1, 6)[here], video=seed + 1))
        noisy = np.vstack([boxes + rng.normal(0, 4, boxes.shape), boxes[:2] + 3,
                           rng.uniform(0, 100, (3, 2)).repeat(2, 1) + [0, 0, 20, 20]])
        noisy[:, 2:] = np.maximum(noisy[:, 2:], noisy[:, :2] + 1)
        classes = np.concatenate([labels[here], labels[here][:2], rng.integers(num_classes,
                                                                               size=3)])
        detections.append(FrameBoxes(noisy, rng.random(len(noisy)).round(2), classes))
    return truths, detections


def iou_of(a, b, extra):
    w = min(a[2], b[2]) - max(a[0], b[0]) + extra
    h = min(a[3], b[3]) - max(a[1], b[1]) + extra
    if w <= 0 or h <= 0:
        return 0.0
    area = sum((x[2] - x[0] + extra) * (x[3] - x[1] + extra) for x in (a, b))
    return w * h / (area - w * h)


def flags_of(truths, speed):
    """For each frame, for each of its objects: is it of this speed class?"""
    tracks = {(t.video_id, i, t.frame_id): b for t in truths
              for b, i in zip(t.boxes_xyxy, t.instance_ids, strict=True)}

    def is_in_range(t, g):
        if speed is None:
            return True
        # Motion is measured with inclusive pixels under every protocol.
        values = [iou_of(t.boxes_xyxy[g], other, 1) for d in range(-10, 11) if d and
                  (other := tracks.get((t.video_id, t.instance_ids[g], t.frame_id + d)))
                  is not None]
        low, high = SPEEDS[speed]
        return low <= (np.mean(values) if values else 0) <= high

    return [[is_in_range(t, g) for g in range(len(t.labels))] for t in truths]


def wrongness(overlaps, share_of_set):
    """How wrong an unmatched detection is; overlaps: (IoU, is of the class) of what it may be."""
    ours = max((value for value, flag in overlaps if flag), default=-1)
    others = max((value for value, flag in overlaps if not flag), default=-1)
    if not overlaps:
        return share_of_set
    if ours != others:
        return float(ours > others)
    return 1 - np.mean([flag for _, flag in overlaps])


def area_under(rows, positives, protocol):
    """AP of (score, right, wrong)."""
    rows = sorted(rows, key=lambda row: -row[0])
    right = np.cumsum([row[1] for row in rows])
    wrong = np.cumsum([row[2] for row in rows])
    recall = right / positives
    precision = right / np.maximum(right + wrong, 1e-300)
    if protocol == 'coco':
        return np.mean([max([p for p, r in zip(precision, recall, strict=True) if r >= x],
                            default=0) for x in np.linspace(0, 1, 101)])
    area, last = 0.0, 0.0
    for k, r in enumerate(recall):
        area, last = area + (r - last) * max(precision[k:]), r
    return area


def judge(truths, detections, *, protocol, threshold, num_classes, speed=None):
    """The rules written out, one box after the other."""
    extra = 0 if protocol == 'coco' else 1
    flags = flags_of(truths, speed)
    share_of_set = np.mean([f for frame in flags for f in frame])
    results = []
    for c in range(num_classes):
        rows = []
        positives = sum(f for t, frame in zip(truths, flags, strict=True)
                        for f, label in zip(frame, t.labels, strict=True) if label == c)
        for t, d, frame in zip(truths, detections, flags, strict=True):
            taken = set()
            for i in sorted(np.flatnonzero(d.labels == c), key=lambda i: -d.scores[i]):
                box = d.boxes_xyxy[i].astype(float)
                best, best_iou = None, -1
                for g in np.flatnonzero(t.labels == c):
                    x = t.boxes_xyxy[g]
                    w, h = x[2] - x[0] + 1, x[3] - x[1] + 1
                    limit = min(threshold, w * h / ((w + 10) * (h + 10))) \
                        if protocol == 'ilsvrc' else threshold
                    value = iou_of(box, x, extra)
                    if g not in taken and value >= limit and value > best_iou:
                        best, best_iou = g, value
                if best is not None:
                    taken.add(best)
                    rows.append((d.scores[i], float(frame[best]), 0.0))
                    continue
                overlaps = [(iou_of(box, x, extra), f) for x, f, label in
                            zip(t.boxes_xyxy, frame, t.labels, strict=True)
                            if protocol != 'mega' or label == c]
                rows.append((d.scores[i], 0.0,
                             1.0 if speed is None else wrongness(overlaps, share_of_set)))
        if positives:
            results.append(area_under(rows, positives, protocol))
    return np.mean(results)


@pytest.mark.parametrize('protocol', ['ilsvrc', 'mega', 'coco'])
@pytest.mark.parametrize('speed', [None, *SPEEDS])
def test_every_rule_written_out_gives_the_same(protocol, speed):
    truths, detections = random_video(0)
    evaluation = VideoEvaluation(truths, detections, num_classes=3, protocol=protocol)
    for threshold in (0.5, 0.75):
        expected = judge(truths, detections, protocol=protocol, threshold=threshold,
                         num_classes=3, speed=speed)
        assert evaluation.mean_ap(threshold, speed=speed) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize('crowd_share', [0, 0.2])
def test_coco_agrees_with_pycocotools(crowd_share):
    pytest.importorskip('pycocotools', reason='the light environment has no pycocotools')
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    videos = [random_video(seed) for seed in range(4)]
    truths, detections = (sum(part, []) for part in zip(*videos, strict=True))
    rng = np.random.default_rng(0)
    truths = [TruthFrame(t.video_id, t.frame_id, t.boxes_xyxy, t.labels, t.instance_ids,
                         rng.random(len(t.labels)) < crowd_share) for t in truths]
    images = [dict(id=i) for i in range(len(truths))]
    rows = [(i, b, c, int(crowd)) for i, t in enumerate(truths)
            for b, c, crowd in zip(t.boxes_xyxy, t.labels, t.is_crowd, strict=True)]
    with redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dict(images=images, categories=[dict(id=c, name=str(c)) for c in range(3)])
        coco.dataset['annotations'] = [
            dict(id=k + 1, image_id=i, category_id=int(c), iscrowd=crowd,
                 bbox=[*b[:2], *(b[2:] - b[:2])], area=float(np.prod(b[2:] - b[:2])))
            for k, (i, b, c, crowd) in enumerate(rows)]
        coco.createIndex()
        boxes = [dict(image_id=i, category_id=int(c), score=float(s),
                      bbox=[*b[:2].tolist(), *(b[2:] - b[:2]).tolist()])
                 for i, d in enumerate(detections) for b, s, c in
                 zip(d.boxes_xyxy.astype(float), d.scores, d.labels, strict=True)]
        judge_ = COCOeval(coco, coco.loadRes(boxes), 'bbox')
        judge_.evaluate()
        judge_.accumulate()
        judge_.summarize()
    result = evaluate_video(truths, detections, num_classes=3, protocol='coco', speed=False)
    assert result['map5095'] == pytest.approx(judge_.stats[0], abs=1e-9)
    assert result['map50'] == pytest.approx(judge_.stats[1], abs=1e-9)


def test_perfect_boxes_have_precision_one():
    truths, _ = random_video(1)
    perfect = [FrameBoxes(t.boxes_xyxy, np.ones(len(t.labels)), t.labels) for t in truths]
    for protocol in ('ilsvrc', 'mega', 'coco'):
        result = evaluate_video(truths, perfect, num_classes=3, protocol=protocol)
        assert all(value == pytest.approx(1) or np.isnan(value) for value in result.values())


def test_small_objects_are_forgiven_by_ilsvrc_alone():
    truths, boxes = [truth(0, [[0, 0, 9, 9]])], [found([[4, 0, 13, 9]], [0.9])]
    # 10 x 10 px, moved by 4: IoU 60 / 140 = 0.43; tolerance 100 / 400 = 0.25.
    values = {p: evaluate_video(truths, boxes, num_classes=1, protocol=p)['map50']
              for p in ('ilsvrc', 'mega', 'coco')}
    assert values == dict(ilsvrc=1, mega=0, coco=0)


def test_second_box_on_one_object_is_wrong():
    truths = [truth(0, [[0, 0, 50, 50]]), truth(1, [[0, 0, 50, 50]], ids=[1])]
    boxes = [found([[0, 0, 50, 50], [0, 0, 50, 49]], [0.9, 0.8]), found([[0, 0, 50, 50]], [0.7])]
    # right, wrong, right: 0.5 * 1 + 0.5 * 2/3
    assert evaluate_video(truths, boxes, num_classes=1)['map50'] == pytest.approx(0.5 + 1 / 3)


def test_boxes_on_empty_frames_are_wrong():
    truths = [truth(0, [[0, 0, 50, 50]]), truth(1, [])]
    boxes = [found([[0, 0, 50, 50]], [0.5]), found([[0, 0, 50, 50]], [0.9])]
    assert evaluate_video(truths, boxes, num_classes=1)['map50'] == pytest.approx(0.5)


def test_motion_classes_by_hand():
    still = [truth(t, [[0, 0, 40, 40]]) for t in range(30)]
    moving = [truth(t, [[8 * t, 0, 8 * t + 40, 40]], video=2) for t in range(30)]
    slow = VideoEvaluation(still, [FrameBoxes.empty()] * 30, num_classes=1)
    fast = VideoEvaluation(moving, [FrameBoxes.empty()] * 30, num_classes=1)
    assert np.allclose(slow.motion, 1)
    # inclusive boxes are 41 px wide; offsets 1..5 share 33, 25, 17, 9, 1 columns, both directions
    ious = [33 / 49, 25 / 57, 17 / 65, 9 / 73, 1 / 81]
    assert fast.motion[15] == pytest.approx(2 * sum(ious) / 20)


@pytest.mark.parametrize('protocol', ['ilsvrc', 'mega', 'coco'])
def test_when_all_objects_are_fast_the_fast_ones_are_all(protocol):
    rng = np.random.default_rng(0)
    truths = [truth(t, [[25 * t, 0, 25 * t + 40, 40]] if t % 5 else [], [t % 2] if t % 5 else [])
              for t in range(30)]
    boxes = [found([*t.boxes_xyxy + rng.normal(0, 6), [300, 90, 340, 130], [0, 0, 9, 9]],
                   rng.random(len(t.labels) + 2), rng.integers(2, size=len(t.labels) + 2))
             for t in truths]
    result = evaluate_video(truths, boxes, num_classes=2, protocol=protocol)
    assert 0 < result['map50'] < 0.9
    assert result['map50_fast'] == result['map50_medium_fast'] == result['map50']
    assert np.isnan(result['map50_slow']) and np.isnan(result['map50_medium'])


def test_what_matches_an_ignored_object_is_neither_right_nor_wrong():
    truths = [truth(t, [[0, 0, 40, 40], [100 + 9 * t, 0, 140 + 9 * t, 40]]) for t in range(20)]
    boxes = [found(t.boxes_xyxy, [0.9, 0.5]) for t in truths]
    result = evaluate_video(truths, boxes, num_classes=1)
    assert result['map50_slow'] == result['map50_fast'] == pytest.approx(1)
    assert np.isnan(result['map50_medium'])


STILL, MOVING = [0, 0, 40, 40], [200, 0, 240, 40]


def one_frame_of_background(is_still_there, is_moving_there):
    """20 frames with a still (slow) and a moving (fast) object, found with score 0.5; in one more
    frame those that are asked for, and a better scored box that overlaps nothing."""
    truths = [truth(t, [STILL, [200 + 9 * t, 0, 240 + 9 * t, 40]]) for t in range(20)]
    boxes = [found(t.boxes_xyxy, [0.5, 0.5]) for t in truths]
    last = [(STILL, 1)] * is_still_there + [(MOVING, 3)] * is_moving_there
    truths.append(truth(20, [box for box, _ in last], ids=[i for _, i in last]))
    boxes.append(found([*(box for box, _ in last), [500, 500, 540, 540]],
                       [0.5] * len(last) + [0.9]))
    return evaluate_video(truths, boxes, num_classes=1)


def ap_after(wrong, right):
    """All right boxes come after ``wrong`` in score."""
    return right / (right + wrong)


def test_background_in_a_frame_of_one_speed_counts_for_that_speed_alone():
    slow_only = one_frame_of_background(True, False)
    assert slow_only['map50_slow'] == pytest.approx(ap_after(1, 21))
    assert slow_only['map50_fast'] == pytest.approx(1)
    fast_only = one_frame_of_background(False, True)
    assert fast_only['map50_slow'] == pytest.approx(1)
    assert fast_only['map50_fast'] == pytest.approx(ap_after(1, 21))


def test_background_in_a_mixed_or_empty_frame_counts_by_shares():
    mixed = one_frame_of_background(True, True)
    assert mixed['map50_slow'] == pytest.approx(ap_after(0.5, 21))
    assert mixed['map50_fast'] == pytest.approx(ap_after(0.5, 21))
    empty = one_frame_of_background(False, False)  # 20 of 40 objects of the set are slow
    assert empty['map50_slow'] == empty['map50_fast'] == pytest.approx(ap_after(0.5, 20))


def test_a_miss_is_blamed_on_the_speed_of_what_it_overlaps():
    truths = [truth(t, [STILL, [200 + 9 * t, 0, 240 + 9 * t, 40]]) for t in range(20)]
    boxes = [found(t.boxes_xyxy, [0.5, 0.5]) for t in truths]
    boxes[0] = found([STILL, MOVING, [30, 0, 70, 40]], [0.5, 0.5, 0.9])  # IoU 0.15 with the still
    result = evaluate_video(truths, boxes, num_classes=1)
    assert result['map50_slow'] == pytest.approx(ap_after(1, 20))
    assert result['map50_fast'] == pytest.approx(1)


def test_mega_asks_the_own_class_alone():
    truths = [truth(t, [STILL, [200 + 9 * t, 0, 240 + 9 * t, 40]], [0, 1]) for t in range(20)]
    boxes = [found(t.boxes_xyxy, [0.5, 0.5], [0, 1]) for t in truths]
    boxes[0] = found([STILL, MOVING, [500, 500, 540, 540]], [0.5, 0.5, 0.9], [0, 1, 0])
    values = {p: evaluate_video(truths, boxes, num_classes=2, protocol=p)['map50_slow']
              for p in ('ilsvrc', 'mega')}
    # ilsvrc: one of the frame's two objects is ignored; mega: the only one of this class is slow
    assert values['ilsvrc'] == pytest.approx(ap_after(0.5, 20))
    assert values['mega'] == pytest.approx(ap_after(1, 20))


def test_mega_shares_out_what_has_no_object_of_its_class_in_the_frame():
    # class 0 is still, class 1 moves; 20 objects of each, so half of the set is slow
    truths = [truth(t, [STILL, [200 + 9 * t, 0, 240 + 9 * t, 40]], [0, 1]) for t in range(20)]
    truths.append(truth(20, [[200 + 180, 0, 240 + 180, 40]], [1], ids=[2]))
    boxes = [found(t.boxes_xyxy, [0.5] * len(t.labels), t.labels) for t in truths]
    boxes[20] = found([[380, 0, 420, 40], [500, 500, 540, 540]], [0.5, 0.9], [1, 0])
    values = {p: evaluate_video(truths, boxes, num_classes=2, protocol=p)['map50_slow']
              for p in ('ilsvrc', 'mega')}
    # ilsvrc: the frame holds nothing but an ignored object, whatever its class
    assert values['ilsvrc'] == pytest.approx(1)
    assert values['mega'] == pytest.approx(ap_after(20 / 41, 20))


@pytest.mark.parametrize('protocol', ['ilsvrc', 'mega'])
def test_a_track_seen_once_is_fast_and_gaps_are_skipped(protocol):
    truths = [truth(t, [STILL] if t != 5 else []) for t in range(8)] + [truth(99, [STILL])]
    evaluation = VideoEvaluation(truths, [FrameBoxes.empty()] * 9, num_classes=1,
                                 protocol=protocol)
    assert evaluation.motion.tolist() == [1.0] * 7 + [0.0]  # frame 99 has no neighbour


def test_speed_needs_tracks():
    truths = [truth(0, [STILL, MOVING], ids=[1, 1])]
    assert evaluate_video(truths, [found([STILL], [0.9])], num_classes=1, speed=False)['map50']
    with pytest.raises(VisionError, match='VIS-DATA-409'):
        evaluate_video(truths, [found([STILL], [0.9])], num_classes=1)


def test_both_ends_of_a_speed_range_are_closed():
    evaluation = VideoEvaluation([truth(0, [STILL, MOVING])], [FrameBoxes.empty()], num_classes=1)
    evaluation.motion = np.array([0.7, 0.9])
    members = {name: evaluation._in_range(name).tolist() for name in SPEEDS}
    assert members == dict(slow=[False, True], medium=[True, True], fast=[True, False],
                           medium_fast=[True, True])


def test_video_weights_are_repetitions_of_videos():
    parts = [random_video(seed) for seed in range(3)]
    truths, detections = (sum(part, []) for part in zip(*parts, strict=True))
    weighted = VideoEvaluation(truths, detections, num_classes=3).mean_ap(
        IOU_THRESHOLDS, video_weights=np.array([2, 0, 1]))
    twice = [TruthFrame(9, t.frame_id, t.boxes_xyxy, t.labels, t.instance_ids)
             for t in parts[0][0]]
    repeated = VideoEvaluation(parts[0][0] + twice + parts[2][0],
                               parts[0][1] * 2 + parts[2][1], num_classes=3)
    assert weighted == pytest.approx(repeated.mean_ap(IOU_THRESHOLDS), abs=2e-3)


@pytest.mark.parametrize('protocol', ['ilsvrc', 'mega', 'coco'])
@pytest.mark.parametrize('speed', [None, 'medium_fast', 'fast'])
def test_all_draws_at_once_equal_one_after_the_other(protocol, speed, monkeypatch):
    parts = [random_video(seed, num_frames=12) for seed in range(4)]
    truths, detections = (sum(part, []) for part in zip(*parts, strict=True))
    evaluation = VideoEvaluation(truths, detections, num_classes=3, protocol=protocol)
    weights = np.random.default_rng(0).integers(0, 3, (20, 4))
    weights[0], weights[1] = 1, 0  # every video once; none at all
    for thresholds in (0.5, IOU_THRESHOLDS):
        expected = [evaluation.mean_ap(thresholds, speed=speed, video_weights=row)
                    for row in weights]
        for limit in (2_000_000, 7):
            monkeypatch.setattr(vid_eval, '_DRAW_ELEMENTS', limit)
            np.testing.assert_allclose(evaluation.mean_ap_of_draws(
                weights, thresholds, speed=speed), expected, atol=1e-12)
    assert np.isnan(expected[1]) and 0 < expected[0] < 1


def test_ignore_regions_excuse_unmatched_boxes():
    truths = [truth(0, [[0, 0, 40, 40], [100, 0, 200, 100]], crowd=np.array([False, True]))]
    boxes = [found([[110, 10, 150, 50], [0, 0, 40, 40]], [0.9, 0.8])]
    assert evaluate_video(truths, boxes, num_classes=1)['map50'] == pytest.approx(1)


@pytest.mark.parametrize(('change', 'code'), [
    (lambda t, d: (t, d[:-1]), '401'), (lambda t, d: (t + t[:1], d + d[:1]), '402'),
    (lambda t, d: ([truth(0, [[0, 0, np.nan, 1]])], d[:1]), '403'),
    (lambda t, d: (t, [d[0].replace(labels=d[0].labels + 7)] + d[1:]), '404')])
def test_what_cannot_be_judged_is_refused(change, code):
    truths, detections = change(*random_video(0))
    with pytest.raises(VisionError, match=f'VIS-DATA-{code}'):
        evaluate_video(truths, detections, num_classes=3)
