"""Every command in the pages and docstrings is one that its tool takes.

The tools' own parsers judge: in one child process each tool is run up to the moment when it would
parse its arguments. A command that stands alone on its line is parsed as a whole. One inside a
sentence may leave arguments out, as may one with ``...`` or brackets: there the options alone
are looked at. Files of the repository that a command names must be there.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = re.compile(r'\b(?:python|bash) +((?:tools|benchmarks|datasets)/[\w/]+\.(?:py|sh))')
PAGES = ('README.md', 'docs/**/*.md', 'vision/*/README.md', 'datasets/**/*.md', 'configs/*.md')
MODULES = ('tools/**/*.py', 'benchmarks/*.py', 'datasets/**/*.py', 'configs/**/*.py')
# A launcher's arguments are those of this tool and, at these places, its own.
LAUNCHED = {'tools/dist_train.sh': ('tools/train.py', {1}),
            'tools/dist_test.sh': ('tools/test.py', {2}),
            'tools/slurm_train.sh': ('tools/train.py', {0, 1, 3}),
            'tools/slurm_test.sh': ('tools/test.py', {0, 1})}
ENDS = {'>', '>>', '|', '&&', ';', '->', '#'}
NUM_AT_LEAST = 60  # there are many more; fewer found would mean that finding them is broken

JUDGE = r"""
import argparse, contextlib, io, json, runpy, sys
PARSES = 'parse_args', 'parse_intermixed_args'
parse = {name: getattr(argparse.ArgumentParser, name) for name in PARSES}

class Caught(BaseException):
    pass

def catch(parser, *_, **__):
    raise Caught(parser)

def parser_of(tool):
    sys.argv, sys.path[0] = [tool], tool.rpartition('/')[0]
    for name in PARSES:
        setattr(argparse.ArgumentParser, name, catch)
    try:
        runpy.run_path(tool, run_name='__main__')
    except Caught as caught:
        return caught.args[0]
    finally:
        for name in PARSES:
            setattr(argparse.ArgumentParser, name, parse[name])
    return argparse.ArgumentParser()  # one that takes nothing but its place

def fault_of_whole(parser, arguments):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            parser.parse_args(arguments)
    except SystemExit as end:  # --help ends with 0
        return said.getvalue().strip().split('\n')[-1] if end.code else ''
    return ''

