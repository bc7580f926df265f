"""Pair lists, ten-fold verification and TAR at FAR: hand cases, laws, refusals."""

import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.faces.core.data.pairs import read_pairs, stratified_folds
from vision.faces.core.evaluate.verification import (
    ScoreHistogram,
    all_pairs_tar,
    pair_cosines,
    pair_distances,
    tar_at_far,
    ten_fold,
    unit_rows,
)


def write(folder, text):
    path = folder / 'pairs.txt'
    path.write_text(text)
    return path


def test_lfw_form_keeps_the_folds_of_the_file(tmp_path):
    text = '2\t1\nAda\t1\t2\nAda\t1\tBob\t3\nBob\t3\t4\nBob\t4\tAda\t2\n'
    pairs = read_pairs(write(tmp_path, text))
    assert pairs.paths == ('Ada/Ada_0001.jpg', 'Ada/Ada_0002.jpg', 'Bob/Bob_0003.jpg',
                           'Bob/Bob_0004.jpg')
    assert pairs.first.tolist() == [0, 0, 2, 3] and pairs.second.tolist() == [1, 2, 3, 1]
    assert pairs.same.tolist() == [True, False, True, False]
    assert pairs.folds.tolist() == [0, 0, 1, 1]


def test_list_form_and_paths_with_spaces(tmp_path):
    pairs = read_pairs(write(tmp_path, 'a b.jpg,c.jpg,1\nc.jpg,d.jpg,0\n'), num_folds=1)
    assert pairs.paths == ('a b.jpg', 'c.jpg', 'd.jpg') and pairs.same.tolist() == [True, False]


def test_two_lines_make_a_pair_in_calfw_and_cplfw(tmp_path):
    pairs = read_pairs(write(tmp_path, 'a.jpg 1\nb.jpg 1\n\na.jpg 0\nc.jpg 0\n'), num_folds=1)
    assert pairs.paths == ('a.jpg', 'b.jpg', 'c.jpg') and pairs.same.tolist() == [True, False]
    assert pairs.first.tolist() == [0, 0] and pairs.second.tolist() == [1, 2]


def test_folds_of_a_protocol_list_are_its_own():
    same = np.tile(np.repeat([True, False], 3), 10)  # LFW in miniature: 3 + 3 pairs a fold
    assert stratified_folds(same, 10).tolist() == np.repeat(np.arange(10), 6).tolist()


@pytest.mark.parametrize('num_same, num_other', [(10, 25), (13, 11), (101, 99)])
def test_folds_are_level_in_both_kinds(num_same, num_other):
    same = np.random.default_rng(0).permutation(np.arange(num_same + num_other) < num_same)
    folds = stratified_folds(same, 10)
    for kind in (same, ~same):
        counts = np.bincount(folds[kind], minlength=10)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize('text, code', [
    ('', 'VIS-DATA-1062'), ('2\t1\nAda\t1\t2\n', 'VIS-DATA-1062'),
    ('1\t1\nAda\t1\t2\nAda\t1\t3\n', 'VIS-DATA-1062'),
    ('1\t1\nAda\t1\t2\nAda\tx\tBob\t3\n', 'VIS-DATA-1061'),
    ('a.jpg b.jpg 2\n', 'VIS-DATA-1061'), ('a.jpg b.jpg\n', 'VIS-DATA-1061'),
    ('a.jpg b.jpg 1\n' * 20, 'VIS-DATA-1110'), ('a.jpg 1\nb.jpg 0\n', 'VIS-DATA-1061'),
    ('a.jpg 1\nb.jpg 1\nc.jpg 0\n', 'VIS-DATA-1061'), ('a.jpg 1\n../b 1\n', 'VIS-DATA-1061')])
def test_broken_lists_are_refused(tmp_path, text, code):
    with pytest.raises(VisionError, match=code):
        read_pairs(write(tmp_path, text))


def test_a_bad_line_is_named(tmp_path):
    with pytest.raises(VisionError, match='line 2'):
        read_pairs(write(tmp_path, 'a.jpg b.jpg 1\nc.jpg d.jpg x\n'))


