"""docs/reliability.md is what the rows and the marks in the tests make it."""

import ast
from pathlib import Path

import pytest
from scripts import load_script

from vision.common.core.error_codes import read_codes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def tool():
    return load_script('tools/analysis/fault_table.py')


def test_the_page_is_current(tool):
    assert tool.main(['--check']) == 0, 'run: python tools/analysis/fault_table.py'


def test_a_mark_names_a_row(tool):
    assert set(tool.marked_tests(ROOT / 'tests')) <= set(tool.read_rows())


def test_rows_are_whole_and_their_codes_are_explained(tool):
    described = set(read_codes())
    rows = tool.read_rows()
    assert list(rows) == [f'R{n}' for n in range(1, 33)] + [f'S{n}' for n in range(33, 39)]
    for name, row in rows.items():
        assert row['fault'] and row['answer'], name
        assert set(row) <= {'fault', 'answer', 'codes', 'room'}, name
        assert set(row.get('codes', [])) <= described, name


def test_a_row_of_a_room_that_is_built_waits_no_longer(tool):
    waiting = {row['room'] for row in tool.read_rows().values() if 'room' in row}
    assert not [room for room in waiting if (ROOT / 'vision' / room).is_dir()]


def test_how_marks_are_read(tool):
    source = '''
import pytest
pytestmark = [pytest.mark.slow, pytest.mark.fault('R1')]

@pytest.mark.fault('R2', 'S33')
def test_one(): ...

@pytest.mark.parametrize('x', [pytest.param(1, marks=pytest.mark.fault('R3'))])
def test_two(x): ...

def helper(): ...

@pytest.mark.fault('R4')
class TestSome:
    def test_three(self): ...
'''
    assert list(tool.marks(ast.parse(source))) == [
        ('R1', 'test_one'), ('R2', 'test_one'), ('S33', 'test_one'), ('R1', 'test_two'),
        ('R3', 'test_two'), ('R1', 'TestSome::test_three'), ('R4', 'TestSome::test_three')]


def test_what_is_not_proved_is_not_counted(tool):
    rows = {'R1': dict(fault='a', answer='b'), 'R2': dict(fault='c', answer='d'),
            'R3': dict(fault='e', answer='f', room='attic')}
    text = tool.page(rows, {'R2': ['x/test_y.py::test_z']})
    assert '1 of 3 faults have a test; without a test: R1; ' in text
    assert 'of rooms that are not built: R3.' in text
    assert '| R1 | a | b |  | **no test** |' in text
    assert '| R3 | e | f |  | room not built: attic |' in text
    assert '- `x/test_y.py::test_z`' in text
