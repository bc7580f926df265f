"""Public names of vision/ say what they are, in what shapes, and what they refuse.

Public is what no underscore hides: modules, classes, functions and methods, hook points and
``forward`` included, as their meaning here is not told by the framework's. What an API page of
such a name would lack is a complaint; ``complaints`` is a function of text, so that each rule is
seen to fail below.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / 'vision'
ROOMS = sorted({path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob('*.py')}
               - {'configs'})  # a config's docstring is read by its own tests

ARRAY = re.compile(r'\b(?:ndarray|Tensor|ArrayLike)\b')
# A state dict has as many shapes as tensors; its names say more.
STATE_DICT = re.compile(r'(?:Mapping|dict)\[str, (?:torch\.)?Tensor\]')
# (N, 4), (B, 3, H, W), (F,), (C + 1,), (2, h / 2, w / 2), (B, ...)
_SIZE = r'(?:\.\.\.|[\w.]+(?:\s*(?:\*\*|//|[-+*/])\s*[\w.]+)*)'
SHAPE = re.compile(rf'\(\s*{_SIZE}\s*,\s*(?:{_SIZE}\s*,?\s*)*\)|\b[Ss]calars?\b|\b[Ss]hapes?\b')
SECTION = re.compile(r'(?:Args|Attributes|Raises|Returns|Yields|Shapes?|Keys|Modes|Example):')
# mkdocstrings takes a section that follows a line of text for more of that text.
GLUED = re.compile(r'\S\n((?:Args|Attributes|Raises|Returns|Yields):)\n')
CODE = re.compile(r'VIS-[A-Z]+-\d{3,4}')
# Words that add nothing to a name.
EMPTY = set('a an and as for from given in is it its of on or that the this to with'.split())

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public_names(body: list[ast.stmt], outer: str = '') -> Iterator[tuple[str, Definition]]:
    """(dotted name, node) of what is defined here, also under ``if`` and ``try``."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            branches = [node.body, node.orelse, getattr(node, 'finalbody', []),
                        *(handler.body for handler in getattr(node, 'handlers', ()))]
            for branch in branches:
                yield from public_names(branch, outer)
        elif isinstance(node, Definition) and not node.name.startswith('_'):
            yield outer + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_names(node.body, f'{outer}{node.name}.')


def own_code(node: Definition) -> list[ast.stmt]:
    """What runs when a function is called, or an object of a class is made."""
    if not isinstance(node, ast.ClassDef):
        return node.body
    return [each for each in node.body if isinstance(each, ast.FunctionDef)
            and each.name in ('__init__', '__post_init__')]


