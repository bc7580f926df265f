"""Rows over 1, 2 and 4 ranks: the controller decides alike, and nobody fails alone."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import adaptive_ranks
from rank_processes import run_ranks
from rows import batch_near

pytestmark = pytest.mark.distributed


@pytest.fixture(scope='module')
def found(tmp_path_factory, repository):
    return run_ranks('adaptive_ranks.py', tmp_path_factory.mktemp('adaptive'), repository,
                     timeout=120)


def test_the_number_of_rows_and_the_mass_do_not_depend_on_the_ranks(found):
    alone = found[0]['1']
    active = [entry['num_active'] for entry in alone]
    assert alone[-1]['phase'] == 'index' and active[-1] == active[-2]  # it has settled
    assert 1.5 * active[0] < active[-1] < adaptive_ranks.NUM_ROWS / 4
    for world in ('2', '4'):
        for rank in range(int(world)):
            log = found[rank][world]
            assert log == found[0][world]
            for ours, theirs in zip(log, alone, strict=True):
                assert ours['num_active'] == pytest.approx(theirs['num_active'], rel=0.01)
                for name in ('outside_mass', 'random_outside_mass', 'recall', 'drift'):
                    assert ours[name] == pytest.approx(theirs[name], abs=0.01), name


def test_a_selection_on_the_device_holds_the_mass_that_one_rank_would_hold(found):
    rows = adaptive_ranks.some_rows()
    features, _ = batch_near(rows, num=64)
    probability = (32.0 * features @ rows.T).softmax(1)
    masses = []
    for world in (1, 2, 4):
        chosen = sum((found[rank][f'device{world}'] for rank in range(world)), [])
        assert 600 <= len(set(chosen)) == len(chosen) < 610
        masses.append(probability[:, chosen].sum(1).mean().item())
    # Each rank fills its part of the places from its own rows.
    assert masses[0] > 0.9 and masses == pytest.approx([masses[0]] * 3, abs=0.02)


def test_candidates_are_ranked_by_their_probability_among_all_rows(found):
    """Judge: the softmax over the whole matrix."""
    rows = adaptive_ranks.some_rows()
    features, _ = batch_near(rows, num=16)
    expected = (24.0 * features @ rows.T).softmax(1).sum(0)
    mass = torch.tensor(found[0]['mass'] + found[1]['mass'])
    torch.testing.assert_close(mass, expected, rtol=1e-4, atol=1e-8)


def test_the_oracle_of_two_ranks_chooses_as_the_slow_one(found):
    for rank in (0, 1):
        for slow, quick in found[rank]['oracles']:
            assert slow == quick and len(slow) == 300


def test_a_build_that_fails_on_one_rank_is_raised_by_all_at_the_same_step(found):
    assert found[0]['failed'] == found[1]['failed'] == [6, 'VIS-RUN-1047', 'rank 1, selector']
