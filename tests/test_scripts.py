"""How tests load a script: its siblings are found, and nothing else changes its meaning."""

import pickle
import sys
from importlib.util import find_spec

import pytest
from scripts import load_script

SCRIPT = '''
from __future__ import annotations

from dataclasses import dataclass

import {sibling}


@dataclass
class Row:
    value: {sibling}.Value = 0


def later():
    import {sibling}_later
    return {sibling}_later.VALUE
'''


@pytest.fixture
def script(tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(sys, 'path', [*sys.path])
    (tmp_path / 'sibling_of_prepare.py').write_text('Value = int\n')
    (tmp_path / 'sibling_of_prepare_later.py').write_text('VALUE = 7\n')
    (tmp_path / 'test.py').touch()
    (tmp_path / 'prepare.py').write_text(SCRIPT.format(sibling='sibling_of_prepare'))
    yield str(tmp_path / 'prepare.py')
    for name in ('sibling_of_prepare', 'sibling_of_prepare_later'):
        sys.modules.pop(name, None)


def test_siblings_are_found_now_and_later(script):
    before = find_spec('test').origin
    module = load_script(script)
    assert module.Row(3).value == 3 and module.later() == 7
    assert find_spec('test').origin == before, 'a script hides the standard library'


def test_each_call_has_a_module_whose_rows_are_pickled(script):
    first, second = load_script(script), load_script(script)
    assert first is not second and first.Row is not second.Row
    for module in (first, second):
        assert isinstance(pickle.loads(pickle.dumps(module.Row(4))), module.Row)


def test_its_main_is_not_run_and_a_missing_one_is_said(script):
    with open(script, 'a') as file:
        file.write("if __name__ == '__main__':\n    raise SystemExit\n")
    load_script(script)
    with pytest.raises(FileNotFoundError):
        load_script('tools/none.py')
