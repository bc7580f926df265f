"""`vision pipeline` and the simulated part of benchmarks/pipeline.py."""

import json

import pytest
from scripts import load_script

from vision.cli import pipeline as tool
from vision.common.core.errors import VisionError
from vision.pipeline.core.tasks import COMPUTE, Costs

benchmark = load_script('benchmarks/pipeline.py')
SMALL = ['--ranks', '2', '--chunks', '2', '--microbatches', '4']


def test_schedules_side_by_side(tmp_path, capsys):
    out = tmp_path / 'report'
    assert tool.main([*SMALL, '--unit', '2', '--compare', '1f1b', 'zbv', '--gather', '0.5',
                      '--out', str(out)]) == 0
    said = capsys.readouterr().out
    assert 'zeropp U=2' in said and '1f1b' in said and 'zbv' in said
    assert all((out / name).stat().st_size > 10_000 for name in ('timeline.png', 'memory.png'))
    trace = json.loads((out / 'trace.json').read_text())
    tasks = [event for event in trace['traceEvents'] if event.get('cat') in COMPUTE]
    assert len(tasks) == 4 * 4 * 3 and trace['otherData']['schedule'] == 'zeropp'


def test_a_unit_is_chosen_within_the_budget(capsys):
    assert tool.main([*SMALL, '--budget', '6']) == 0
    said = capsys.readouterr().out
    assert 'units tried; taken: zeropp U=2' in said and ' no ' in said and ' yes ' in said


def costs_file(tmp_path, **changes):
    content = dict(forward=[1, 2, 3, 4], backward_input=[1] * 4, backward_weight=[1] * 4,
                   latency=0.1, activation_bytes=[10**6] * 4, weight_bytes=[10**7] * 4,
                   static_bytes=[10**8] * 2) | changes
    path = tmp_path / 'costs.json'
    path.write_text(json.dumps({key: value for key, value in content.items()
                                if value is not None}))
    return path


def test_measured_costs(tmp_path, capsys):
    path = costs_file(tmp_path)
    assert tool.main([*SMALL, '--costs-file', str(path), '--compare', 'gpipe']) == 0
    assert 'MB' in capsys.readouterr().out
    costs = tool.read_costs(path, 2, 4)
    assert costs.forward == (1, 2, 3, 4) and costs.gather == () and costs.latency == 0.1


@pytest.mark.parametrize(('changes', 'said'), [
    (dict(forward=[1, 2]), 'forward has 2 values, 4 are needed'), (dict(forward=None), '0 values'),
    (dict(latencies=1), "unknown keys ['latencies']"), (dict(gather=[1, 1, -1, 1]), 'gather'),
    (dict(static_bytes=[1] * 4), 'static_bytes has 4 values, 2 are needed'),
    (dict(forward=3), 'int'), (dict(forward=[1, 2, 3, float('inf')]), 'no number'),
    (dict(latency=float('nan')), 'latency'), (dict(latency=-1), 'latency'),
    (dict(activation_bytes=[10**400] * 4), 'too large')])
def test_costs_that_cannot_be_are_refused(tmp_path, changes, said):
    with pytest.raises(VisionError, match='VIS-DATA-1501') as caught:
        tool.read_costs(costs_file(tmp_path, **changes), 2, 4)
    assert said in str(caught.value)


def test_costs_that_are_nested_without_end_are_refused(tmp_path):
    (tmp_path / 'costs.json').write_text('[' * 5000)
    with pytest.raises(VisionError, match='VIS-DATA-1501'):
        tool.read_costs(tmp_path / 'costs.json', 2, 4)


def test_chunks_that_cannot_be_joined_are_refused():
    with pytest.raises(VisionError, match='VIS-CONFIG-1504'):
        tool.main(['--ranks', '2', '--chunks', '3', '--microbatches', '4', '--unit', '2',
                   '--compare', 'zbv'])


@pytest.mark.parametrize('option', [['--costs', '1:2'], ['--costs', '1:1:-1'], ['--latency', '-1'],
                                    ['--unit', 'x'], ['--budget', '0.4'], ['--active', 'x']])
def test_arguments_that_are_none(option, capsys):
    with pytest.raises((SystemExit, VisionError)):
        tool.main([*SMALL, *option])


def test_costs_of_joined_chunks():
    costs = Costs((1, 2, 3, 4), (1, 1, 1, 1), (0, 1, 0, 1), latency=0.5, weight_bytes=(5, 6, 7, 8))
    merged = costs.merged(2)
    assert merged.forward == (3, 7) and merged.backward_weight == (1, 1)
    assert merged.weight_bytes == (11, 15) and merged.gather == () and merged.latency == 0.5


def test_the_benchmark_writes_its_rows(tmp_path, monkeypatch, capsys):
    small = benchmark.Setting(2, 2, 4, (2, 4), (1, 1.3, 0.7), 0.25, gather=0.5)
    monkeypatch.setattr(benchmark, 'SETTINGS', (small,))
    path = tmp_path / 'rows.json'
    assert benchmark.main(['--json', str(path)]) == 0
    content = json.loads(path.read_text())
    methods = [row['method'] for row in content['rows']]
    assert methods[:2] == ['gpipe', '1f1b'] and methods[-2:] == ['zeropp U=2', 'zeropp U=4']
    assert len(methods) == 9 and content['part'] == 'simulated'
    assert all(0 <= row['bubble_percent'] < 100 and row['gathers_1'] >= row['gathers_2']
               for row in content['rows'])
    assert 'P=2 V=2 M=4, 1:1.3:0.7, latency 0.25, gather 0.5' in capsys.readouterr().out
