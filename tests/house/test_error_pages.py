"""Each error code is raised at one place, says what to do, and stands in pages made from there."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from vision.common.core.error_codes import read_codes

ROOT = Path(__file__).resolve().parents[2]
# Codes that commands and measurements still raise beside a room, or twice. It only gets shorter.
REPEATED = {'VIS-CONFIG-054', 'VIS-INPUT-055', 'VIS-INPUT-058', 'VIS-CKPT-059', 'VIS-INPUT-062',
            'VIS-INPUT-063', 'VIS-CONFIG-107', 'VIS-DATA-217', 'VIS-VIDEO-218', 'VIS-DATA-219',
            'VIS-DATA-220', 'VIS-INPUT-223', 'VIS-CKPT-303', 'VIS-DATA-344', 'VIS-CONFIG-513',
            'VIS-INPUT-613', 'VIS-INPUT-614', 'VIS-CONFIG-704', 'VIS-CONFIG-803', 'VIS-CKPT-807',
            'VIS-CONFIG-811', 'VIS-RUN-1007', 'VIS-DATA-1082', 'VIS-CONFIG-1085', 'VIS-DATA-1087',
            'VIS-CONFIG-1104', 'VIS-RUN-1240', 'VIS-CONFIG-1504', 'VIS-CONFIG-1511',
            'VIS-CONFIG-1647'}
BESIDE = ('commands', 'benchmarks')


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('error_pages', ROOT / 'tools/error_pages.py')
    module = sys.modules['error_pages'] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def sites(tool):
    return tool.read_sites()


def test_every_code_is_raised_at_one_place(tool, sites):
    assert len(sites) > 400  # fewer found would mean that finding them is broken
    repeats = tool.repeats(sites)
    assert set(repeats) <= REPEATED, {code: repeats[code] for code in set(repeats) - REPEATED}
    assert not tool.repeats([site for site in sites if site.page not in BESIDE])


def test_no_code_is_overlooked(sites):
    """A code in the source that is neither raised nor looked for would be on no page."""
    texts = [path.read_text() for folder in ('vision', 'datasets')
             for path in (ROOT / folder).rglob('*.py')]
    quoted = {code for text in texts
              for code in re.findall(r"['\"](VIS-[A-Z]+-\d{3,4})['\"]", text)}
    assert quoted <= {site.code for site in sites}


def test_docstrings_name_codes_that_are_raised(sites):
    texts = [path.read_text() for folder in ('vision', 'datasets', 'docs')
             for suffix in ('py', 'md', 'yml') for path in (ROOT / folder).rglob(f'*.{suffix}')]
    named = {code for text in texts for code in re.findall(r'\bVIS-[A-Z]+-\d{3,4}\b', text)}
    assert named <= {site.code for site in sites} | {'VIS-DATA-004'}  # the example of a code


def test_every_message_says_what_and_what_to_do(sites):
    silent = [(site.code, site.path, site.line) for site in sites if site.page != 'commands'
              and not (site.what and site.do)]
    assert not silent


def test_pages_are_current(tool):
    assert tool.main(['--check']) == 0, 'run: python tools/error_pages.py'


def test_a_message_of_parts_alone_has_a_title():
    bare = [code for code, entry in read_codes().items() if 'title' not in entry
            and len(re.findall('[A-Za-z]{2,}', re.sub(r'{[^}]*}', ' ', entry['what']))) < 2]
    assert not bare, 'give a title in docs/errors/notes.yml'


def test_notes_are_short_and_of_codes_that_exist():
    notes = yaml.safe_load((ROOT / 'docs/errors/notes.yml').read_text())
    assert set(notes) <= set(read_codes())
    for code, own in notes.items():
        assert own and set(own) <= {'title', 'note'}, code
        assert len(own.get('title', '').split()) <= 12 and len(own.get('note', '').split()) <= 40


def test_pages_stay_short():
    words = sum(len(path.read_text().split()) for path in (ROOT / 'docs/errors').iterdir())
    assert words <= 6500


def test_an_unknown_kind_is_our_own_mistake():
    from vision.common.core.errors import VisionError
    with pytest.raises(AssertionError):
        VisionError('VIS-NONSENSE-001', 'x')


# How messages are read

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
def found(tool):
    return tool.sites_of({'vision/attic/core/room.py': ROOM, 'vision/common/core/read.py': READERS,
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


def test_a_comparison_raises_nothing_and_a_second_site_is_told(tool, found):
    assert tool.repeats(found) == {'VIS-CONFIG-903': ['vision/attic/core/room.py:18',
                                                      'tools/plot.py:5']}


def test_pages_and_data_of_entries(tool, found):
    entries = tool.entries_of(found, {'VIS-CONFIG-903': dict(title='a size', note='More.')})
    assert list(entries) == ['VIS-CONFIG-901', 'VIS-DATA-902', 'VIS-CONFIG-903', 'VIS-INPUT-904']
    assert entries['VIS-CONFIG-903']['module'] == 'vision/attic/core/room.py'
    assert 'do' not in entries['VIS-CONFIG-903']  # its callers' remedies stand in the cases
    files = tool.files_of(entries)
    page = files[tool.PAGES / 'attic.md']
    assert '\n## VIS-CONFIG-903\n`a size`\n\nMore.\n' in page and 'VIS-INPUT-904' not in page
    assert json.loads(files[tool.DATA]) == entries


def test_the_site_adds_reason_and_remedy(tool):
    entries = read_codes()
    page = (ROOT / 'docs/errors/stream.md').read_text()
    src = SimpleNamespace(file=SimpleNamespace(src_uri='errors/stream.md'))
    full = tool.on_page_markdown(page, src, None, None)
    own = [code for code, entry in entries.items() if entry['page'] == 'stream']
    assert re.findall('^## (.*)$', full, re.M) == own and len(own) > 10
    assert all(f'\nDo: {tool.escaped(entries[code]["do"])}\n' in full for code in own
               if 'do' in entries[code])
    assert tool.escaped('a_b of {c} < *') == r'a\_b of \{c\} &lt; \*'
    src.file.src_uri = 'stream.md'
    assert tool.on_page_markdown(page, src, None, None) == page