def test_threshold_of_a_fold_comes_from_the_others():
    # Fold 0 would need a threshold above 1.5; fold 1 is best with any in (0.5, 1.0].
    distances = np.array([1.5, 2.0, 0.5, 1.0])
    same, folds = np.array([True, False, True, False]), np.array([0, 0, 1, 1])
    result = ten_fold(distances, same, folds)
    assert result.thresholds == pytest.approx([0.51, 1.51])
    assert result.accuracies.tolist() == [0.5, 0.5]  # 1.5 refused; then 1.0 accepted
    assert result.mean == 0.5 and result.std == 0


def test_ten_fold_agrees_with_counting():
    rng = np.random.default_rng(1)
    same = np.tile([True, False], 200)
    distances = np.clip(np.where(same, 1.0, 1.8) + rng.normal(0, 0.4, 400), 0, 4)
    folds, grid = stratified_folds(same), np.arange(0, 4, 0.01)
    expected = []
    for fold in range(10):
        train = folds != fold
        scores = [((distances[train] < t) == same[train]).mean() for t in grid]
        best = grid[int(np.argmax(scores))]
        expected.append(((distances[~train] < best) == same[~train]).mean())
    assert ten_fold(distances, same, folds).accuracies == pytest.approx(expected)


def test_distances_are_two_minus_two_cosines():
    rows = unit_rows(np.random.default_rng(2).normal(size=(6, 8)))
    first, second = np.array([0, 2]), np.array([1, 5])
    cosines = (rows[first] * rows[second]).sum(axis=1)
    assert pair_distances(rows, first, second) == pytest.approx(2 - 2 * cosines, abs=1e-6)
    assert pair_cosines(rows, first, second) == pytest.approx(cosines, abs=1e-6)


def test_blocks_of_pairs_change_nothing(monkeypatch):
    from vision.faces.core.evaluate import verification
    rng = np.random.default_rng(5)
    rows, ends = unit_rows(rng.normal(size=(9, 8))), rng.integers(0, 9, (2, 50))
    whole = pair_distances(rows, *ends), pair_cosines(rows, *ends)
    monkeypatch.setattr(verification, 'PAIRS_AT_ONCE', 7)
    assert (pair_distances(rows, *ends) == whole[0]).all()
    assert (pair_cosines(rows, *ends) == whole[1]).all()


def test_a_row_without_direction_is_named():
    with pytest.raises(VisionError, match='first: row 1'):
        unit_rows(np.array([[1.0, 0], [np.nan, 0], [0, 0]]))


def test_tar_at_far_by_hand():
    impostor, genuine = np.array([0.9, 0.5, 0.4, 0.1]), np.array([0.95, 0.6, 0.5, 0.3])
    result = tar_at_far(genuine, impostor, 0.25)  # one impostor may pass: threshold 0.5
    assert (result.tar, result.far, result.threshold) == (0.5, 0.25, 0.5)
    assert tar_at_far(genuine, impostor, 1.0).tar == 1.0


def test_a_rate_below_one_pair_is_refused():
    with pytest.raises(VisionError, match='VIS-DATA-1064'):
        tar_at_far(np.ones(3), np.zeros(99), 1e-2)
    with pytest.raises(VisionError, match='VIS-DATA-1112'):
        tar_at_far(np.ones(0), np.zeros(100), 1e-2)


@pytest.mark.parametrize('block', [7, 64, 500])
def test_streamed_rate_equals_the_full_matrix(block):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 40, 300)
    rows = unit_rows(rng.normal(size=(40, 16))[labels] + rng.normal(size=(300, 16)))
    upper = np.triu_indices(300, k=1)
    scores, same = (rows @ rows.T)[upper], (labels[:, None] == labels)[upper]
    fars = (1e-3, 1e-2, 0.3, 1.0)
    for result, far in zip(all_pairs_tar(rows, labels, fars, block=block), fars, strict=True):
        exact = tar_at_far(scores[same], scores[~same], far)
        assert result.tar == exact.tar and result.far == pytest.approx(exact.far)


def test_ties_in_one_bin_stay_exact():
    scores = np.array([0.5] * 6 + [0.2] * 4)
    same = np.array([True, True, False, False, False, False, True, False, False, False])
    coarse = ScoreHistogram(num_bins=4)
    coarse.add(scores, same)
    fine = ScoreHistogram(num_bins=4, keep=[coarse.critical_bin(0.3)])
    fine.add(scores, same)
    assert fine.tar_at_far(0.3).tar == tar_at_far(scores[same], scores[~same], 0.3).tar == 0.0
