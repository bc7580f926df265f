"""Curves of small PolyNets, their plain twins and the inserted net as a picture.

Reads what benchmarks/polynet_training.py wrote. Thin lines are seeds, thick ones means.

  python benchmarks/plot_polynet_training.py docs/results/polynet_training.json --out x.png
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vision.common.core.errors import run_cli
from vision.common.core.figures import picture_parser, pyplot, save_figure
from vision.common.core.report import read_report

STYLES = {'twin': ('1-way twin, more epochs', '#d1730f'), 'poly': ('PolyNet', '#1769aa'),
          'inserted': ('PolyNet from the trained twin', '#2e8540'),
          'deeper-twin': ('1-way twin, more modules', '#777777')}
LEFT = ('training compute (TMAC)', 'val_top1', 'top-1 on val (%)', ('twin', 'poly', 'deeper-twin'))
RIGHT = ('epochs', 'train_loss', 'training loss', ('poly', 'inserted'))


def main(argv: list[str] | None = None) -> int:
    args = picture_parser(__doc__, 'polynet_training.py').parse_args(argv)
    content = read_report(args.json, code='VIS-INPUT-1239',
                          maker='benchmarks/polynet_training.py')
    draw(content, args.out)
    return 0


def draw(content: dict, out: Path) -> None:
    figure, panels = pyplot().subplots(1, 2, figsize=(9.5, 3.8))
    for panel, (x_title, key, y_title, names) in zip(panels, (LEFT, RIGHT), strict=True):
        for name in names:
            rows = [row for row in content['rows'] if row['run'] == name]
            if rows:
                draw_lines(panel, rows, key, is_compute='TMAC' in x_title)
        panel.set_xlabel(x_title)
        panel.set_ylabel(y_title)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    settings = content['settings']
    figure.suptitle(f'{settings["data"]}, {settings["size"]} px, seeds {content["seeds"]}, commit '
                    f'{content["rows"][0]["commit"]}', fontsize=9)
    save_figure(figure, out)


def draw_lines(panel, rows: list[dict], key: str, *, is_compute: bool) -> None:
    label, colour = STYLES[rows[0]['run']]
    values = np.array([[point[key] for point in row['curve']] for row in rows])
    x = np.arange(1, values.shape[1] + 1, dtype=float)
    if is_compute:
        x *= rows[0]['training_tmac'] / rows[0]['epochs']
    panel.plot(x, values.T, color=colour, alpha=0.3, linewidth=0.8)
    panel.plot(x, values.mean(0), color=colour, linewidth=2, label=f'{label} ({len(rows)} seeds)')


if __name__ == '__main__':
    run_cli(main)
