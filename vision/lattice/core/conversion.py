"""What the dataset converters and the prepare scripts have in common: options and ends."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from vision.common.core.errors import command_parser
from vision.lattice.core.cocovid import CocoVidWriter, load_cocovid
from vision.lattice.core.cocovid_stats import print_statistics


def converter_parser(doc: str, source: str, *, splits: Sequence[str],
                     default: Sequence[str]) -> argparse.ArgumentParser:
    """-i, -o, --splits and --stats, as mmtracking's users know them."""
    parser = command_parser(doc)
    parser.add_argument('-i', '--input', type=Path, required=True, help=source)
    parser.add_argument('-o', '--output', type=Path, required=True,
                        help='folder of the json files')
    parser.add_argument('--splits', nargs='+', default=list(default), choices=splits,
                        metavar='SPLIT', help=f'of {", ".join(splits)} (default: '
                        f'{", ".join(default)})')
    parser.add_argument('--stats', action='store_true', help='count boxes, tracks, classes')
    return parser


def ilsvrc_parser(doc: str, *, default: Sequence[str]) -> argparse.ArgumentParser:
    """``converter_parser`` with ``--lists`` and ``--nproc``, for the tree of ImageNet's
    archives."""
    parser = converter_parser(doc, 'folder with Annotations, Data and Lists',
                              splits=('train', 'val'), default=default)
    parser.add_argument('--lists', type=Path, help='folder of the lists (default: INPUT/Lists)')
    parser.add_argument('--nproc', type=int, default=1, help='processes that read xml')
    return parser


def write_split(writer: CocoVidWriter, path: Path, left_out: str) -> Path:
    """Write the file and say what it holds; ``left_out``: what it does not."""
    writer.write(path)
    print(f'{path}: ' + ', '.join(f'{n} {name}' for name, n in writer.counts().items())
          + f'; {left_out} left out')
    return path


def convert_splits(args: argparse.Namespace, convert: Callable[[str], Path]) -> int:
    """Run ``convert`` for each split of the command line; exit status."""
    for split in args.splits:
        path = convert(split)
        if args.stats:
            print_statistics(load_cocovid(path))
    return 0


def prepare_parser(doc: str, source: str, out: str) -> argparse.ArgumentParser:
    """A command's parser with ``--source`` and ``--out``; ``source`` is the help of the first,
    ``out`` the default of the second."""
    parser = command_parser(doc)
    parser.add_argument('--source', type=Path, required=True, help=source)
    parser.add_argument('--out', type=Path, default=Path(out),
                        help='new folder (default: %(default)s)')
    return parser
