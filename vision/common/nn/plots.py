"""Figures of matplotlib, drawn without a display (no torch, no framework)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.extras import import_extra
from vision.common.core.files import atomic_write

MAX_WRITTEN = 30  # classes; cells of more are too small for figures


def new_figure(width: float, height: float):
    """An empty figure of matplotlib, in inches, that no window belongs to.

    Raises:
        VisionError: VIS-ENV-1713, matplotlib is not installed.
    """
    agg = import_extra('matplotlib.backends.backend_agg', extra='train', needed_for='a figure')
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout='constrained')
    agg.FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path: Path) -> None:
    """Write it whole or not at all; the ending names the format (.png, .pdf, .svg).

    Raises:
        VisionError: another ending.
    """
    path = Path(path)
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix[1:] not in formats:
        raise VisionError('VIS-INPUT-1797', f'cannot write {path}', where=str(path),
                          why='the ending names the format', do='use .png, .pdf or .svg')
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150)


def plot_matrix(matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], path: Path, *,
                title: str) -> None:
    """Counts (R, C) as a picture: colour and figure are the share of the row, in percent."""
    share = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(24.0, 3 + 0.45 * max(matrix.shape))
    figure = new_figure(side + 1, side)
    axes = figure.subplots()
    image = axes.imshow(share, cmap='Blues', vmin=0, vmax=100)
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(title=title, xlabel='found', ylabel='true')
    if max(matrix.shape) <= MAX_WRITTEN:
        for (row, column), value in np.ndenumerate(share):
            if matrix[row, column]:
                axes.text(column, row, f'{value:.0f}', ha='center', va='center', fontsize=8,
                          color='white' if value > 50 else 'black')
    figure.colorbar(image, ax=axes, label='% of the true class', shrink=0.8)
    save_figure(figure, path)


def plot_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path, *,
                title: str = '', xlabel: str = 'iteration', ylabel: str = '') -> None:
    """Lines (x, y) by their names; one with a single point is a dot."""
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    for name, (x, y) in curves.items():
        axes.plot(x, y, label=name, marker='o' if len(x) < 15 else None, markersize=3)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)
