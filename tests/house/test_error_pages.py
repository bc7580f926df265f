"""Each error code is raised at one place, says what to do, and stands in pages made from there."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from scripts import load_script

from vision.common.core.error_codes import read_codes
from vision.common.core.error_sites import BESIDE, Site, repeats

ROOT = Path(__file__).resolve().parents[2]
# Handed on, by a measurement that looks for it.
REPEATED = {'VIS-CKPT-303'}


@pytest.fixture(scope='module')
def tool():
    return load_script('tools/error_pages.py')


@pytest.fixture(scope='module')
def sites(tool):
    return tool.read_sites()


def test_every_code_is_raised_at_one_place(sites):
    assert len(sites) > 400  # fewer found would mean that finding them is broken
    found = repeats(sites)
    assert set(found) <= REPEATED, {code: found[code] for code in set(found) - REPEATED}
    assert not repeats([site for site in sites if site.page not in BESIDE])


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


ATTIC = [Site('VIS-CONFIG-903', 'vision/attic/core/room.py', 18, '{what}', do='{do}',
              cases=['no size (give one)']),
         Site('VIS-DATA-902', 'vision/attic/core/room.py', 9, '{name} is lost', do='find it'),
         Site('VIS-INPUT-904', 'benchmarks/plot.py', 4, 'no rows', do='make some'),
         Site('VIS-DATA-902', 'tools/plot.py', 5, 'twice', do='once')]


def test_pages_and_data_of_entries(tool):
    entries = tool.entries_of(ATTIC[::-1], {'VIS-CONFIG-903': dict(title='a size', note='More.')})
    assert list(entries) == ['VIS-DATA-902', 'VIS-CONFIG-903', 'VIS-INPUT-904']
    assert entries['VIS-DATA-902']['module'] == 'vision/attic/core/room.py'  # before a command
    assert 'page' not in entries['VIS-INPUT-904']  # a measurement
    assert 'do' not in entries['VIS-CONFIG-903']  # its callers' remedies stand in the cases
    files = tool.files_of(entries)
    page = files[tool.PAGES / 'attic.md']
    assert '\n## VIS-CONFIG-903\n`a size`\n' in page
    assert 'More.' not in page and 'VIS-INPUT-904' not in page
    assert json.loads(files[tool.DATA]) == entries


def test_the_site_adds_reason_remedy_and_note(tool):
    entries = read_codes()
    page = (ROOT / 'docs/errors/stream.md').read_text()
    src = SimpleNamespace(file=SimpleNamespace(src_uri='errors/stream.md'))
    full = tool.on_page_markdown(page, src, None, None)
    own = [code for code, entry in entries.items() if entry.get('page') == 'stream']
    assert re.findall('^## (.*)$', full, re.M) == own and len(own) > 10
    assert all(f'\nDo: {tool.escaped(entries[code]["do"])}\n' in full for code in own
               if 'do' in entries[code])
    assert tool.escaped(entries['VIS-VIDEO-503']['note']) in full
    assert tool.escaped('a_b of {c} < *') == r'a\_b of \{c\} &lt; \*'
    src.file.src_uri = 'stream.md'
    assert tool.on_page_markdown(page, src, None, None) == page
