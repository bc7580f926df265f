import json

from vision.common.core.report import shown_command, write_report


def test_a_report_says_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', [str(tmp_path / 'tools' / 'x.py'), '--json', 'a.json'])
    write_report(tmp_path / 'a.json', [dict(map50=1.0)], seed=3, note='hello')
    content = json.loads((tmp_path / 'a.json').read_text())
    assert content['rows'] == [dict(map50=1.0)] and content['seed'] == 3
    assert content['command'] == 'python tools/x.py --json a.json' and content['note'] == 'hello'
    assert content['versions']['numpy'] and content['device']['cores'] >= 1
    assert {'commit', 'date'} <= content.keys()


def test_paths_in_commands_are_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['tools/x.py', str(tmp_path / 'data')])
    assert shown_command() == 'python tools/x.py data'
