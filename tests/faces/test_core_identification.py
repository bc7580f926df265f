"""Ranks and open-set rates: hand cases; the search form against the exact one."""

import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.faces.core.evaluate.identification import (
    exact_search,
    mates,
    rank1_among_distractors,
    rank_by_search,
    rank_exactly,
    rank_k,
    tpir_at_fpir,
)
from vision.faces.core.evaluate.verification import unit_rows

GALLERY = np.array([[1.0, 0], [0.8, 0.6], [0, 1.0], [-1.0, 0]], dtype=np.float32)
NAMES = np.array([7, 7, 3, 9])


def test_ranks_by_hand():
    probes = np.array([[0.9, 0.435], [0.6, 0.8], [0, -1.0]], dtype=np.float32)
    found = rank_exactly(GALLERY, NAMES, unit_rows(probes), np.array([7, 3, 4]))
    assert found.best_label.tolist() == [7, 7, 7]
    assert found.rank.tolist() == [1, 2, 0] and found.is_mated.tolist() == [True, True, False]
    assert rank_k(found, 1) == 0.5 and rank_k(found, 2) == 1.0


def test_ties_count_against_the_probe():
    probe = np.array([[0.0, 1.0]], dtype=np.float32)
    gallery = np.array([[1.0, 0], [-1.0, 0]], dtype=np.float32)
    assert rank_exactly(gallery, np.array([0, 1]), probe, np.array([0])).rank.tolist() == [2]


def test_open_set_by_hand():
    gallery = np.eye(3, dtype=np.float32)
    probes = unit_rows(np.array([[1, .1, 0], [1, 0.9, 0], [0.5, 0.5, 0.45], [1, 0.95, 0.9]]))
    found = rank_exactly(gallery, np.arange(3), probes, np.array([0, 0, 8, 9]))
    # Strangers score 0.60 and 0.61; at FPIR 0.5 the threshold is the second best of them.
    assert tpir_at_fpir(found, [0.5]) == [1.0]


@pytest.mark.parametrize('block', [3, 256])
def test_search_over_the_whole_gallery_equals_the_exact_ranking(block):
    rng = np.random.default_rng(0)
    names = rng.integers(0, 12, 60)
    gallery = unit_rows(rng.normal(size=(60, 8)))
    labels = rng.integers(0, 15, 50)
    probes = unit_rows(rng.normal(size=(50, 8)))
    exact = rank_exactly(gallery, names, probes, labels, block=block)
    found = rank_by_search(lambda rows, k: exact_search(gallery, rows, k), names, probes, labels,
                           depth=60)
    assert found.rank.tolist() == exact.rank.tolist()
    assert found.best_label.tolist() == exact.best_label.tolist()
    assert found.best_score == pytest.approx(exact.best_score, abs=1e-6)


def test_shallow_search_leaves_out_what_it_did_not_return():
    probes = np.array([[-1.0, 0]], dtype=np.float32)
    found = rank_by_search(lambda rows, k: exact_search(GALLERY, rows, k), NAMES, probes,
                           np.array([7]), depth=2)
    assert found.rank.tolist() == [0] and found.is_mated.tolist() == [True]


def test_open_set_without_strangers_is_refused():
    found = rank_exactly(GALLERY, NAMES, GALLERY, NAMES)
    with pytest.raises(VisionError, match='VIS-DATA-1113'):
        tpir_at_fpir(found, [0.1])
    with pytest.raises(VisionError, match='VIS-DATA-1067'):
        rank_exactly(GALLERY[:0], NAMES[:0], GALLERY, NAMES)


def test_mates_are_all_ordered_pairs_of_one_person():
    pairs = set(zip(*(part.tolist() for part in mates(np.array([4, 9, 4, 7, 4, 9]))), strict=True))
    assert pairs == {(0, 2), (2, 0), (0, 4), (4, 0), (2, 4), (4, 2), (1, 5), (5, 1)}


def test_a_mate_behind_a_distractor_is_not_found():
    # Two pictures at a cosine of 0.8; the first distractor is at 0.6 of the first of them, the
    # second at 0.8 of it (a tie): then only the other way round is found.
    probes = np.array([[1, 0, 0], [0.8, 0.6, 0]], dtype=np.float32)
    distractors = np.array([[0.6, -0.8, 0], [1.6, -1.2, 0]], dtype=np.float32)
    assert rank1_among_distractors(probes, np.zeros(2), distractors, [2, 1]) == [0.5, 1.0]


@pytest.mark.parametrize('at_once', [1, 100, 1 << 24])
def test_distractors_in_blocks_equal_the_whole_matrix(monkeypatch, at_once):
    from vision.faces.core.evaluate import identification
    monkeypatch.setattr(identification, 'SCORES_AT_ONCE', at_once)
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 6, 24)
    probes = unit_rows(np.eye(6, 8)[labels] + rng.normal(0, 0.5, (24, 8)))
    distractors = rng.normal(size=(90, 8)).astype(np.float32)
    expected = []
    for size in (1, 10, 90):
        scores = probes @ unit_rows(distractors[:size]).T
        expected.append(np.mean([(probes[i] @ probes[j] > scores[i]).all() for i in range(24)
                                 for j in range(24) if i != j and labels[i] == labels[j]]))
    assert rank1_among_distractors(probes, labels, distractors, [1, 10, 90]) == expected
    assert expected[0] > expected[2] > 0
    with pytest.raises(VisionError, match='VIS-DATA-1114'):
        rank1_among_distractors(probes, labels, distractors, [91])
    with pytest.raises(VisionError, match='VIS-DATA-1114'):
        rank1_among_distractors(probes, np.arange(24), distractors, [9])
    distractors[70] = 0
    with pytest.raises(VisionError, match='first: row 70'):
        rank1_among_distractors(probes, labels, distractors, [90])
