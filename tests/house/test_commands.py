"""Every command in the pages and docstrings is one that its tool takes, and the cheap ones run.

The tools' own parsers judge: in one child process each tool, and each command of ``vision``, is
run up to the moment when it would parse its arguments. A command that stands alone on its line is
parsed as a whole. One inside a sentence may leave arguments out, as may one with ``...`` or
brackets: there the options alone are looked at. Files of the repository that a command names must
be there.
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

from vision.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
# ``vision`` begins a command at the beginning of a line, of a quotation, or behind a folder.
COMMAND = re.compile(
    r'\b(?:python|bash) +((?:tools|benchmarks|datasets)/[\w/]+\.(?:py|sh))|'
    r'(?:^ *(?:[A-Z]\w*: *)?|(?<=`)|(?<=bin/)|\bpython -m )'
    r'(vision(?: [a-z][\w-]*){1,2}(?![\w/.:-]))', re.M)
PAGES = ('README.md', 'docs/**/*.md', 'vision/*/README.md', 'datasets/**/*.md', 'configs/*.md')
MODULES = ('tools/**/*.py', 'benchmarks/*.py', 'datasets/**/*.py', 'configs/**/*.py',
           'vision/**/*.py')
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
    sys.argv, sys.path[0] = tool.split(), tool.rpartition('/')[0]
    for name in PARSES:
        setattr(argparse.ArgumentParser, name, catch)
    try:
        if sys.argv[0] == 'vision':
            from vision.cli.main import main
            main()
        else:
            runpy.run_path(tool, run_name='__main__')
    except Caught as caught:
        return caught.args[0]
    except ValueError as error:  # what vision says of a command that is none
        return error
    finally:
        for name in PARSES:
            setattr(argparse.ArgumentParser, name, parse[name])
    return argparse.ArgumentParser()  # one that takes nothing but its place

def fault_of_whole(parser, arguments):
    if isinstance(parser, Exception):
        return str(parser)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            parser.parse_args(arguments)
    except SystemExit as end:  # --help ends with 0
        return said.getvalue().strip().split('\n')[-1] if end.code else ''
    return ''

def fault_of_options(parser, options):
    if isinstance(parser, Exception):
        return str(parser)
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

RUN = r"""
import contextlib, io, json, os, runpy, sys, traceback

def end_of(command):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            sys.argv = [*command['tool'].split(), *command['arguments']]
            sys.path[0] = os.path.abspath(command['tool'].rpartition('/')[0])
            if sys.argv[0] == 'vision':
                from vision.cli.main import entry
                entry()
            runpy.run_path(command['tool'], run_name='__main__')
    except SystemExit as end:
        return f'exit code {end.code}: {said.getvalue()[-500:]}' if end.code else ''
    except BaseException:
        return traceback.format_exc()[-500:]
    return ''

json.dump([end_of(command) for command in json.load(sys.stdin)], sys.stdout)
"""
# Begin commands that take seconds, but with these options.
CHEAP = ('vision config', 'vision data check data/moving_sprites', 'vision pipeline',
         'vision simulate', 'vision zoo list', 'benchmarks/lattice_plot.py',
         'benchmarks/lattice_quality.py', 'benchmarks/plot_', 'benchmarks/scene_cuts.py')
DEAR = ('--profile', '--search', 'auto')
NUM_CHEAP_AT_LEAST = 12


@dataclass(frozen=True)
class Command:
    """``where`` is PAGE:LINE, ``tool`` a path from the root or ``vision`` with a command."""

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
        tool, first = (match[1], ()) if match[1] else command_of_vision(match[2])
        arguments, is_alone = first + words(rest), re.fullmatch(r'\s*(\w+: *)?', before)
        is_whole = bool(is_alone) and not re.search(r'\.\.\.|[][|]', rest.split('#')[0])
        found.append(Command(f'{where}:{line}', tool, arguments, is_whole))
    return found


def command_of_vision(text: str) -> tuple[str, tuple[str, ...]]:
    """('vision NAME', words that are arguments): names have one word or two."""
    _, first, *second = text.split()
    if second and f'{first} {second[0]}' not in COMMANDS and first in COMMANDS:
        return f'vision {first}', tuple(second)
    return text, ()


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


def is_cheap(command: Command) -> bool:
    """Does it run in seconds, on what the repository holds or the test makes?"""
    text = ' '.join((command.tool, *command.arguments))
    if not command.is_whole or re.search(r'[A-Z]{4}', text):  # NAME stands for any
        return False
    return any(option in command.arguments for option in ('--help', '--list')) or \
        any(text.startswith(name) for name in CHEAP) and \
        not any(option in command.arguments for option in DEAR)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Where commands run as in the checkout: what they write does not stay there."""
    made = tmp_path_factory.mktemp('checkout')
    for name in ('benchmarks', 'configs', 'datasets', 'docs', 'tests', 'tools', 'vision'):
        (made / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, 'datasets/moving_sprites/prepare.py', '--num-train', '1',
                    '--num-val', '2', '--num-frames', '18'], cwd=made, check=True,
                   capture_output=True, env=os.environ | dict(PYTHONPATH=str(ROOT)))
    return made


@pytest.mark.slow
def test_every_cheap_command_runs(commands, folder):
    cheap = list({(command.tool, command.arguments): command for command in commands
                  if is_cheap(command)}.values())
    assert len(cheap) > NUM_CHEAP_AT_LEAST
    ends = in_child(RUN, [asdict(command) for command in cheap], folder)
    assert not [f'{command.where}: {command.tool} {" ".join(command.arguments)}: {end}'
                for command, end in zip(cheap, ends, strict=True) if end]


def in_child(code: str, content: list[dict], folder: Path) -> list[str]:
    """What a Python program that reads JSON prints as its last line."""
    child = subprocess.run(
        [sys.executable, '-c', code], cwd=folder, capture_output=True, text=True, timeout=600,
        env=os.environ | dict(PYTHONPATH=str(ROOT)), input=json.dumps(content))
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.slow
def test_every_command_is_one_that_its_tool_takes(commands):
    there = [launched(command) for command in commands
             if command.tool.startswith('vision ') or (ROOT / command.tool).is_file()]
    faults = in_child(JUDGE, [asdict(command) | dict(options=command.options)
                              for command in there], ROOT)
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


def test_how_commands_of_vision_are_read():
    text = ('  vision data check a.json --strict\nThe vision of it; `vision train CONFIG` and\n'
            'run `.venv/bin/vision doctor`: vision is no command there. `vision/cli`\n'
            'vision video my.mp4\n`vision nonsense here`\n')
    found = [(c.tool, c.arguments, c.is_whole) for c in commands_of('page', text)]
    assert found == [('vision data check', ('a.json', '--strict'), True),
                     ('vision train', ('CONFIG',), False), ('vision doctor', (), False),
                     ('vision video', ('my.mp4',), True), ('vision nonsense here', (), False)]
    faults = in_child(JUDGE, [asdict(each) | dict(options=each.options)
                              for each in commands_of('page', text)[::4]], ROOT)
    assert faults[0] == '' and 'VIS-INPUT-1701' in faults[1]
