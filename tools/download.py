"""Download weights of the model zoo; the SHA-256 of the index is compared before use.

Examples:
  python tools/download.py --list
  python tools/download.py yolox-nano_coco
  python tools/download.py yolox-nano_coco --dest weights/
  VISION_ZOO_MIRROR=/media/stick python tools/download.py yolox-nano_coco --offline

The file is put into the cache (VISION_ZOO_CACHE, else ~/.cache/frugal-vision/zoo); an interrupted
download goes on where it stopped. VISION_ZOO_MIRROR names a folder with copies that is asked
before the network; VISION_OFFLINE=1, or --offline, never opens a connection. Exit codes:
2 unknown name, 3 full disk, 5 wrong hash, 6 network.
"""

import dataclasses
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
from rich.table import Table

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.zoo import Entry, Settings, fetch, find, load_index
from vision.zoo.store import copy_to, names_folder


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('names', nargs='*', metavar='NAME', help='models to download')
    parser.add_argument('--dest', type=Path, help='copy the verified file to this folder (or, '
                        'for one model, to this file name)')
    parser.add_argument('--list', action='store_true', help='list the models and stop')
    parser.add_argument('--offline', action='store_true', help='take files from package, cache '
                        'and mirror only')
    args = parser.parse_args(argv)
    if args.list:
        print_list(load_index())
        return 0
    if not args.names:
        raise VisionError('VIS-INPUT-613', 'no model was named.',
                          do='python tools/download.py --list')
    if args.dest and len(args.names) > 1 and not names_folder(args.dest):
        raise VisionError('VIS-INPUT-613', f'{len(args.names)} models cannot share one file name.',
                          where=f'--dest {args.dest}', do='give a folder')
    entries = [find(name) for name in args.names]  # all names before the first byte
    settings = Settings.from_environment()
    if args.offline:
        settings = dataclasses.replace(settings, is_offline=True)
    for entry in entries:
        get(entry, args.dest, settings)
    return 0


def get(entry: Entry, dest: Path | None, settings: Settings) -> None:
    """Fetch one entry with a progress bar; the path is the only line on stdout."""
    with Progress('{task.description}', BarColumn(), DownloadColumn(), TimeRemainingColumn(),
                  console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(entry.name, total=entry.size_bytes)
        path = fetch(entry, settings=settings,
                     progress=lambda have, _: bar.update(task, completed=have))
    path = copy_to(path, dest) if dest else path
    digits = f'{entry.sha256}... (8 digits)' if entry.is_by_hand else entry.sha256
    print(f'{entry.name}: sha256 {digits} agrees, licence {entry.licence}', file=sys.stderr)
    if entry.note:
        print(f'note: {entry.note}', file=sys.stderr)
    print(path)


def print_list(entries: dict[str, Entry]) -> None:
    table = Table('name', 'MB', 'licence', 'metrics', 'hash compared with official file', 'config')
    for entry in entries.values():
        metrics = ', '.join(f'{name} {value:g}' for name, value in entry.metrics.items())
        size = f'{entry.size_bytes / 1e6:.1f}' if entry.size_bytes else '?'
        compared = 'by hand, 8 digits known' if entry.is_by_hand else 'not yet'
        table.add_row(entry.name, size, entry.licence, metrics,
                      'yes' if entry.verified else compared, entry.config)
    # Whole lines when the output is a file or a pipe: nothing is cut to 80 columns.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == '__main__':
    run_cli(main)
