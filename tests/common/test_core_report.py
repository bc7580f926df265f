import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vision.common.core.errors import VisionError
from vision.common.core.report import (
    commit,
    earlier_report,
    is_evidence,
    read_report,
    refuse_no_evidence,
    shown_command,
    write_report,
)


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


def test_a_missing_report_is_told(tmp_path):
    with pytest.raises(VisionError, match='905.*cannot be read[^$]*No such file'):
        read_report(tmp_path / 'none.json', code='VIS-INPUT-905', maker='tools/x.py')


def test_evidence_lies_in_docs_results_of_any_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_evidence('docs/results/a.json') and is_evidence('docs/results/more/a.json')
    assert not is_evidence('results/a.json') and not is_evidence('docs/a.json')
    (tmp_path / 'docs' / 'results').mkdir(parents=True)
    (tmp_path / 'link').symlink_to(tmp_path / 'docs' / 'results')
    assert is_evidence('link/a.json')


def test_evidence_needs_to_be_recorded(tmp_path):
    path = tmp_path / 'docs' / 'results' / 'a.json'
    for refused in (lambda: refuse_no_evidence(path, is_recorded=False),
                    lambda: write_report(path, [dict(x=1)])):
        with pytest.raises(VisionError, match='VIS-INPUT-1750'):
            refused()
    assert not path.parent.exists()  # refused before anything is made
    with pytest.raises(VisionError, match='VIS-RUN-1751.*\n.*\n.*no --json'):
        refuse_no_evidence(None, is_recorded=True)
    refuse_no_evidence(None, is_recorded=False)


COMMAND = """
import argparse, sys
from vision.common.core.errors import run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report

def main():
    parser = argparse.ArgumentParser()
    add_report_options(parser)
    args = parser.parse_args()
    refuse_no_evidence(args.json, is_recorded=args.record)
    open('vision/late.txt', 'w').close()  # the checkout goes on while it runs
    write_report(args.json, [dict(x=1)], is_recorded=args.record)

run_cli(main)
"""


@pytest.fixture
def checkout(tmp_path, repository) -> Path:
    """A repository of its own with what writes reports, all committed."""
    def ignore(folder, names):
        return [name for name in names if Path(folder, name).is_dir()
                and name not in ('common', 'core') or name == '__pycache__']
    shutil.copytree(repository / 'vision', tmp_path / 'vision', ignore=ignore)
    (tmp_path / 'run.py').write_text(COMMAND)
    git(tmp_path, 'init', '--quiet')
    git(tmp_path, 'add', '-A')
    git(tmp_path, '-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '--quiet', '-m', 'x')
    return tmp_path


def git(folder, *arguments) -> str:
    return subprocess.run(['git', *arguments], cwd=folder, check=True, capture_output=True,
                          text=True).stdout.strip()


def run(folder, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, 'run.py', *arguments], cwd=folder, text=True,
                          capture_output=True, env=os.environ | dict(PYTHONPATH=str(folder)))


def test_evidence_is_of_a_commit(checkout):
    path = checkout / 'docs' / 'results' / 'a.json'
    done = run(checkout, '--json', str(path), '--record')
    assert done.returncode == 0, done.stderr
    assert json.loads(path.read_text())['commit'] == git(checkout, 'rev-parse', '--short', 'HEAD')
    (checkout / 'vision' / 'late.txt').unlink()
    done = run(checkout, '--json', str(path), '--record')  # results alone are no changes
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('change', ['vision/version.py', 'vision/new_module.py'])
def test_code_that_no_commit_holds_makes_no_evidence(checkout, change):
    with (checkout / change).open('a') as file:
        file.write('\n')
    path = checkout / 'docs' / 'results' / 'a.json'
    done = run(checkout, '--json', str(path), '--record')
    assert done.returncode == 2 and 'VIS-RUN-1751' in done.stderr and not path.exists()
    done = run(checkout, '--json', str(checkout / 'a.json'))
    assert done.returncode == 0 and json.loads(
        (checkout / 'a.json').read_text())['commit'].endswith('+')


def test_below_another_repository_there_is_no_commit(checkout):
    """As for a package that was installed into an environment inside of one."""
    (checkout / 'site').mkdir()
    shutil.move(checkout / 'vision', checkout / 'site' / 'vision')
    done = subprocess.run([sys.executable, '-c', 'from vision.common.core.report import commit; '
                           'print(repr(commit()))'], cwd=checkout / 'site', text=True,
                          capture_output=True, env=os.environ | dict(
                              PYTHONPATH=str(checkout / 'site')))
    assert done.stdout.strip() == "''", done.stderr
    assert len(commit()) >= 7 or not commit()


def test_experiments_go_on_from_rows_that_name_their_commit(tmp_path):
    path = tmp_path / 'a.json'
    assert earlier_report(path) == {}
    write_report(path, [dict(x=1, commit='abc1234'), dict(x=2, commit='def5678')])
    assert [row['x'] for row in earlier_report(path)['rows']] == [1, 2]
    write_report(path, [])
    assert earlier_report(path)['rows'] == []
    write_report(path, [dict(x=1, commit='abc1234'), dict(x=2)])
    with pytest.raises(VisionError, match='VIS-DATA-1752[^$]*1 rows do not say'):
        earlier_report(path)
    path.write_text(path.read_text().replace('"x": 1', '"x": 3'))
    with pytest.raises(VisionError, match='VIS-DATA-1752[^$]*sha256'):
        earlier_report(path)


@pytest.mark.parametrize('text', ['[' * 5000, '[]', '3', '{"rows": null}', '{"rows": 3}',
                                  '{"rows": [1]}', '{"rows": {"a": 1}}', '[[1, 2]]'])
def test_what_is_no_report_is_told(tmp_path, text):
    path = tmp_path / 'a.json'
    path.write_text(text)
    with pytest.raises(VisionError, match='905'):
        read_report(path, code='VIS-INPUT-905', maker='tools/x.py', column='x')
    with pytest.raises(VisionError, match='VIS-DATA-1752'):
        earlier_report(path)
