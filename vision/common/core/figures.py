"""Pictures by matplotlib, which is an optional package: no window is opened."""

from __future__ import annotations

import argparse
from pathlib import Path

from vision.common.core.errors import command_parser

DPI = 130


def picture_parser(doc: str, maker: str) -> argparse.ArgumentParser:
    """JSON and --out, of a command that draws the results of another one."""
    parser = command_parser(doc)
    parser.add_argument('json', type=Path, help=f'results of {maker}')
    parser.add_argument('--out', type=Path, required=True, help='picture to write (.png, .svg)')
    return parser


def pyplot():
    """``matplotlib.pyplot`` with the backend that needs no screen.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; a command explains it.
    """
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    return pyplot


def save_figure(figure, path: Path, *, rect: tuple[float, float, float, float] | None = None
                ) -> None:
    """Lay a figure out, write it (.png, .svg, .pdf), close it and say where it is.

    Args:
        rect: left, bottom, right, top of the part that panels may fill, from 0 to 1.
    """
    figure.tight_layout(rect=rect)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    pyplot().close(figure)
    print(f'picture: {path}')
