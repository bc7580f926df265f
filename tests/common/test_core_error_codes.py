"""vision explain: which codes a text means, and what is said of them."""

import pytest

from vision.cli.explain import main
from vision.common.core.error_codes import explanation, find_codes, read_codes
from vision.common.core.errors import EXIT_CODES, VisionError


@pytest.fixture(scope='module')
def codes():
    return read_codes()


@pytest.mark.parametrize('text', [
    'VIS-INPUT-602', 'vis-input-602', 'input-602', '602', ' 602 ', 'VIS-602',
    'ERROR VIS-INPUT-602: no model "resnet50" in the zoo.'])
def test_a_code_in_many_forms(codes, text):
    assert find_codes(text, codes) == ['VIS-INPUT-602']


def test_a_number_without_its_noughts_and_one_of_two_codes(codes):
    assert find_codes('12', codes) == ['VIS-CONFIG-012']
    assert find_codes('106', codes) == ['VIS-CONFIG-106', 'VIS-RUN-106']
    assert find_codes('VIS-RUN-106', codes) == ['VIS-RUN-106']


@pytest.mark.parametrize('text, said', [
    ('VIS-CONFIG-602', 'nearest: VIS-INPUT-602'), ('', "no error code ''"),
    ('VIS-INPUT-9999', "no error code 'VIS-INPUT-9999'"),
    ('disk full', "no error code 'disk full'")])
def test_what_is_no_code(codes, text, said):
    with pytest.raises(VisionError) as caught:
        find_codes(text, codes)
    assert caught.value.code == 'VIS-INPUT-1702' and said in caught.value.render()


def test_an_explanation_has_all_that_is_known():
    entry = dict(page='attic', module='vision/attic/x.py', what='{what}', title='a bad size',
                 cases=['no size', 'size {n}'], why='sizes count', do='give one', note='More.')
    assert explanation('VIS-CKPT-999', entry).split('\n') == [
        'VIS-CKPT-999: a bad size', '  - no size', '  - size {n}', 'Why: sizes count',
        'Do: give one', 'Note: More.',
        'Exit code 5; raised in vision/attic/x.py; docs/errors/attic.md#vis-ckpt-999']


def test_every_code_can_be_explained(codes):
    for code, entry in codes.items():
        assert code.split('-')[1] in EXIT_CODES and find_codes(code, codes) == [code]
        assert explanation(code, entry).startswith(f'{code}: ')


def test_the_command_says_each_code_once(capsys):
    assert main(['VIS-INPUT-602', '602', 'vis-ckpt-303']) == 0
    said = capsys.readouterr().out
    assert said.count('VIS-INPUT-602:') == 1 and said.count('VIS-CKPT-303:') == 1
