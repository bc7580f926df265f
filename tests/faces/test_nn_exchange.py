"""Rows over 1, 2 and 4 ranks: one loss curve; cut anew 4 -> 2 -> 3; ranks that differ."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import exchange_ranks  # noqa: E402

from vision.faces.nn.class_store import class_rows  # noqa: E402
from vision.faces.nn.gather import gather_batch  # noqa: E402

pytestmark = pytest.mark.distributed


@pytest.fixture(scope='module')
def four(tmp_path_factory, repository):
    """What each of four processes found."""
    folder = tmp_path_factory.mktemp('ranks')
    environment = {**os.environ, 'PYTHONPATH': str(repository), 'OMP_NUM_THREADS': '1'}
    processes = [subprocess.Popen(
        [sys.executable, str(HERE / 'exchange_ranks.py'), str(rank), '4', str(folder)],
        env=environment, stderr=subprocess.PIPE, text=True) for rank in range(4)]
    try:
        faults = [process.communicate(timeout=180)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * 4, faults
    return [json.loads((folder / f'{rank}.json').read_text()) for rank in range(4)]


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
