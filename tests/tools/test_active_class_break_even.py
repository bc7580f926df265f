"""The check of the cost model: rates are measured, both counts tried, rows say what they are."""

import json

import torch
from scripts import load_script

from vision.faces.core.select.break_even import HeadPlan, Machine, break_even

tool = load_script('benchmarks/active_class_break_even.py')


def test_half_and_twice_the_number_are_measured(tmp_path, monkeypatch):
    machine = Machine(4e10, 6e9, 4e10, 2e-6)
    monkeypatch.setattr(tool, 'measured_machine', lambda *_: machine)
    threads, path = torch.get_num_threads(), tmp_path / 'x.json'
    try:
        assert tool.main(['--batch', '16', '--dim', '16', '--steps', '1', '--most', '5000',
                          '--json', str(path)]) == 0
    finally:
        torch.set_num_threads(threads)
    content = json.loads(path.read_text())
    full = [check for check in content['checks'] if check['rival'] == 'full']
    found = break_even(machine, HeadPlan(16, 16))
    assert [check['classes'] for check in full] == [found // 2, 2 * found]
    assert [check['is_predicted_faster'] for check in full] == [False, True]
    assert all(min(check['measured_ms']) > 0 for check in full)
    assert content['checks'][-1]['skipped']  # the random tenth's is above --most
    assert len(content['rows']) == (1 + len(tool.GPUS)) * len(tool.BATCHES) * len(tool.DIMS)


def test_rates_are_of_this_machine():
    machine = tool.measured_machine(16, 16)
    assert 1e7 < machine.bytes_per_s < 1e13 and 0 < machine.call_s < 1e-2
    assert machine.scan_per_s < 1e13 and machine.flops_per_s < 1e14
