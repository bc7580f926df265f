import json
import os
import subprocess
import sys
from collections import Counter

import pytest


@pytest.mark.slow
@pytest.mark.fault('R1')
@pytest.mark.fault('R2')
@pytest.mark.fault('R3')
@pytest.mark.fault('R4')
@pytest.mark.fault('R7')
def test_a_little_of_all_chaos_loses_nothing_and_costs_the_stock_runner(repository, tmp_path):
    """All of it: make chaos"""
    out = tmp_path / 'chaos.json'
    result = subprocess.run(
        [sys.executable, 'tools/benchmarks/chaos.py', '--only', 'kills', 'cuts', 'flips',
         'full_disk', 'runs', '--scale', '0.02', '--json', str(out)],
        cwd=repository, capture_output=True, text=True, timeout=280,
        env=dict(os.environ, PYTHONPATH=str(repository), OMP_NUM_THREADS='1'))
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())['rows']
    assert all(row['tried'] for row in rows)
    ours = [row for row in rows if row['subject'] != 'MMEngine']
    assert len(ours) == 15 and not any(row['lost'] for row in ours)
    stock = Counter()
    for row in rows:
        stock[row['scenario']] += row['lost'] * (row['subject'] == 'MMEngine')
    # The same faults are faults elsewhere, or this proves nothing.
    assert stock['flips'] > 10 and stock['full_disk'] and stock['runs']
    kills = next(row for row in ours if row['scenario'] == 'kills')
    assert kills['tried'] == 4 and kills['torn'] > 0  # some met a file half written
