"""Make docs/tutorials/*.ipynb of the pages beside them: python tools/notebooks.py

A page is the source: prose becomes cells of text, ``python`` blocks cells of code, each line of a
``sh`` block a cell of a command. A test says when a notebook is older than its page.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

TUTORIALS = Path(__file__).resolve().parents[1] / 'docs' / 'tutorials'
BLOCK = re.compile(r'^```(python|sh)\n(.*?)^```\n', re.M | re.S)
POINTER = re.compile(r'^\[This page as a notebook\]\(.*\)\n\n', re.M)


def blocks(text: str) -> list[tuple[str, str]]:
    """(kind, content) in order; kind is 'text', 'python' or 'sh'."""
    found, end = [], 0
    for match in BLOCK.finditer(text):
        found += [('text', text[end:match.start()]), (match[1], match[2])]
        end = match.end()
    return [(kind, content.strip()) for kind, content in [*found, ('text', text[end:])]
            if content.strip()]


def notebook(text: str) -> str:
    cells = []
    for number, (kind, content) in enumerate(blocks(POINTER.sub('', text))):
        content = '\n'.join(f'!{line}' for line in content.splitlines()) if kind == 'sh' \
            else content
        cell = dict(cell_type='markdown' if kind == 'text' else 'code', id=f'cell-{number}',
                    metadata={}, source=content.splitlines(keepends=True))
        cells.append(cell if kind == 'text' else cell | dict(execution_count=None, outputs=[]))
    kernel = dict(display_name='Python 3', language='python', name='python3')
    return json.dumps(dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4,
                           nbformat_minor=5), indent=1, ensure_ascii=False) + '\n'


def pages() -> list[Path]:
    return [path for path in sorted(TUTORIALS.glob('*.md')) if path.stem != 'index']


if __name__ == '__main__':
    for page in pages():
        page.with_suffix('.ipynb').write_text(notebook(page.read_text()))
        print(page.with_suffix('.ipynb').name)
