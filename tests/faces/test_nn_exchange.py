"""Rows over 1, 2 and 4 ranks: one loss curve; cut anew 4 -> 2 -> 3; ranks that differ."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import exchange_ranks
from rank_processes import run_ranks

from vision.faces.nn.head.gather import gather_batch
from vision.faces.nn.store.class_store import class_rows

pytestmark = pytest.mark.distributed


@pytest.fixture(scope='module')
def four(tmp_path_factory, repository):
    """What each of four processes found."""
    return run_ranks('exchange_ranks.py', tmp_path_factory.mktemp('ranks'), repository)


@pytest.fixture(scope='module')
def alone():
    run = exchange_ranks.Run()
    return run.train(0, exchange_ranks.STEPS), class_rows(run.state())


def relative(actual, expected):
    return float((torch.tensor(actual) - expected).norm() / expected.norm())


@pytest.mark.parametrize('num', [2, 4])
def test_ranks_have_the_loss_curve_of_one_process(four, alone, num):
    curve, rows = alone
    assert curve[-1] < 0.6 * curve[0]  # it learns, so the rows' steps count
    for result in four[:num]:
        assert result[f'curve{num}'] == pytest.approx(curve, rel=1e-5)
        assert relative(result[f'rows{num}'], rows) < 1e-5


def test_a_run_cut_anew_from_4_to_2_to_3_ranks_equals_the_uninterrupted_one(four, alone):
    curve, rows = alone
    assert four[0]['mixed'] == pytest.approx(curve, rel=1e-5)
    assert four[2]['mixed'] == pytest.approx(curve[:15] + curve[30:], rel=1e-5)
    assert four[3]['mixed'] == pytest.approx(curve[:15], rel=1e-5)
    assert relative(four[0]['mixed_rows'], rows) < 1e-5


def test_every_rank_names_what_they_disagree_on_and_none_hangs(four):
    assert [result['refusals'] for result in four] == [['VIS-DIST-1024'] * 2 + [4]] * 4


def test_ranges_of_sub_centres_are_cut_between_classes(four):
    ranges = [result['three_rows_a_class'] for result in four]
    assert ranges == [[0, 9], [9, 18], [18, 24], [24, 30]]


def test_one_process_needs_no_group():
    features, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    assert gather_batch(features, labels, None) == (features, labels)
