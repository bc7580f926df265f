import json

import pytest

from vision.common.core.errors import VisionError
from vision.common.core.report import read_report, shown_command, write_report


def test_a_report_says_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', [str(tmp_path / 'tools' / 'x.py'), '--json', 'a.json'])
    write_report(tmp_path / 'a.json', [dict(map50=1.0)], seed=3, note='hello')
    content = json.loads((tmp_path / 'a.json').read_text())
    assert content['rows'] == [dict(map50=1.0)] and content['seed'] == 3
    assert content['command'] == 'python tools/x.py --json a.json' and content['note'] == 'hello'
    assert content['versions']['numpy'] and content['device']['cores'] >= 1
    assert {'commit', 'date'} <= content.keys()


def test_rows_are_read_again_without_those_that_lack_a_figure(tmp_path):
    write_report(tmp_path / 'a.json', [dict(x=1), dict(x=None), dict()], seed=0)
    options = dict(code='VIS-INPUT-905', maker='tools/x.py')
    assert len(read_report(tmp_path / 'a.json', **options)['rows']) == 3
    assert read_report(tmp_path / 'a.json', column='x', **options)['rows'] == [dict(x=1)]
    with pytest.raises(VisionError, match='905.*no rows with y'):
        read_report(tmp_path / 'a.json', column='y', **options)


def test_a_changed_report_is_not_read(tmp_path):
    path = tmp_path / 'a.json'
    write_report(path, [dict(x=1.25)], seed=0)
    path.write_text(path.read_text().replace('1.25', '2.25'))
    with pytest.raises(VisionError, match='905[^$]*sha256'):
        read_report(path, code='VIS-INPUT-905', maker='tools/x.py')


def test_paths_in_commands_are_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['tools/x.py', str(tmp_path / 'data')])
    assert shown_command() == 'python tools/x.py data'
