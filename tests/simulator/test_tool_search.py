"""What the benchmark of the search writes; processes of its own and times are left out here."""

import pytest
from scripts import load_script


@pytest.fixture
def measurement():
    return load_script('benchmarks/simulator_search.py')


def test_rows_have_the_search_its_judge_and_a_step(measurement, monkeypatch, capsys):
    small = 'layers=2,hidden=256,heads=4,vocab=1000'
    worlds = [measurement.World(small, 128, 4, 4), measurement.World(small, 128, 2, 4,
                                                                 is_judged=False)]
    monkeypatch.setattr(measurement, 'WORLDS', worlds)
    monkeypatch.setattr(measurement, 'STEPS', measurement.STEPS[:1])
    monkeypatch.setattr(measurement, '_alone', lambda function, *rest: function(*rest))
    judged, alone, step = measurement.time_search()
    assert judged['is_same'] and judged['exhaustive_s'] > 0
    assert 'is_same' not in alone and 'exhaustive_s' not in alone
    assert judged['num_possible'] >= judged['num_dropped'] + judged['num_played'] > 0
    assert step['num_gpus'] == 512 and step['global_batch'] == 1024 and step['best_s'] > 0
    measurement.show_search([judged, alone, step])
    text = capsys.readouterr().out
    assert text.count('GPUs') == 3 and text.count('the same winner') == 1


def test_worlds_end_where_the_steps_are(measurement):
    assert [world.num_gpus for world in measurement.WORLDS] == [8, 8, 8, 16, 32, 64, 512]
    assert {(each.world_size, each.global_batch) for each in measurement.STEPS} == {(512, 1024)}
