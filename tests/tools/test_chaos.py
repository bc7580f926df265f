import json
import os
import subprocess
import sys
from collections import Counter

import pytest


@pytest.fixture(scope='module')
def rows(repository, tmp_path_factory):
    """A little of all chaos; all of it: make chaos. Faults of ranks are mostly waited for, so
    they run beside the rest."""
    folder = tmp_path_factory.mktemp('chaos')
    parts = dict(files=['kills', 'cuts', 'flips', 'full_disk', 'runs'], ranks=['rank_faults'])
    children = [subprocess.Popen(
        [sys.executable, 'benchmarks/chaos.py', '--only', *names, '--scale', '0.02',
         '--json', str(folder / f'{part}.json')],
        cwd=repository, stderr=subprocess.PIPE, text=True,
        env=dict(os.environ, PYTHONPATH=str(repository), OMP_NUM_THREADS='1'))
        for part, names in parts.items()]
    for child in children:
        _, said = child.communicate(timeout=280)
        assert child.returncode == 0, said
    return [row for part in parts
            for row in json.loads((folder / f'{part}.json').read_text())['rows']]


@pytest.mark.slow
@pytest.mark.fault('R1', 'R2', 'R3', 'R4', 'R7')
def test_a_little_of_all_chaos_loses_nothing_and_costs_the_stock_runner(rows):
    assert all(row['tried'] for row in rows)
    ours = [row for row in rows if row['subject'] not in ('MMEngine', 'torch alone')]
    assert len(ours) == 17 and not any(row['lost'] for row in ours)
    stock = Counter()
    for row in rows:
        stock[row['scenario']] += row['lost'] * (row['subject'] == 'MMEngine')
    # The same faults are faults elsewhere, or this proves nothing.
    assert stock['flips'] > 10 and stock['full_disk'] and stock['runs']
    kills = next(row for row in ours if row['scenario'] == 'kills')
    assert kills['tried'] == 4 and kills['torn'] > 0  # some met a file half written


@pytest.mark.slow
@pytest.mark.fault('R28', 'R29')
def test_a_rank_that_dies_or_hangs_is_named_and_torch_alone_names_nobody(rows):
    found = {(row['subject'], row['kind']): row for row in rows
             if row['scenario'] == 'rank_faults'}
    assert len(found) == 4
    for kind in ('death', 'hang'):
        assert found['watchdog', kind]['lost'] == 0
        assert found['torch alone', kind]['not_named'] == found['torch alone', kind]['tried'] == 1
