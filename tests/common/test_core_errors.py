"""What a command's user sees: one block, and the traceback when asked for."""

import subprocess
import sys

import pytest

COMMAND = """
import sys
from vision.common.core.errors import VisionError, command_parser, run_cli

def main(argv=None):
    parser = command_parser('Doc.')
    actions = parser.add_subparsers(dest='action', required=True)
    actions.add_parser('go').add_argument('words', nargs='*')
    raise VisionError('VIS-INPUT-611', f'words {parser.parse_args(argv).words}')

run_cli(main)
"""


@pytest.mark.parametrize(('arguments', 'is_shown', 'words'), [
    (['go'], False, []), (['-v', 'go'], True, []), (['--verbose', 'go'], True, []),
    (['go', '-v'], True, []), (['go', 'a', '--verbose', 'b'], True, ['a', 'b']),
    (['go', '--', '-v'], False, ['-v']),
])
def test_the_traceback_comes_with_either_name_of_the_option_anywhere(repository, arguments,
                                                                     is_shown, words):
    done = subprocess.run([sys.executable, '-c', COMMAND, *arguments], cwd=repository,
                          capture_output=True, text=True)
    assert done.returncode == 2
    assert ('Traceback' in done.stderr) == is_shown
    assert done.stderr.splitlines()[-1] == f'ERROR VIS-INPUT-611: words {words}'


@pytest.mark.parametrize(('package', 'is_told'), [
    ('no_such_package.part', True), ('vision.no_such_room', False)])
def test_a_package_that_is_not_installed_is_named_and_our_own_fault_is_not_hidden(
        repository, package, is_told):
    done = subprocess.run(
        [sys.executable, '-c', 'from vision.common.core.errors import run_cli\n'
         f'def main():\n    import {package}\nrun_cli(main)'], cwd=repository,
        capture_output=True, text=True)
    lines = done.stderr.splitlines()
    if is_told:
        assert done.returncode == 3 and len(lines) == 4
        assert lines[0] == 'ERROR VIS-ENV-909: the package no_such_package is not installed'
        assert lines[1] == f'Where: {sys.executable}' and lines[3].startswith('Do: pip install')
    else:
        assert done.returncode == 1 and lines[-1].startswith('ModuleNotFoundError')


@pytest.mark.parametrize(('words', 'near'), [
    (['go', '--workdir', 'x'], '--work-dir'), (['go', '--work_dir=x'], '--work-dir'),
    (['go', '--mode', 'fsat'], 'fast'), (['gos'], 'go')])
def test_an_option_or_choice_that_is_not_known_comes_with_the_nearest(words, near, capsys):
    from vision.common.core.errors import command_parser
    parser = command_parser('Doc.')
    part = parser.add_subparsers(dest='action').add_parser('go')
    part.add_argument('--work-dir')
    part.add_argument('--mode', choices=('fast', 'exact'))
    with pytest.raises(SystemExit) as end:
        parser.parse_args(words)
    assert end.value.code == 2 and f'did you mean {near}?' in capsys.readouterr().err


def test_nothing_is_suggested_where_nothing_is_near(capsys):
    from vision.common.core.errors import command_parser
    with pytest.raises(SystemExit):
        command_parser('Doc.').parse_args(['--zzzzzz'])
    assert 'did you mean' not in capsys.readouterr().err


@pytest.mark.parametrize(('name', 'what'), [
    ('resutls.json', 'there is no file'), ('', 'a folder stands'),
    ('results.json/x', 'a file stands')])
def test_a_file_that_cannot_be_opened_is_one_block(tmp_path, capsys, name, what):
    from vision.common.core.errors import run_cli
    (tmp_path / 'results.json').write_text('{}')
    with pytest.raises(SystemExit) as end:
        run_cli(lambda: (tmp_path / name).read_text() and 0)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith(f'ERROR VIS-INPUT-1813: {what}')
    assert 'Traceback' not in said and ('near it: results.json' in said) == (name[:3] == 'res'
                                                                             and '/' not in name)


@pytest.mark.parametrize(('word', 'near'), [
    ('vit-tiny', ['vit-tiny_a', 'vit-tiny_b']), ('vit_tiny_a', ['vit-tiny_a', 'vit-tiny_b']),
    ('', []), ('zzz', [])])
def test_names_that_begin_with_a_word_come_before_those_spelt_alike(word, near):
    from vision.common.core.errors import names_like
    assert names_like(word, ['resnet', 'vit-tiny_a', 'vit-tiny_b', 'vit-tinies'])[:2] == near
