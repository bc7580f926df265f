"""Tables of figures in pages are the rows of the JSON file that they name."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r'<!-- (?:(\w+) )?rows of (\S+\.json) -->\n((?:\|.*\n)+)')
PAGES = [ROOT / 'docs' / 'figures.md', *(ROOT / 'vision' / room / 'README.md'
                               for room in ('lattice', 'memory', 'pipeline'))]
KEYS = 'method', 'setting', 'budget'  # columns that say which row it is, where a table has them


def tables():
    for page in PAGES:
        for protocol, path, table in MARK.findall(page.read_text()):
            yield pytest.param(ROOT / path, table, protocol,
                               id=f'{page.parent.name}-{Path(path).stem}')


@pytest.mark.parametrize(('path', 'table', 'protocol'), tables())
def test_every_cell_is_in_the_file(path, table, protocol):
    """A mark may name the protocol of its rows, where a file has several."""
    lines = [[cell.strip() for cell in line.strip().strip('|').split('|')]
             for line in table.splitlines()]
    columns = lines[0]
    keys = [name for name in KEYS if name in columns]
    rows = {tuple(shown(row[name]) for name in keys): row
            for row in json.loads(path.read_text())['rows']
            if not protocol or row['protocol'] == protocol}
    assert len(lines) > 2
    for line in lines[2:]:
        cells = dict(zip(columns, line, strict=True))
        row = rows[tuple(cells.pop(name) for name in keys)]
        for column, cell in cells.items():
            assert cell == shown(row[column]), (column, line)


def shown(value) -> str:
    if value is None:
        return '-'
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return f'{value:.2f}' if isinstance(value, float) else str(value)


def test_some_figures_are_shown():
    assert len(list(tables())) >= 3
