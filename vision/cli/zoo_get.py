"""Download weights of the model zoo; the SHA-256 of the index is compared before use.

Examples:
  vision zoo get mobilefacenet                 a model: all files that it needs
  vision zoo get yolox-nano_coco               a file of "vision zoo list --files"
  vision zoo get yolox-nano_coco --dest weights/
  VISION_ZOO_MIRROR=/media/stick vision zoo get yolox-nano_coco --offline

The file is put into the cache (VISION_ZOO_CACHE, else ~/.cache/frugal-vision/zoo); an interrupted
download goes on where it stopped. VISION_ZOO_MIRROR names a folder with copies that is asked
before the network; VISION_OFFLINE=1, or --offline, never opens a connection. Exit codes:
2 unknown name, 3 full disk, 5 wrong hash, 6 network.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.zoo import Entry, Settings, fetch, find, find_model
from vision.zoo.store import copy_to, names_folder


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('names', nargs='*', metavar='NAME', help='models, or files of weights')
    parser.add_argument('--dest', type=Path, help='copy the verified file to this folder (or, '
                        'for one file, to this file name)')
    parser.add_argument('--offline', action='store_true', help='take files from package, cache '
                        'and mirror only')
    args = parser.parse_args(argv)
    if not args.names:
        raise VisionError('VIS-INPUT-613', 'no model was named.', do='vision zoo list')
    entries = [entry for name in args.names for entry in entries_of(name)]  # before any byte
    if args.dest and len(entries) > 1 and not names_folder(args.dest):
        raise VisionError('VIS-INPUT-621', f'{len(entries)} files cannot share one file name.',
                          where=f'--dest {args.dest}', do='give a folder')
    settings = Settings.from_environment()
    if args.offline:
        settings = dataclasses.replace(settings, is_offline=True)
    for entry in entries:
        get(entry, args.dest, settings)
    return 0


def entries_of(name: str) -> list[Entry]:
    """The files of a model, or the one of this name; VIS-INPUT-602 for neither."""
    model = find_model(name)
    files = [model.weights, *model.parts.values()] if model else [name]
    return [find(file) for file in files if file]


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


if __name__ == '__main__':
    run_cli(main)
