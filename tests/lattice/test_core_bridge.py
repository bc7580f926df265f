"""Objects between two keyframes by hand-made paths of points."""

import numpy as np
import pytest

from vision.lattice.core.bridge import (
    DOUBT,
    EASY_SHARE,
    FAR_SHARE,
    LOST_FACTOR,
    UNPAIRED_FACTOR,
    PathBridge,
    Tracked,
    settled_pairs,
)
from vision.lattice.core.linker import TrackLinker
from vision.lattice.core.paths import LINE_POINTS, Paths, grid_points
from vision.lattice.core.structures import FrameBoxes

FRAME = (400, 600)
SIDE, NUM_POINTS = 4, 16
NO_PAIRS, ONE_PAIR = np.zeros((0, 2), np.int64), np.array([[0, 0]])
EVEN = np.linspace(0, 1, 9)
UNEVEN = np.array([0, 0.05, 0.1, 0.4, 0.45, 0.5, 0.9, 0.95, 1])


def tracked(boxes, moves, *, scores=None, labels=None, lost=(), rows=None):
    """A keyframe whose boxes' points all make the moves (F, N, 2), told from this keyframe.

    lost: (frame, box, point) from when on a point is lost. rows: the boxes that were followed.
    """
    boxes, moves = np.array(boxes, float).reshape(-1, 4), np.asarray(moves, float)
    count = len(boxes)
    is_good = np.ones((len(moves), count, NUM_POINTS), bool)
    for frame, box, point in lost:
        is_good[frame:, box, point] = False
    rows = np.arange(count) if rows is None else np.array(rows, int)
    xy = (grid_points(boxes, SIDE)[None] + moves[:, :, None]).astype(np.float32)
    found = FrameBoxes(boxes, np.full(count, 0.9) if scores is None else scores,
                       np.zeros(count) if labels is None else labels,
                       np.arange(1, count + 1))
    return Tracked(found, rows, Paths(xy, is_good).take(rows))


def keyframes(box, way, *, left=None, right=None):
    """Both keyframes of one object of this first box that goes along way (F, 2)."""
    box, way = np.array(box, float), np.asarray(way, float)
    back = way[::-1] - way[-1]
    return (tracked([box], way[:, None], **(left or {})),
            tracked([box + np.tile(way[-1], 2)], back[:, None], **(right or {})))


def parabola(shares, *, run=120.0, rise=80.0):
    return np.stack([run * shares, 4 * rise * shares * (1 - shares)], axis=1)


def fill(left, right, shares=EVEN, *, settled=NO_PAIRS, linker=None):
    linker = linker or TrackLinker()
    left = Tracked(linker.start(left.boxes), left.rows, left.paths)
    return PathBridge(left, right, shares, FRAME, settled=settled).fill(linker)


def nobody(num_frames=9):
    return tracked(np.zeros((0, 4)), np.zeros((num_frames, 0, 2)))


BOX = [100.0, 100, 140, 160]


@pytest.mark.parametrize('shares', [EVEN, UNEVEN], ids=['even', 'uneven'])
def test_an_object_on_a_parabola_is_found_although_linear_is_far_off(shares):
    way = parabola(shares)
    filled = fill(*keyframes(BOX, way), shares)
    line = shares[:, None] * way[-1]
    # 32 points say the same, and the straight line counts as a few more.
    expected = line + 2 * NUM_POINTS / (2 * NUM_POINTS + LINE_POINTS) * (way - line)
    for t, boxes in enumerate(filled.inner, 1):
        np.testing.assert_allclose(boxes.boxes_xyxy, [BOX + np.tile(expected[t], 2)], atol=1e-3)
        assert boxes.track_ids.tolist() == [1]
    assert np.abs(expected - way).max() < 0.04 * np.abs(line - way).max()
    assert np.abs(line - way).max() > 60 and filled.is_propagated == [True] * 7
    assert filled.right.track_ids.tolist() == [1]


