"""MOTA and IDF1: cases worked by hand, an exhaustive judge of the assignment."""

from itertools import permutations

import numpy as np
import pytest

from vision.lattice.core.structures import FrameBoxes
from vision.lattice.core.track_metrics import score_tracks
from vision.lattice.core.vid_match import TruthFrame

PLACES = {place: (20 * k, 0, 20 * k + 10, 10) for k, place in enumerate('abcdef')}


def truth(frame, objects, video=1, label=0, crowd=None):
    """objects: {instance id: place}."""
    return TruthFrame(video, frame, np.array([PLACES[p] for p in objects.values()]).reshape(-1, 4),
                      np.full(len(objects), label), np.array(list(objects), np.int64), crowd)


def found(tracks, score=0.9, label=0):
    """tracks: {track id: place}."""
    return FrameBoxes(np.array([PLACES[p] for p in tracks.values()]).reshape(-1, 4),
                      np.full(len(tracks), score), np.full(len(tracks), label), list(tracks))


def test_perfect_tracks_have_one():
    truths = [truth(t, {1: 'a', 2: 'b'}) for t in range(4)]
    scores = score_tracks(truths, [found({7: 'b', 9: 'a'})] * 4)
    assert (scores.mota, scores.idf1) == (1, 1) and scores.num_objects == 8


def test_an_id_that_changes_is_one_switch_and_splits_the_identity():
    truths = [truth(t, {1: 'a'}) for t in range(10)]
    boxes = [found({1: 'a'})] * 7 + [found({2: 'a'})] * 3
    scores = score_tracks(truths, boxes)
    assert scores.num_switches == 1 and scores.mota == pytest.approx(1 - 1 / 10)
    # Track 1 is the object for 7 frames; 3 boxes of track 2 are wrong and 3 objects unfound.
    assert scores.num_identified == 7 and scores.idf1 == pytest.approx(14 / 20)


def test_a_gap_is_no_switch_unless_the_id_is_another_one_after_it():
    truths = [truth(t, {1: 'a'}) for t in range(3)]
    same = score_tracks(truths, [found({5: 'a'}), found({}), found({5: 'a'})])
    other = score_tracks(truths, [found({5: 'a'}), found({}), found({6: 'a'})])
    assert (same.num_switches, same.num_missed) == (0, 1)
    assert (other.num_switches, other.num_missed) == (1, 1)


def test_tracks_that_swap_places():
    truths = [truth(t, {1: 'a', 2: 'b'}) for t in range(4)]
    scores = score_tracks(truths, [found({1: 'a', 2: 'b'})] * 2 + [found({1: 'b', 2: 'a'})] * 2)
    assert scores.num_switches == 2 and scores.num_identified == 4
    assert scores.idf1 == pytest.approx(0.5) and scores.mota == pytest.approx(1 - 2 / 8)


def test_false_and_missed_boxes_count_once_each():
    scores = score_tracks([truth(0, {1: 'a', 2: 'b'})], [found({1: 'a', 2: 'c', 3: 'd'})])
    assert (scores.num_missed, scores.num_false) == (1, 2)
    assert scores.mota == pytest.approx(1 - 3 / 2) and scores.idf1 == pytest.approx(2 / 5)


def test_weak_boxes_and_other_classes_are_not_on_the_object():
    truths = [truth(0, {1: 'a'})]
    assert score_tracks(truths, [found({1: 'a'}, score=0.29)]).num_boxes == 0
    assert score_tracks(truths, [found({1: 'a'}, label=1)]).num_false == 1
    assert score_tracks([truth(0, {1: 'a'}, crowd=[True])], [found({})]).num_objects == 0
    assert np.isnan(score_tracks([truth(0, {})], [found({})]).mota)


def test_an_object_keeps_its_id_although_another_box_is_nearer():
    truths = [truth(t, {1: 'a'}) for t in range(2)]
    shifted = FrameBoxes([[0, 0, 10, 8], [0, 0, 10, 10]], [0.9, 0.9], [0, 0], [1, 2])
    scores = score_tracks(truths, [found({1: 'a'}), shifted])
    assert scores.num_switches == 0 and scores.num_false == 1


def test_ids_of_two_videos_have_nothing_to_do_with_each_other():
    truths = [truth(0, {1: 'a'}, video=1), truth(0, {1: 'a'}, video=2)]
    scores = score_tracks(truths, [found({1: 'a'}), found({2: 'a'})])
    assert scores.num_switches == 0 and scores.idf1 == 1


@pytest.mark.parametrize('seed', range(5))
def test_no_assignment_of_tracks_identifies_more(seed):
    rng = np.random.default_rng(seed)
    objects, tracks = range(1, 5), range(1, 5)
    frames = [(dict(zip(objects, rng.permutation(list('abcd')), strict=True)),
               dict(zip(tracks, rng.permutation(list('abcd')), strict=True))) for _ in range(8)]
    scores = score_tracks([truth(t, o) for t, (o, _) in enumerate(frames)],
                          [found(f) for _, f in frames])
    best = max(sum(o[a] == f[b] for o, f in frames for a, b in zip(objects, order, strict=True))
               for order in permutations(tracks))
    assert scores.num_identified == best
