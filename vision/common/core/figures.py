"""Pictures by matplotlib, which is an optional package: no window is opened."""

from __future__ import annotations

from pathlib import Path

DPI = 130


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
