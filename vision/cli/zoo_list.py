"""Models that vision.load takes, and the files of weights behind them.

  vision zoo list
  vision zoo list 'lattice*'
  vision zoo list --files                (hashes, where metrics come from, notes)
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from vision.common.core.errors import VisionError, command_parser, run_cli


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('pattern', nargs='?', default='*', help='of shells, e.g. \'lattice*\'')
    parser.add_argument('--files', action='store_true', help='the files of weights instead')
    args = parser.parse_args(argv)
    table = files(args.pattern) if args.files else models(args.pattern)
    if not table.row_count:
        raise VisionError('VIS-INPUT-622', f'nothing in the zoo is called {args.pattern!r}.',
                          do='vision zoo list')
    # Whole lines when the output is a file or a pipe: nothing is cut to 80 columns.
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0


def models(pattern: str) -> Table:
    """A table of the models that ``vision.load`` takes, by a pattern of their names."""
    from vision.loading import models
    table = Table('model', 'task', 'MB', 'licence', 'here?', 'metrics', 'what it is')
    for card in models(pattern):
        table.add_row(card.name, card.task, '?' if card.size_mb is None else f'{card.size_mb:.1f}',
                      card.licence, 'yes' if card.is_here else card.place, shown(card.metrics),
                      card.summary)
    return table


def files(pattern: str) -> Table:
    """A table of the files of weights, by a pattern of their names."""
    import fnmatch

    from vision.zoo import load_index
    table = Table('file', 'MB', 'licence', 'metrics', 'hash compared with official file', 'config',
                  'note')
    for entry in load_index().values():
        if not fnmatch.fnmatchcase(entry.name, pattern):
            continue
        size = f'{entry.size_bytes / 1e6:.1f}' if entry.size_bytes else '?'
        compared = 'by hand, 8 digits known' if entry.is_by_hand else 'not yet'
        table.add_row(entry.name, size, entry.licence, shown(entry.metrics),
                      'yes' if entry.verified else compared, entry.config, entry.note)
    return table


def shown(metrics: dict[str, float]) -> str:
    """Metrics in one cell of the table."""
    return ', '.join(f'{name} {value:g}' for name, value in metrics.items())


if __name__ == '__main__':
    run_cli(main)