def fault_of_options(parser, options):
    known, parsers = set(), [parser]
    while parsers:
        for action in parsers.pop()._actions:
            known |= set(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    unknown = sorted(set(options) - known)
    return f'unknown options: {unknown}' if unknown else ''

parsers, faults = {}, []
for command in json.load(sys.stdin):
    tool = command['tool']
    if tool not in parsers:
        parsers[tool] = parser_of(tool)
    faults.append(fault_of_whole(parsers[tool], command['arguments']) if command['is_whole'] else
                  fault_of_options(parsers[tool], command['options']))
json.dump(faults, sys.stdout)
"""


@dataclass(frozen=True)
class Command:
    """``where`` is PAGE:LINE, ``tool`` a path from the root."""

    where: str
    tool: str
    arguments: tuple[str, ...]
    is_whole: bool

    @property
    def options(self) -> list[str]:
        return [word.partition('=')[0] for word in self.arguments
                if re.match(r'--?[a-zA-Z]', word)]


def texts() -> list[tuple[str, str]]:
    """(where, text) of all pages, and of the docstrings of all modules."""
    def found(patterns):
        return sorted({path for pattern in patterns for path in ROOT.glob(pattern)})

    pages = [(str(path.relative_to(ROOT)), path.read_text()) for path in found(PAGES)]
    modules = [(str(path.relative_to(ROOT)), ast.get_docstring(ast.parse(path.read_text())) or '')
               for path in found(MODULES)]
    return pages + modules


def commands_of(where: str, text: str) -> list[Command]:
    found = []
    for match in COMMAND.finditer(text):
        line = text.count('\n', 0, match.start()) + 1
        before = text[:match.start()].rsplit('\n', 1)[-1]
        rest = text[match.end():]
        if before.count('`') % 2:  # inside quotes, which may go over several lines
            rest = rest.split('`')[0].replace('\n', ' ')
        else:
            rest = with_continuations(rest)
        arguments, is_alone = words(rest), re.fullmatch(r'\s*(\w+: *)?', before) is not None
        is_whole = is_alone and not re.search(r'\.\.\.|[][|]', rest.split('#')[0])
        found.append(Command(f'{where}:{line}', match[1], arguments, is_whole))
    return found


def with_continuations(rest: str) -> str:
    """The rest of a command's line, and the lines that go on with it."""
    first, *lines = rest.split('\n')
    for line in lines:
        if not first.rstrip().endswith('\\') and not line.lstrip().startswith('--'):
            break
        first = first.rstrip(' \\') + ' ' + line.strip()
    return first


def words(rest: str) -> tuple[str, ...]:
    try:
        parts = shlex.split(rest, comments=True)
    except ValueError:  # an apostrophe of the sentence around it
        parts = rest.split()
    # A note in parentheses may stand behind a command.
    end = next((i for i, word in enumerate(parts) if word in ENDS or word[0:1] == '('),
               len(parts))
    return tuple(word.strip('[]').rstrip(',;:') for word in parts[:end])


def launched(command: Command) -> Command:
    """A command of a launcher as the command that each of its processes runs."""
    if command.tool not in LAUNCHED:
        return command
    tool, own = LAUNCHED[command.tool]
    rest = [word for place, word in enumerate(command.arguments) if place not in own]
    if '--max-restarts' in rest:  # the launcher's own
        where = rest.index('--max-restarts')
        del rest[where:where + 2]
    return Command(command.where, tool, tuple(rest), command.is_whole)


@pytest.fixture(scope='module')
def commands() -> list[Command]:
    return [command for where, text in texts() for command in commands_of(where, text)]


def test_commands_are_found(commands):
    assert len(commands) > NUM_AT_LEAST
    assert sum(command.is_whole for command in commands) > NUM_AT_LEAST / 2


def test_what_a_command_names_is_there(commands):
    """The tool itself, and files of ours among its arguments; NAME.py stands for any."""
    missing = [(command.where, word) for command in commands
               for word in (command.tool, *command.arguments)
               if re.fullmatch(r'(tools|benchmarks|datasets|configs)/[\w./-]+\.\w+', word)
               and not re.search(r'\.\.\.|[A-Z]{4}', word) and not (ROOT / word).is_file()]
    assert not missing


@pytest.mark.slow
def test_every_command_is_one_that_its_tool_takes(commands):
    there = [launched(command) for command in commands if (ROOT / command.tool).is_file()]
    child = subprocess.run(
        [sys.executable, '-c', JUDGE], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env=os.environ | dict(PYTHONPATH=str(ROOT)),
        input=json.dumps([asdict(command) | dict(options=command.options) for command in there]))
    assert child.returncode == 0, child.stderr
    faults = json.loads(child.stdout.splitlines()[-1])
    assert not [f'{command.where}: {command.tool} {" ".join(command.arguments)}: {fault}'
                for command, fault in zip(there, faults, strict=True) if fault]


def test_how_commands_are_read():
    text = ('Run `python tools/a.py FILE\n--deep` or:\n\n'
            '    Test: python tools/b.py CONFIG \\\n      --out x.json  # a note\n'
            'bash tools/dist_train.sh configs/... 2\n'
            "python tools/c.py 'two words' > log.txt\n"
            'python tools/d.py --of "a (b)"\n  python tools/e.py (two minutes)\n')
    found = [(c.tool, c.arguments, c.is_whole) for c in commands_of('page', text)]
    assert found == [('tools/a.py', ('FILE', '--deep'), False),
                     ('tools/b.py', ('CONFIG', '--out', 'x.json'), True),
                     ('tools/dist_train.sh', ('configs/...', '2'), False),
                     ('tools/c.py', ('two words',), True), ('tools/d.py', ('--of', 'a (b)'), True),
                     ('tools/e.py', (), True)]
    assert commands_of('page', text)[1].where == 'page:4'
