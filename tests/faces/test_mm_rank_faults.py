"""What one rank must refuse, all refuse at the same place, and name it: none is left waiting."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from rank_processes import run_ranks

pytestmark = pytest.mark.distributed


@pytest.fixture(scope='module')
def two(tmp_path_factory, repository):
    """What each of two processes found; a rank that waits for another ends after 20 seconds."""
    results = run_ranks('fault_ranks.py', tmp_path_factory.mktemp('ranks'), repository, num=2)
    assert len(results) == 2
    return results


@pytest.mark.parametrize('case, code, where', [
    ('label', 'VIS-DATA-1014', 'gt_label of rank 1'),
    ('label_ahead', 'VIS-DATA-1014', 'gt_label of rank 1'),
    ('gradient', 'VIS-RUN-1026', 'rank 1, rows of classes 100 to 199'),
    ('row', 'VIS-RUN-1047', 'rank 0, selector')])
def test_both_ranks_raise_what_one_has_found_and_meet_again(two, case, code, where):
    for result in two:
        assert result[case] == [[code, where], 2]


def test_rows_of_a_refused_step_are_unchanged_on_both_ranks(two):
    assert [result['is_unchanged'] for result in two] == [True, True]


def test_ranks_without_a_fault_raise_nothing(two):
    assert [result['none'] for result in two] == [[None, 2]] * 2
