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
