"""Write docs/reliability.md: each fault, what happens then, and the tests that prove it.

The rows are those of docs/faults.yml. A test proves the rows it is marked with:
``@pytest.mark.fault('R1', 'R3')`` on a function, a class or a ``pytest.param``, or ``pytestmark``
of a module. The files are read, not imported.

Examples:
  python tools/analysis/fault_table.py
  python tools/analysis/fault_table.py --check    (exit code 1 when the page is not current)
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
ROWS, PAGE = ROOT / 'docs' / 'faults.yml', ROOT / 'docs' / 'reliability.md'
HEAD = """# What can go wrong, and what happens then

{tested} of {total} faults have a test; {untested}; {unbuilt}.

R rows are accidents, S rows attacks; the last column counts tests, which are listed below.
Made by `python tools/analysis/fault_table.py` from `docs/faults.yml` and the marks in `tests/`;
`make test` fails when it is not current. `vision explain CODE` explains codes.

| row | fault | what happens | code | tests |
|---|---|---|---|---|
"""


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('--check', action='store_true',
                        help='write nothing; exit code 1 when the page is not current')
    args = parser.parse_args(argv)
    text = page(read_rows(), marked_tests(ROOT / 'tests'))
    if args.check:
        is_current = PAGE.is_file() and PAGE.read_text() == text
        print(f'{PAGE.name} is {"" if is_current else "not "}current')
        return 0 if is_current else 1
    with atomic_write(PAGE) as file:
        file.write(text.encode())
    print(text.split('\n')[2], file=sys.stderr)
    return 0


def read_rows() -> dict[str, dict]:
    return yaml.safe_load(ROWS.read_text())


def marked_tests(folder: Path) -> dict[str, list[str]]:
    """Row -> the tests that are marked with it, as ``room/test_file.py::test_name``."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob('test_*.py')):
        for row, name in marks(ast.parse(path.read_text())):
            names = found.setdefault(row, [])
            test = f'{path.relative_to(folder)}::{name}'
            if test not in names:
                names.append(test)
    return found


def marks(module: ast.Module) -> Iterator[tuple[str, str]]:
    """(row, test) of each mark; a mark on a class or a module counts for each of its tests."""
    def visit(body: list[ast.stmt], prefix: str, outer: list[str]):
        here = outer + [row for node in body if isinstance(node, ast.Assign)
                        and any(getattr(target, 'id', '') == 'pytestmark'
                                for target in node.targets) for row in rows_in(node.value)]
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            own = here + [row for decorator in node.decorator_list for row in rows_in(decorator)]
            if isinstance(node, ast.ClassDef):
                yield from visit(node.body, f'{prefix}{node.name}::', own)
            elif node.name.startswith('test_'):
                yield from ((row, prefix + node.name) for row in own)
    yield from visit(module.body, '', [])


def rows_in(expression: ast.expr) -> list[str]:
    return [ast.literal_eval(argument) for call in ast.walk(expression)
            if isinstance(call, ast.Call) and ast.unparse(call.func) == 'pytest.mark.fault'
            for argument in call.args]


def page(rows: dict[str, dict], tests: dict[str, list[str]]) -> str:
    """The page; a row without a test, or whose room is not built, says so."""
    tested = [name for name in rows if tests.get(name)]
    unbuilt = [name for name, row in rows.items() if 'room' in row and name not in tested]
    untested = [name for name in rows if name not in tested and name not in unbuilt]
    lines = [table_line(name, row, tests.get(name, [])) for name, row in rows.items()]
    lists = [f'\n**{name}** {row["fault"]}\n' + '\n'.join(f'- `{test}`' for test in tests[name])
             for name, row in rows.items() if name in tested]
    head = HEAD.format(tested=len(tested), total=len(rows),
                       untested=f'without a test: {", ".join(untested) or "none"}',
                       unbuilt=f'of rooms that are not built: {", ".join(unbuilt) or "none"}')
    return head + '\n'.join(lines) + '\n\n## Tests of each row\n' + '\n'.join(lists) + '\n'


def table_line(name: str, row: dict, tests: list[str]) -> str:
    state = str(len(tests)) if tests else \
        f'room not built: {row["room"]}' if 'room' in row else '**no test**'
    return (f'| {name} | {row["fault"]} | {row["answer"]} | {", ".join(row.get("codes", []))} | '
            f'{state} |')


if __name__ == '__main__':
    run_cli(main)
