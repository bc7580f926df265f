"""Runs through head and hook by 1, 2, 4 ranks, and by 4, 2, 3 in turn, each resumed."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import head_ranks
from rank_processes import run_ranks

from vision.common.nn.checkpoint import load_checkpoint

pytestmark = pytest.mark.distributed
# Their draws do not depend on where a row lies. An index sees the rows of its rank only.
SAME_SETS = ('full', 'random', 'centres')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def four(folder, repository):
    """What each of four processes found."""
    return run_ranks('head_ranks.py', folder, repository)


@pytest.fixture(scope='module')
def alone(folder):
    """Loss curve of one process by selector."""
    return {name: head_ranks.play(folder / f'{name}1', name).losses for name in SAME_SETS}


@pytest.mark.parametrize('selector', ['full', 'random'])
@pytest.mark.parametrize('num', [2, 4])
def test_ranks_have_the_loss_curve_of_one_process(four, alone, selector, num):
    curve = alone[selector]
    assert len(curve) == head_ranks.STEPS and curve[-1] < 0.9 * curve[0]
    for result in four[:num]:
        assert result[f'{selector}{num}'] == pytest.approx(curve, rel=1e-5)


@pytest.mark.parametrize('selector', SAME_SETS)
def test_a_run_resumed_by_4_then_2_then_3_ranks_equals_the_uninterrupted_one(four, alone,
                                                                              selector):
    curve, mixed = alone[selector], f'{selector}-mixed'
    assert four[0][mixed] == pytest.approx(curve, rel=1e-5)
    assert four[2][mixed] == pytest.approx(curve[:4] + curve[8:], rel=1e-5)
    assert four[3][mixed] == pytest.approx(curve[:4], rel=1e-5)


def test_a_run_with_an_index_goes_on_with_any_number_of_ranks(four):
    curve = four[0]['ivf-mixed']
    assert len(curve) == head_ranks.STEPS and all(map(math.isfinite, curve))
    assert four[1]['ivf-mixed'] == curve  # each rank has the loss of all samples
    assert sum(curve[-4:]) < 0.9 * sum(curve[:4])  # batches differ more than steps here


def test_ranks_that_read_different_data_are_refused_before_the_first_step(four, folder):
    for result in four[:2]:
        assert result['other_list'] == [
            'VIS-DIST-1024', 'ranks disagree on num_identities: num_identities is from 23 to 24']
        assert result['other_length'][0] == 'VIS-DIST-1024' and \
            'num_samples is from 96 to 120' in result['other_length'][1]
    assert not list(folder.glob('[ab]/*.pth'))


def whole(stores):
    """Rows, optimizer state and last steps of all classes, with the number of ranges."""
    stores = sorted(stores, key=lambda state: state['row_start'])
    parts = [dict(state['state'], rows=state['rows'], last=state['last']) for state in stores]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, len(stores)


@pytest.mark.parametrize('selector', head_ranks.HEADS)
@pytest.mark.parametrize('leg', [0, 1])
def test_rows_and_momentum_are_cut_anew_bit_for_bit(four, folder, selector, leg):
    (before, step), (after, end) = head_ranks.LEGS[leg:leg + 2]
    checkpoint = load_checkpoint(folder / f'{selector}-mixed' / f'iter_{step}.pth')
    saved, num_saved = whole(checkpoint['active_class']['stores'])
    found, num_found = whole(torch.load(folder / f'{selector}-start{end}.pt', weights_only=True))
    assert (num_saved, num_found) == (before, after)
    assert saved.keys() == found.keys() and 'momentum' in saved
    for name, tensor in saved.items():
        assert torch.equal(tensor, found[name]), name
    assert saved['momentum'].abs().sum() > 0
