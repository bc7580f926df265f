"""Logs of trainings: where metrics stand, what summaries and times say, against a log by hand."""

import json

import pytest

from vision.common.core.errors import VisionError
from vision.common.core.scalars import find_log, read_log, require_keys, summarise, train_times

LINES = [
    dict(epoch=1, iter=10, step=10, loss=3.0, time=9.0, data_time=1.0),
    dict(epoch=1, iter=20, step=20, loss=2.0, time=2.0, data_time=1.0),
    {'top1': 40.0, 'time': 0.1, 'data_time': 0.1, 'step': 1},
    dict(epoch=2, iter=10, step=30, loss=float('nan'), time=8.0, data_time=0.4),
    dict(epoch=2, iter=20, step=40, loss=2.5, time=4.0, data_time=1.0),
    {'top1': 60.0, 'time': 0.1, 'data_time': 0.1, 'step': 0}]


@pytest.fixture
def log(tmp_path):
    path = tmp_path / 'small' / '20260101_000000' / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(map(json.dumps, LINES)) + '\n{"loss": 1.0, "ste')
    return path


def test_metrics_stand_at_the_iteration_before_them(log):
    run = read_log(log)
    assert run.name == 'small' and run.num_broken == 1
    assert run.curves['top1'] == ([20, 40], [40.0, 60.0])  # not at the epochs that the lines say
    assert run.curves['loss'][0] == [10, 20, 30, 40]
    assert run.curves['time'][1] == [9.0, 2.0, 8.0, 4.0]  # of training alone
    assert run.curves['val/time'] == ([20, 40], [0.1, 0.1])


def test_summary(log):
    rows = {row['name']: row for row in summarise(read_log(log))}
    loss = rows['loss']
    assert (loss['first'], loss['last'], loss['min'], loss['min_at']) == (3.0, 2.5, 2.0, 20)
    assert (loss['max'], loss['max_at'], loss['num_not_finite']) == (3.0, 10, 1)
    assert rows['top1']['max_at'] == 40


def test_times_by_epoch_leave_out_each_first_line(log):
    assert [(row['epoch'], row['mean_s'], row['data_share']) for row in
            train_times(read_log(log))] == [(1, 2.0, 0.5), (2, 4.0, 0.25)]
    with_all = train_times(read_log(log), include_outliers=True)
    assert [row['mean_s'] for row in with_all] == [5.5, 6.0]


def test_the_newest_run_of_a_work_dir_is_taken(log):
    other = log.parents[2] / '20260202_000000' / 'vis_data' / 'scalars.json'
    other.parent.mkdir(parents=True)
    other.write_text('{"loss": 7, "iter": 1, "step": 1}\n')
    assert find_log(log.parents[2]) == other


def test_wrong_inputs_are_refused(log, tmp_path):
    with pytest.raises(VisionError, match='(?s)VIS-INPUT-1792.*did you mean loss'):
        require_keys(read_log(log), ['los'])
    with pytest.raises(VisionError, match='VIS-INPUT-1794'):
        read_log(tmp_path / 'none')
    (tmp_path / 'x.log').write_text('11/29 - INFO - Iter(train)\n' * 3)
    with pytest.raises(VisionError, match='(?s)VIS-DATA-1799.*3 lines'):
        read_log(tmp_path / 'x.log')
    (tmp_path / 'empty.json').write_text('')
    with pytest.raises(VisionError, match='(?s)VIS-DATA-1799.*no lines'):
        read_log(tmp_path / 'empty.json')


@pytest.mark.parametrize('line', [
    '[' * 5000, '{"iter": "x", "loss": 1}', '{"iter": NaN, "loss": 1}',
    '{"iter": 1, "step": 1e400}', '{"iter": 1, "epoch": []}', '{"loss": 1' + '0' * 400 + '}'],
    ids=lambda line: line[:20])
def test_a_line_that_is_none_of_a_log_is_counted(log, line):
    log.write_text(f'{line}\n{log.read_text()}')
    run = read_log(log)
    assert run.num_broken == 2 and run.curves['loss'][0] == [10, 20, 30, 40]


def test_lines_without_a_time_are_left_out_of_the_times(log):
    first, rest = log.read_text().split('\n', 1)
    extra = dict(epoch=1, iter=5, step=5, loss=4.0)
    log.write_text('\n'.join([json.dumps(extra), first, rest]))
    assert [row['mean_s'] for row in train_times(read_log(log))] == [2.0, 4.0]
    log.write_text('\n'.join([json.dumps(extra | dict(time=7.0)), first, rest]))
    assert [row['data_share'] for row in train_times(read_log(log))] == [None, None]