def test_the_paths_of_one_keyframe_are_enough():
    way, (left, right) = parabola(EVEN), keyframes(BOX, parabola(EVEN))
    line = EVEN[:, None] * way[-1]
    expected = line + NUM_POINTS / (NUM_POINTS + LINE_POINTS) * (way - line)
    for left_rows, right_rows in (([0], []), ([], [0])):
        filled = fill(Tracked(left.boxes, np.array(left_rows, int), left.paths.take(left_rows)),
                      Tracked(right.boxes, np.array(right_rows, int),
                              right.paths.take(right_rows)), settled=ONE_PAIR)
        for t, boxes in enumerate(filled.inner, 1):
            np.testing.assert_allclose(boxes.boxes_xyxy, [BOX + np.tile(expected[t], 2)],
                                       atol=1e-3)


def test_points_on_the_background_are_told_by_where_they_end():
    """Half of the points stand still, as the ground does; the box is two sizes away at the end."""
    way = parabola(EVEN, run=0, rise=20) + np.stack([150 * EVEN, 0 * EVEN], axis=1)
    left, right = keyframes(BOX, way)
    for side in (left, right):
        side.paths.xy[:, :, ::2] = side.paths.xy[0, :, ::2]
    line = EVEN[:, None] * way[-1]
    expected = line + NUM_POINTS / (NUM_POINTS + LINE_POINTS) * (way - line)
    for t, boxes in enumerate(fill(left, right, settled=ONE_PAIR).inner, 1):
        np.testing.assert_allclose(boxes.boxes_xyxy, [BOX + np.tile(expected[t], 2)], atol=1e-3)


@pytest.mark.parametrize('shares', [EVEN, UNEVEN], ids=['even', 'uneven'])
@pytest.mark.parametrize('lost_at', [1, 8])
def test_lost_points_leave_the_straight_line_exactly(shares, lost_at):
    """Every edge is linear in time."""
    lost = [(lost_at, 0, p) for p in range(NUM_POINTS)]
    left = tracked([BOX], parabola(shares)[:, None], lost=lost)
    end = [130.0, 90, 230, 120]
    right = tracked([end], (parabola(shares)[::-1] - parabola(shares)[-1])[:, None], lost=lost)
    filled = fill(left, right, shares, settled=ONE_PAIR)
    assert filled.right.track_ids.tolist() == [1]
    for share, boxes in zip(shares[1:-1], filled.inner, strict=True):
        np.testing.assert_allclose(
            boxes.boxes_xyxy, [(1 - share) * np.array(BOX) + share * np.array(end)], atol=1e-3)


@pytest.mark.parametrize('shares', [EVEN, UNEVEN], ids=['even', 'uneven'])
@pytest.mark.parametrize('knows', ['left', 'right'])
def test_a_box_that_one_keyframe_knows_goes_with_its_points(knows, shares):
    way = parabola(shares)
    left, right = keyframes(BOX, way)
    filled = fill(left, nobody(), shares) if knows == 'left' else fill(nobody(), right, shares)
    nearness = 1 - shares if knows == 'left' else shares
    for t, boxes in enumerate(filled.inner, 1):
        np.testing.assert_allclose(boxes.boxes_xyxy, [BOX + np.tile(way[t], 2)], atol=1e-3)
        expected = 0.9 * UNPAIRED_FACTOR * (FAR_SHARE + (1 - FAR_SHARE) * nearness[t])
        assert boxes.scores[0] == pytest.approx(expected)
        assert boxes.track_ids.tolist() == [1]
    assert len(filled.right) == (knows == 'right')


@pytest.mark.parametrize('knows', ['left', 'right'])
def test_a_lonely_box_whose_points_are_lost_stands_and_is_worth_less(knows):
    way = parabola(EVEN)
    lost = [(4, 0, p) for p in range(NUM_POINTS)]
    left, right = keyframes(BOX, way, left=dict(lost=lost), right=dict(lost=lost))
    filled = fill(left, nobody()) if knows == 'left' else fill(nobody(), right)
    # From the left it is followed up to frame 3; from the right, four frames back, to frame 5.
    for t, boxes in enumerate(filled.inner, 1):
        is_lost = t > 3 if knows == 'left' else t < 5
        place = (min(t, 3) if knows == 'left' else max(t, 5))
        np.testing.assert_allclose(boxes.boxes_xyxy, [BOX + np.tile(way[place], 2)], atol=1e-3)
        nearness = 1 - t / 8 if knows == 'left' else t / 8
        expected = 0.9 * UNPAIRED_FACTOR * (FAR_SHARE + (1 - FAR_SHARE) * nearness)
        assert boxes.scores[0] == pytest.approx(expected * (LOST_FACTOR if is_lost else 1))