def annotations(node: Definition) -> list[str]:
    """Of arguments and result; of a class, of its fields and of what it is made from."""
    if isinstance(node, ast.ClassDef):
        found = [each.annotation for each in node.body if isinstance(each, ast.AnnAssign)
                 and not ast.unparse(each.target).startswith('_')]
        functions = own_code(node)
    else:
        found, functions = [node.returns], [node]
    for each in functions:
        arguments = each.args
        found += [argument.annotation for argument in
                  (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [ast.unparse(annotation) for annotation in found if annotation is not None]


def raised_codes(node: Definition) -> tuple[bool, set[str]]:
    """(does it make a VisionError itself, the codes of those that are written there)."""
    calls = [each for statement in own_code(node) for each in ast.walk(statement)
             if isinstance(each, ast.Call) and ast.unparse(each.func) == 'VisionError']
    return bool(calls), {call.args[0].value for call in calls
                         if call.args and isinstance(call.args[0], ast.Constant)}


def says_nothing(name: str, text: str) -> bool:
    """Are all words of the docstring words of the name?"""
    words = re.findall(r'[a-z0-9]+', re.sub(r'([a-z])([A-Z])', r'\1 \2', name).lower())
    own = {stem for word in words for stem in (word, f'{word}s', f'{word}es', word.rstrip('s'))}
    return not set(re.findall(r'[a-z0-9]+', text.lower())) - own - EMPTY


def complaints(source: str, *, is_command: bool = False) -> list[str]:
    """What is wrong with a module; of a command, ``--help`` prints the module's docstring, which
    is that of its ``main``."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) or not tree.body else ['the module has no docstring']
    for name, node in public_names(tree.body):
        text = ast.get_docstring(node) or ''
        makes_errors, codes = raised_codes(node)
        arrays = [each for each in annotations(node) if ARRAY.search(STATE_DICT.sub('', each))]
        if is_command and name == 'main':
            continue
        if not text:
            found.append(f'{name} has no docstring')
        elif SECTION.match(text):
            found.append(f'{name} begins with a section: say first what it is')
        elif says_nothing(node.name, text):
            found.append(f'{name} repeats its name: {text!r}')
        if glued := GLUED.search(text):
            found.append(f'{name} needs a blank line before {glued[1]}')
        if text and arrays and not SHAPE.search(text):
            found.append(f'{name} takes or gives {arrays[0]}: give its shape, as (N, 4), or say '
                         'scalar, or any shape')
        if text and makes_errors and not re.search(r'Raises:|VisionError|VIS-', text):
            found.append(f'{name} raises VisionError: say when, under Raises')
        silent = codes - set(CODE.findall(text))
        if CODE.search(text) and silent:
            found.append(f'{name} names codes, but not {", ".join(sorted(silent))}')
    return found


@pytest.mark.parametrize('room', ROOMS)
def test_public_names_are_documented(room):
    paths = [PACKAGE / room] if room.endswith('.py') else sorted((PACKAGE / room).rglob('*.py'))
    found = [f'{path.relative_to(ROOT)}: {each}' for path in paths
             for each in complaints(path.read_text(), is_command=room == 'cli')]
    assert not found, '\n'.join(found)


def test_codes_that_docstrings_name_exist():
    texts = {path: path.read_text() for path in PACKAGE.rglob('*.py')}
    raised = {code for text in texts.values()
              for code in re.findall(rf"""['"]({CODE.pattern})['"]""", text)}
    assert len(raised) > 100
    named = {(str(path.relative_to(ROOT)), code) for path, text in texts.items()
             for _, node in public_names(ast.parse(text).body)
             for code in CODE.findall(ast.get_docstring(node) or '') if code not in raised}
    assert not named, sorted(named)


def test_most_is_looked_at():
    sources = [path.read_text() for path in PACKAGE.rglob('*.py')]
    names = [node for source in sources for _, node in public_names(ast.parse(source).body)]
    assert len(names) > 1500
    arrays = [node for node in names if any(map(ARRAY.search, annotations(node)))]
    assert len(arrays) > 300


SAID = '"""A module."""\n'
RAISES = "    raise VisionError('VIS-DATA-001', 'x')\n"


@pytest.mark.parametrize(('source', 'word'), [
    ('x = 1\n', 'module has no docstring'),
    (SAID + 'def f(): pass\n', 'f has no docstring'),
    (SAID + 'class A:\n    """Holds b."""\n    def forward(self): pass\n', 'A.forward has no'),
    (SAID + 'if True:\n    def f(): pass\n', 'f has no docstring'),
    (SAID + 'class A:\n    """Args:\n        b: c.\n    """\n', 'begins with a section'),
    (SAID + 'class A:\n    """Holds b.\n    Args:\n        b: c.\n    """\n', 'a blank line'),
    (SAID + 'def load_weights(): """Loads the weights."""\n', 'repeats its name'),
    (SAID + 'def f(x: np.ndarray): """Twice as bright (our choice)."""\n', 'its shape'),
    (SAID + 'def f() -> tuple[Tensor, int]: """Boxes and how many."""\n', 'its shape'),
    (SAID + 'class A:\n    """Boxes of a frame."""\n    boxes: np.ndarray\n', 'its shape'),
    (SAID + 'class A:\n    """Weighs."""\n    def __init__(self, w: Tensor): pass\n', 'its shape'),
    (SAID + "def f():\n    '''Reads.'''\n" + RAISES, 'say when'),
    (SAID + "def f():\n    '''Reads; VIS-DATA-002 when not.'''\n" + RAISES, 'not VIS-DATA-001'),
])
def test_a_fault_is_found(source, word):
    found = complaints(source)
    assert len(found) == 1 and word in found[0], found


@pytest.mark.parametrize('source', [
    SAID + 'def _f(x: Tensor): pass\n',
    SAID + 'class _A:\n    def f(self): pass\n',
    SAID + 'def f(x: np.ndarray): """Twice as bright: (H, W, 3) -> the same."""\n',
    SAID + 'def f(x: Tensor): """Mean, a scalar."""\n',
    SAID + 'def f(x: Tensor): """Halved history (2, h / 2, w / 2)."""\n',
    SAID + 'def f(x: dict[str, Tensor]): """Renames the port\'s tensors."""\n',
    SAID + "def f():\n    '''Reads, or raises VisionError.'''\n" + RAISES,
    SAID + "def f():\n    '''Reads; VIS-DATA-001 when not.'''\n" + RAISES,
])
def test_what_is_said_is_enough(source):
    assert complaints(source) == []


def test_the_help_of_a_command_documents_its_main():
    source = '"""Train a model."""\ndef main(argv=None): pass\n'
    assert complaints(source, is_command=True) == []
    assert complaints(source) == ['main has no docstring']
