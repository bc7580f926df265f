"""The benchmark of rows that fit once runs, and a resumed process ends with the same rows."""

import json
from pathlib import Path

import torch
from scripts import load_script

ROOT = Path(__file__).resolve().parents[2]

tool = load_script('benchmarks/active_class_large.py')



def test_both_optimizers_are_measured_and_resumed_from_one_file(tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    threads = torch.get_num_threads()
    out = tmp_path / 'r.json'
    assert tool.main(['--classes', '20000', '--dim', '16', '--lists', '32', '--steps', '4',
                        '--active', '300', '--batch', '32', '--json', str(out)]) == 0
    torch.set_num_threads(threads)
    rows = json.loads(out.read_text())['rows']
    assert [row['optimizer'] for row in rows] == ['row_adagrad', 'sgd']
    for row, num_floats in zip(rows, (16 + 1, 2 * 16), strict=True):
        assert row['is_equal_after_resume'] and row['all_stepped_bytes'] == 20000 * (
            4 * num_floats + 4)
        assert 300 < row['rows_stepped'] <= 4 * 332 and row['checkpoint_bytes'] > 20000 * 64
        assert row['peak_bytes'] == max(phase['peak_bytes'] for phase in row['phases'].values())
        assert {'build_index', 'steps', 'renew_index', 'save'} <= set(row['phases'])
        assert set(row['resumed']['phases']) == {'load', 'take_rows', 'fill_index', 'last_steps'}


def test_rows_have_the_structure_of_identities():
    rows = torch.empty(20_000, 16)
    tool.fill(rows, seed=0)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
    near = (rows[:50] @ rows.T).topk(20).indices
    assert (rows[:50] @ rows.T).topk(20).values.mean() > 0.6
    assert (near[:, 1:] - near[:, :1]).abs().float().median() > 1000  # not its neighbours