def test_a_box_that_was_not_followed_stands_alone_or_goes_straight():
    still = np.zeros((9, 2, 2))
    left = tracked([BOX, [400, 100, 440, 160]], still, scores=[0.9, 0.05], rows=[0])
    right = tracked([BOX, [420, 100, 460, 160]], still, scores=[0.9, 0.05], rows=[0])
    for t, boxes in enumerate(fill(left, right).inner, 1):
        np.testing.assert_allclose(boxes.boxes_xyxy[1], [400 + 2.5 * t, 100, 440 + 2.5 * t, 160],
                                   atol=1e-3)
        assert boxes.scores[1] == pytest.approx(0.05 * (1 - DOUBT))
    for boxes in fill(left, nobody()).inner:
        np.testing.assert_allclose(boxes.boxes_xyxy[1], [400, 100, 440, 160])


@pytest.mark.parametrize('num_lost', [0, 4, 10, 16])
def test_the_score_of_a_pair_is_the_mean_of_both_less_what_its_points_leave_in_doubt(num_lost):
    lost = [(3, 0, p) for p in range(num_lost)]
    left, right = keyframes(BOX, parabola(EVEN), left=dict(scores=[0.8], lost=lost),
                            right=dict(scores=[0.4], lost=lost))
    certainty = min(1, (1 - num_lost / NUM_POINTS) / EASY_SHARE)
    for boxes in fill(left, right, settled=ONE_PAIR).inner:
        np.testing.assert_allclose(boxes.scores, 0.6 * (1 - DOUBT * (1 - certainty)), rtol=1e-5)


@pytest.mark.parametrize('scores, label', [((0.9, 0.5), 3), ((0.5, 0.9), 7), ((0.6, 0.6), 3)])
def test_a_flipped_label_keeps_one_id_and_takes_the_surer_label(scores, label):
    left, right = keyframes(BOX, parabola(EVEN), left=dict(scores=scores[:1], labels=[3]),
                            right=dict(scores=scores[1:], labels=[7]))
    filled = fill(left, right)
    assert filled.right.track_ids.tolist() == [1] and filled.right.labels.tolist() == [7]
    for boxes in filled.inner:
        assert boxes.labels.tolist() == [label] and boxes.track_ids.tolist() == [1]


def test_weak_boxes_of_two_classes_are_two_objects():
    left, right = keyframes(BOX, parabola(EVEN), left=dict(scores=[0.9], labels=[3]),
                            right=dict(scores=[0.2], labels=[7]))
    filled = fill(left, right)
    assert filled.right.track_ids.tolist() == [2]
    assert [boxes.labels.tolist() for boxes in filled.inner] == [[3, 7]] * 7


def test_objects_that_swap_places_are_told_apart_by_where_they_meet():
    """Each ends where the other began; where they stand would join them crosswise."""
    there = np.stack([60 * EVEN, 0 * EVEN], axis=1)
    ways = np.stack([there + [0, 1] * parabola(EVEN), -there - [0, 1] * parabola(EVEN)], axis=1)
    starts = np.array([BOX, np.array(BOX) + [60, 0, 60, 0]])
    ends = starts + np.tile(ways[-1], 2)
    left = tracked(starts, ways)
    right = tracked(ends[::-1], (ways[::-1] - ways[-1])[:, ::-1])
    filled = fill(left, right)
    assert filled.right.track_ids.tolist() == [2, 1]
    for t, boxes in enumerate(filled.inner, 1):
        np.testing.assert_allclose(boxes.boxes_xyxy, starts + np.tile(ways[t], 2), atol=3)


def test_strangers_are_not_joined_where_they_stand():
    still = np.zeros((9, 1, 2))
    left, near, far = (tracked([np.array(BOX) + [x, 0, x, 0]], still, rows=[])
                       for x in (0, 30, 60))  # 0.6 and 1.2 sizes away
    assert fill(left, near).right.track_ids.tolist() == [1]
    assert fill(left, far).right.track_ids.tolist() == [2]


