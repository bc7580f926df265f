"""Write docs/errors/ and vision/common/errors.json: every error code and what it says.

Codes and messages are read from the source, which is not imported. ``docs/errors/notes.yml`` adds
a title where a message is made of parts alone, and a note where there is more to say than it does.
The pages have each code's message alone, so that it is found and linked to. Reason, remedy and
note stand in the JSON file, which ``vision explain`` prints and the site fills its pages from.

Examples:
  python tools/error_pages.py
  python tools/error_pages.py --check    (exit code 1 when a page is not current)
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from vision.common.core.error_sites import BESIDE, PARTS, Site, sites_of
from vision.common.core.errors import command_parser, run_cli
from vision.common.core.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
PAGES, DATA = ROOT / 'docs' / 'errors', ROOT / 'vision' / 'common' / 'errors.json'
NOTES = PAGES / 'notes.yml'
FOLDERS = ('vision', 'datasets', 'tools', 'benchmarks')
BARE = re.compile(r'\{\w+\}')
HEAD = """# Errors: {page}

Made by `python tools/error_pages.py`. Braces hold what differs; `vision explain CODE` says more.
"""


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('--check', action='store_true',
                        help='write nothing; exit code 1 when a file is not current')
    args = parser.parse_args(argv)
    made = files_of(entries_of(read_sites(), yaml.safe_load(NOTES.read_text())))
    old = [path for path in {*PAGES.glob('*.md'), DATA, *made}
           if path not in made or not path.is_file() or path.read_text() != made[path]]
    for path in sorted(old):
        print(f'{path.relative_to(ROOT)} is {"not current" if args.check else "made anew"}'
              + ('' if path in made else ', which is not to be there'))
        if not args.check and path not in made:
            path.unlink()
        elif not args.check:
            with atomic_write(path) as file:
                file.write(made[path].encode())
    return 1 if args.check and old else 0


def entries_of(sites: list[Site], notes: dict[str, dict]) -> dict[str, dict]:
    """What is known of each code, by number. Where several sites raise one, the first in a room
    speaks for it."""
    entries: dict[str, dict] = {}
    for site in sorted(sites, key=lambda site: site.page in BESIDE):
        if site.code not in entries:
            own = dict(page=site.page, module=site.path) | notes.get(site.code, {}) | {
                name: getattr(site, name) for name in (*PARTS, 'cases')}
            entries[site.code] = {name: value for name, value in own.items() if value
                                  and (name == 'what' or not BARE.fullmatch(str(value)))}
    return dict(sorted(entries.items(), key=lambda pair: (int(pair[0].split('-')[2]), pair[0])))


def files_of(entries: dict[str, dict]) -> dict[Path, str]:
    """The text of each file that is made."""
    made = {DATA: json.dumps(entries, indent=1, ensure_ascii=False) + '\n'}
    for page in sorted({entry['page'] for entry in entries.values() if 'page' in entry}):
        sections = [section(code, entry) for code, entry in entries.items()
                    if entry.get('page') == page]
        made[PAGES / f'{page}.md'] = HEAD.format(page=page) + ''.join(sections)
    return made


def section(code: str, entry: dict) -> str:
    """The heading is the code alone, so that its anchor is too: ``zoo.md#vis-input-602``."""
    return f'\n## {code}\n`{entry.get("title") or entry["what"]}`\n'


def on_page_markdown(markdown: str, page, config, files) -> str:
    """A hook of mkdocs: on the site each code has cases, reason, remedy and note too."""
    if not page.file.src_uri.startswith('errors/'):
        return markdown
    parts = re.split(r'^## (VIS-[A-Z]+-\d+)\n', markdown, flags=re.M)
    entries = json.loads(DATA.read_text())
    return parts[0] + ''.join(
        f'## {code}\n{text.rstrip()}\n\n{more_of(entries[code])}\n'
        for code, text in zip(parts[1::2], parts[2::2], strict=True))


def more_of(entry: dict) -> str:
    cases = ''.join(f'- `{case}`\n' for case in entry.get('cases', ()))
    rest = [f'{label}{escaped(entry[name])}\n' for label, name in
            (('Why: ', 'why'), ('Do: ', 'do'), ('', 'note')) if name in entry]
    return '\n'.join([*([cases] if cases else []), *rest])


def escaped(text: str) -> str:
    """Braces, stars and the like as they are, not as Markdown."""
    return re.sub(r'([\\`*_{}\[\]#])', r'\\\1', text).replace('<', '&lt;')


def read_sites(root: Path = ROOT) -> list[Site]:
    """Every site of every code, by file and line."""
    return sites_of({str(path.relative_to(root)): path.read_text() for folder in FOLDERS
                     for path in sorted((root / folder).rglob('*.py'))
                     if 'configs' not in path.parts})


if __name__ == '__main__':
    run_cli(main)
