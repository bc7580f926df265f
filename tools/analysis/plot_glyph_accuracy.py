"""Accuracy over training time of full, active and random softmax as a picture.

Reads what tools/benchmarks/glyph_accuracy.py wrote. Thin lines are seeds, thick ones means.

  python tools/analysis/plot_glyph_accuracy.py docs/results/glyph_accuracy.json --out x.png
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.report import read_report

STYLES = {'full': ('full softmax', '#777777'),
          'active': ('random, then active 1 % (IVF)', '#1769aa'),
          'random': ('random 10 % (Partial FC)', '#d1730f')}
PANELS = {'accuracy': 'verification accuracy (%)', 'rank1': 'rank-1 identification (%)'}


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('json', type=Path, help='results of glyph_accuracy.py')
    parser.add_argument('--out', type=Path, required=True, help='picture to write (.png, .svg)')
    args = parser.parse_args(argv)
    content = read_report(args.json, code='VIS-INPUT-1243',
                          maker='tools/benchmarks/glyph_accuracy.py')
    draw(content, args.out)
    print(f'picture: {args.out}')
    return 0


def draw(content: dict, out: Path) -> None:
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    figure, panels = pyplot.subplots(1, 2, figsize=(9.5, 3.8))
    for panel, (key, title) in zip(panels, PANELS.items(), strict=True):
        for arm, (label, colour) in STYLES.items():
            rows = [row for row in content['rows'] if row['arm'] == arm]
            if not rows:
                continue
            minutes = np.array([point['iter'] for point in rows[0]['curve']]) \
                * content['step_ms'][arm] / 60_000
            values = 100 * np.array([[point[key] for point in row['curve']] for row in rows])
            panel.plot(minutes, values.T, color=colour, alpha=0.3, linewidth=0.8)
            panel.plot(minutes, values.mean(0), color=colour, linewidth=2,
                       label=f'{label} ({len(rows)} seeds)')
        panel.set_xlabel('training time, one thread (minutes)')
        panel.set_ylabel(title)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle('held-out font families, a sixteenth of the characters; '
                    f'commit {content["rows"][0]["commit"]}', fontsize=9)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)


if __name__ == '__main__':
    run_cli(main)
