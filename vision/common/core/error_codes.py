"""What each error code means: ``errors.json``, which tools/error_pages.py makes of the source."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path

from vision.common.core.errors import EXIT_CODES, VisionError

CODES = Path(__file__).resolve().parents[1] / 'errors.json'


def read_codes(path: Path = CODES) -> dict[str, dict]:
    """Code -> ``what``, ``why`` and ``do`` as templates, where they are given; ``cases``, what is
    told where the message is made of parts; ``title``, ``note``; ``module``, which raises it, and
    ``page`` of docs/errors, which those of measurements have not."""
    return json.loads(path.read_text())


def find_codes(text: str, codes: dict[str, dict]) -> list[str]:
    """The codes that a text means: ``VIS-INPUT-602``, ``input-602``, ``VIS-INPUT-602``, or a
    message that begins with one. A number alone may be that of two.

    Raises:
        VisionError: VIS-INPUT-1702, there is none.
    """
    found = re.search(r'(?:\b([A-Z]+)-|\b)(\d{1,4})\b', text.upper())
    kind, number = found.groups() if found else (None, '')
    of_number = [code for code in codes if code.split('-')[2] == number.zfill(3)]
    of_kind = [code for code in of_number if kind in (None, 'VIS', code.split('-')[1])]
    if of_kind:
        return of_kind
    near = of_number or difflib.get_close_matches(text.upper(), codes, n=3)
    raise VisionError('VIS-INPUT-1702', f'there is no error code {text[:80]!r}',
                      where='vision explain', why=f'nearest: {", ".join(near)}' if near else '',
                      do='give the code behind ERROR, such as VIS-INPUT-602')


def explanation(code: str, entry: dict) -> str:
    """Title or message, cases, reason, remedy, note, and where it comes from."""
    lines = [f'{code}: {entry.get("title") or entry["what"]}',
             *(f'  - {case}' for case in entry.get('cases', ()))]
    lines += [f'{label}: {entry[name]}' for label, name in
              (('Why', 'why'), ('Do', 'do'), ('Note', 'note')) if name in entry]
    page = f'; docs/errors/{entry["page"]}.md#{code.lower()}' if 'page' in entry else ''
    lines += [f'Exit code {EXIT_CODES[code.split("-")[1]]}; raised in {entry["module"]}{page}']
    return '\n'.join(lines)
