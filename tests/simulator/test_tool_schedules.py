"""What the benchmark of schedules makes of its measurements; nothing is run or timed here."""

import pytest
from scripts import load_script


@pytest.fixture(scope='module')
def measurement():
    return load_script('benchmarks/simulator_schedules.py')


def test_the_overhead_is_the_one_that_explains_the_measurement(measurement):
    case = next(case for case in measurement.all_cases() if case.method == measurement.CALIBRATED)
    for overhead_s in (0.0, 0.0012):
        measured_s = measurement.predict(case.table, case.costs, overhead_s=overhead_s)
        found = measurement.fitted_overhead(case.table, case.costs, measured_s)
        assert found == pytest.approx(overhead_s, abs=1e-9)
    assert measurement.fitted_overhead(case.table, case.costs, 0.1) < 1e-9


def test_every_schedule_is_a_case_and_stages_are_uneven(measurement):
    cases = measurement.all_cases()
    assert {case.method for case in cases} == {
        'gpipe', '1f1b', 'interleaved-1f1b', 'breadth-first', 'interleaved-zero-bubble', 'zbv',
        'dualpipev', 'zeropp U=4', 'zeropp U=8'}
    settings = [case.setting for case in cases]
    assert [settings.count(each) for each in ('costs 1', 'costs 2', 'costs 2, sharded')] == [9] * 3
    for case in cases:
        assert case.table.num_ranks == (2 if case.is_sharded else 4)
        assert max(case.costs.forward) > 1.1 * min(case.costs.forward)


def test_pairs_in_another_order_are_told_and_ties_are_not(measurement):
    found = (('x', 1.0, 1.3), ('y', 1.1, 1.2), ('z', 1.102, 1.1))
    rows = [dict(setting='a', method=method, predicted_s=predicted, measured_s=measured)
            for method, predicted, measured in found]
    other = [dict(rows[0], setting='b', measured_s=9)]
    assert measurement.swapped(rows + other) == ['x before y', 'x before z']
