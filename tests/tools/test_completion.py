"""The script of ``vision completion`` in a real shell."""

import argparse
import shutil
import subprocess
import sys

import pytest

from vision.cli import completion
from vision.cli.main import COMMANDS


@pytest.fixture(scope='module')
def commands():
    """``video`` as it is, and a made-up command with actions, one of a group of two."""
    parser = argparse.ArgumentParser()
    actions = parser.add_subparsers()
    actions.add_parser('add').add_argument('--name')
    actions.add_parser('list').add_argument('kind', choices=('here', 'all'))
    found = dict(completion.described('video', completion.parser_of('vision.cli.video')))
    found |= dict(completion.described('faces gallery', parser))
    return found | {'faces compare': {'--threshold': '@number', '': '@files'}}


def completed(shell, script, words, cwd):
    ask = f'COMP_WORDS=({" ".join(map(repr, words))}); COMP_CWORD={len(words) - 1}; _vision; ' \
        'echo "${COMPREPLY[@]}"'
    done = subprocess.run([shell, '-c', f'{script}\n{ask}'], capture_output=True, text=True,
                          cwd=cwd, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which('bash') is None, reason='there is no bash')
@pytest.mark.parametrize(('words', 'expected'), [
    (['vision', ''], ['video', 'faces']), (['vision', 'fa'], ['faces']),
    (['vision', '--v'], ['--version']),
    (['vision', 'faces', ''], ['gallery', 'compare']),
    (['vision', 'faces', 'gallery', ''], ['add', 'list']),
    (['vision', 'faces', 'gallery', 'add', '--n'], ['--name']),
    (['vision', 'faces', 'gallery', 'list', 'h'], ['here']),
    (['vision', 'faces', 'compare', 'a.jpg', 'b'], ['b.jpg']),
    (['vision', 'faces', 'compare', '--threshold', ''], []),
    (['vision', 'video', 'c', '--keep'], ['--keep-going']),
    (['vision', 'video', 'c', '--mode', 'ca'], ['causal', 'causal+revise']),
    (['vision', 'video', 'cl'], ['clip.mp4']),
    (['vision', 'video', '--keep-going', 'cl'], ['clip.mp4']),
    (['vision', 'video', 'c', '--detector', 'cl'], ['clip.mp4']),
    (['vision', 'video', 'c', '--gap', ''], []),
    (['vision', 'nothing', '--x'], []),
])
def test_what_bash_completes(commands, tmp_path, words, expected):
    for name in ('clip.mp4', 'b.jpg'):
        (tmp_path / name).touch()
    assert completed('bash', completion.script('bash', commands), words, tmp_path) == expected


@pytest.mark.skipif(shutil.which('zsh') is None, reason='there is no zsh')
def test_zsh_takes_the_script(commands, tmp_path):
    script = completion.ZSH + completion.script('zsh', commands)
    done = subprocess.run(['zsh', '-fc', script], capture_output=True, text=True, cwd=tmp_path,
                          timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_command_whose_packages_are_missing_has_a_name(monkeypatch):
    monkeypatch.setitem(sys.modules, 'vision.common.mm.launch', None)
    assert completion.parser_of('vision.cli.train') is None
    assert dict(completion.described('train', None)) == {'train': {}}


def test_parsers_work_after_they_were_caught(capsys):
    completion.parser_of('vision.cli.completion')
    assert completion.main(['bash']) == 0
    script = capsys.readouterr().out
    assert all(f"'{name} '*" in script for name in COMMANDS)
