"""How codes and messages are read from source."""

import pytest

from vision.common.core.error_sites import repeats, sites_of

ROOM = '''
WAYS = ('flow', 'linear')
LOST = 'VIS-DATA-902'

def direct(way, rows):
    raise VisionError('VIS-CONFIG-901', f'way={way!r} of {len(rows)} rows', why='either ' +
                      f'{", ".join(WAYS)}', do='use one' if rows else '')

def constant(path):
    raise VisionError(LOST, f'{path.name if path else ""} is lost', do='find it')

def told(size):
    if size < 1:
        raise _wrong(f'a size of {size}', 'give 1')
    raise _wrong('no size', do='give one')

def _wrong(what, do):
    return VisionError('VIS-CONFIG-903', what, do=do)
'''
READERS = '''
def read(path, *, code, maker):
    raise VisionError(code, f'{path} is damaged', do=f'make it with {maker}')
'''
TOOL = '''
def main(args):
    if error.code == 'VIS-CONFIG-901':
        return read(args.results, code='VIS-INPUT-904', maker='plot.py')
    raise VisionError('VIS-CONFIG-903', 'twice', do='once')
'''


@pytest.fixture(scope='module')
def found():
    return sites_of({'vision/attic/core/room.py': ROOM, 'vision/common/core/read.py': READERS,
                     'tools/plot.py': TOOL})


def test_a_message_is_read_as_a_template(found):
    direct, constant = found[:2]
    assert (direct.code, direct.line, direct.page) == ('VIS-CONFIG-901', 6, 'attic')
    assert direct.what == 'way={way} of {number_of_rows} rows'
    assert direct.why == 'either flow, linear' and direct.do == 'use one'
    assert (constant.code, constant.what) == ('VIS-DATA-902', '{name} is lost')


def test_a_function_that_is_told_has_the_cases_of_its_callers(found):
    assert found[2].code == 'VIS-CONFIG-903' and found[2].what == '{what}'
    assert found[2].cases == ['a size of {size} (give 1)', 'no size (give one)']


def test_a_code_that_is_handed_over_has_the_message_of_the_other_file(found):
    assert [site.code for site in found[3:]] == ['VIS-INPUT-904', 'VIS-CONFIG-903']
    assert found[3].what == '{results} is damaged' and found[3].do == 'make it with plot.py'
    assert found[3].page == 'commands'


def test_a_comparison_raises_nothing_and_a_second_site_is_told(found):
    assert repeats(found) == {'VIS-CONFIG-903': ['vision/attic/core/room.py:18',
                                                 'tools/plot.py:5']}