def test_boxes_that_leave_the_picture_are_cut_and_then_not_reported():
    way = np.stack([-40.0 * np.arange(9), np.zeros(9)], axis=1)
    left, _ = keyframes(BOX, way)
    filled = fill(left, nobody())
    assert [boxes.boxes_xyxy.tolist() for boxes in filled.inner] == [
        [[60, 100, 100, 160]], [[20, 100, 60, 160]], [[0, 100, 20, 160]], [], [], [], []]


def test_settled_pairs_are_those_whose_points_end_in_the_box():
    way = parabola(EVEN)
    left, right = keyframes(BOX, way)
    assert settled_pairs(left, right.boxes).tolist() == [[0, 0]]
    for settled in (NO_PAIRS, ONE_PAIR):
        found = fill(left, right, settled=settled)
        assert found.right.track_ids.tolist() == [1]
    end = right.boxes.boxes_xyxy
    far = right.boxes.replace(boxes_xyxy=end + [20, 0, 20, 0])  # 0.4 sizes off
    other_class = right.boxes.replace(labels=[1])
    lost, _ = keyframes(BOX, way, left=dict(lost=[(5, 0, p) for p in range(10)]))
    gone, _ = keyframes(BOX, way, left=dict(lost=[(5, 0, p) for p in range(16)]))
    assert len(settled_pairs(left, far)) == len(settled_pairs(left, other_class)) == 0
    assert len(settled_pairs(lost, right.boxes)) == len(settled_pairs(gone, right.boxes)) == 0
    assert len(settled_pairs(nobody(), right.boxes)) == 0
    assert len(settled_pairs(left, nobody().boxes)) == 0


def easiness(left, right):
    return PathBridge(left, right, EVEN, FRAME, settled=NO_PAIRS).easiness(0.25)


def test_easiness_counts_points_that_end_well_and_objects_without_a_partner():
    still = np.zeros((9, 2, 2))
    both = [BOX, [400, 100, 440, 160]]
    two, one = tracked(both, still), tracked(both[:1], still[:, :1])
    weak = tracked(both, still, scores=[0.9, 0.1])
    assert easiness(two, two) == easiness(weak, one) == easiness(nobody(), nobody()) == 1
    assert easiness(two, one) == easiness(one, two) == 0.5 and easiness(two, nobody()) == 0
    gone = [(3, 0, p) for p in range(NUM_POINTS)]
    half = tracked(both, still, lost=gone)
    assert easiness(half, half) == 0.5
    shares = []
    for num_lost in range(0, NUM_POINTS + 1, 2):
        lost = [(3, 0, p) for p in range(num_lost)]
        side = tracked(both[:1], still[:, :1], lost=lost)
        shares.append(easiness(side, side))
    assert shares == sorted(shares, reverse=True) and (shares[0], shares[-1]) == (1, 0)


@pytest.mark.parametrize('num_frames', [2, 3])
def test_short_intervals(num_frames):
    shares = np.linspace(0, 1, num_frames)
    left, right = keyframes(BOX, parabola(shares))
    filled = fill(left, right, shares)
    assert len(filled.inner) == len(filled.is_propagated) == num_frames - 2
    assert filled.right.track_ids.tolist() == [1]


def test_nobody_at_all():
    filled = fill(nobody(), nobody())
    assert [len(boxes) for boxes in filled.inner] == [0] * 7 and len(filled.right) == 0


def test_where_the_right_boxes_were_going():
    way = parabola(EVEN)
    drift = fill(*keyframes(BOX, way)).drift
    np.testing.assert_allclose(drift, [way[-1] / 8], atol=1e-4)
    assert np.isnan(fill(nobody(), keyframes(BOX, way)[1]).drift).all()


def test_ids_alone_need_no_way_back():
    """Two sizes from where it was, an object is known again by its way there."""
    left, right = keyframes(BOX, parabola(EVEN))
    linker, none = TrackLinker(), np.zeros(0, np.int64)
    left = Tracked(linker.start(left.boxes), left.rows, left.paths)
    right = Tracked(right.boxes, none, right.paths.take(none))
    for settled in (NO_PAIRS, ONE_PAIR):
        filled = PathBridge(left, right, EVEN, FRAME, settled=settled,
                            is_filled=False).fill(linker)
        assert filled.inner == [] and filled.right.track_ids.tolist() == [1]
        np.testing.assert_allclose(filled.drift, [[15, 0]], atol=1e-4)
