"""Tables of figures in pages are the rows of the JSON file that they name."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r'<!-- (?:(\w+) )?rows of (\S+\.json) -->\n((?:\|.*\n)+)')
PAGES = [ROOT / 'docs' / 'figures.md', *(ROOT / 'vision' / room / 'README.md'
                               for room in ('classify', 'lattice', 'memory', 'pipeline'))]
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


def test_the_table_of_the_experiment_is_its_file():
    """Rank-1 of each seed, means over the seeds and the head's time, of each choice."""
    arms = {'all': 'full', 'random 10 %, weighed': 'random-10', '`oracle` 1 %': 'oracle-1',
            '`forest` 1 %': 'forest-1', 'random 1 %, weighed': 'random-1', '`ivf` 1 %': 'ivf-1',
            'own classes alone': 'positives'}
    text = (ROOT / 'docs/results/active_class_experiment.json').read_text()
    content = json.loads(text)
    rows = [row for row in content['rows'] if row['objective'] == 'cosface']
    page = (ROOT / 'vision/faces/README.md').read_text()
    table = page[page.index('| active classes | rank-1 %, seeds'):].split('\n\n')[0]
    lines = [[cell.strip() for cell in line.strip('|').split('|')]
             for line in table.splitlines()[2:]]
    assert [line[0] for line in lines] == list(arms)
    for name, seeds, *means in lines:
        mine = sorted((row for row in rows if row['arm'] == arms[name]),
                      key=lambda row: row['seed'])
        assert [row['seed'] for row in mine] == [0, 1, 2]
        assert seeds == ', '.join(f'{100 * row["rank1"]:.2f}' for row in mine)
        keys = ('rank1', 100, 2), ('loss_train', 1, 2), ('loss_held_out', 1, 2), (
            'train_cpu_seconds', 1, 0)
        assert means == [f'{factor * sum(row[key] for row in mine) / 3:.{digits}f}'
                         for key, factor, digits in keys] + [
            f'{content["head_ms"][arms[name]]["best"]:.1f}'], name


def test_the_border_of_the_experiment_is_its_file():
    """With the softer softmax, one seed: rank-1 and losses, the best first."""
    content = json.loads((ROOT / 'docs/results/active_class_experiment.json').read_text())
    rows = [row for row in content['rows'] if row['objective'] == 'softmax-16']
    assert [row['seed'] for row in rows] == [0] * 7
    page = (ROOT / 'vision/faces/README.md').read_text()
    table = page[page.index('| softmax-16 |'):].split('\n\n')[0].splitlines()[2:]
    assert [[cell.strip() for cell in line.strip('|').split('|')][1:] for line in table] == [
        [f'{100 * row["rank1"]:.2f}', f'{row["loss_train"]:.2f}', f'{row["loss_held_out"]:.2f}']
        for row in sorted(rows, key=lambda row: -row['rank1'])]
