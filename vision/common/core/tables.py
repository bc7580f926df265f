"""Tables of results: on the screen, and as Markdown beside a JSON file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vision.common.core.files import atomic_write


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = '',
                num_left: int = 1, min_width: int = 100) -> None:
    """Print rows of text.

    Args:
        num_left: so many first columns are names, to the left; the others are numbers.
        min_width: in characters; a table is of no use in pieces, so a narrow screen wraps lines.
    """
    console = Console()
    console.width = max(console.width, min_width)
    table = Table(title=title or None)
    for place, column in enumerate(columns):
        table.add_column(column, justify='left' if place < num_left else 'right')
    for row in rows:
        table.add_row(*(cell.replace('[', r'\[') for cell in row))
    console.print(table)


def write_markdown(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """The same rows as a Markdown table in a file of their own."""
    lines = [columns, ['---'] * len(columns), *rows]
    with atomic_write(path, 'w') as file:
        file.writelines(f'| {" | ".join(cells)} |\n' for cells in lines)


def cells_of(row: Mapping[str, Any], columns: Sequence[str], *, digits: int = 2) -> list[str]:
    """A row's values as text: floats with so many digits, '-' for None or no value."""
    values = [row.get(column) for column in columns]
    return ['-' if value is None else f'{value:.{digits}f}' if isinstance(value, float)
            else str(value) for value in values]
