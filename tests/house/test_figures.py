"""Tables of figures in pages are the rows of the JSON file that they name."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r'<!-- (?:(\w+) )?rows of (\S+\.json) -->\n((?:\|.*\n)+)')
PAGES = [ROOT / 'README.md', ROOT / 'vision' / 'lattice' / 'README.md']


def tables():
    for page in PAGES:
        for protocol, path, table in MARK.findall(page.read_text()):
            yield pytest.param(ROOT / path, table, protocol,
                               id=f'{page.parent.name}-{Path(path).stem}')


@pytest.mark.parametrize(('path', 'table', 'protocol'), tables())
def test_every_cell_is_in_the_file(path, table, protocol):
    """A mark may name the protocol of its rows, where a file has several."""
    rows = {(row['method'], row['setting']): row for row in json.loads(path.read_text())['rows']
            if not protocol or row['protocol'] == protocol}
    lines = [[cell.strip() for cell in line.strip().strip('|').split('|')]
             for line in table.splitlines()]
    columns = lines[0]
    assert len(lines) > 2
    for line in lines[2:]:
        cells = dict(zip(columns, line, strict=True))
        row = rows[cells.pop('method'), cells.pop('setting')]
        for column, cell in cells.items():
            expected = '-' if row[column] is None else f'{row[column]:.2f}'
            assert cell == expected, (column, line)


def test_some_figures_are_shown():
    assert len(list(tables())) >= 3
