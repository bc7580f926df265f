"""What each choice of active classes reached, as a picture: a mark for each seed.

Reads what benchmarks/active_class_experiment.py wrote.

  python benchmarks/plot_active_class_experiment.py \\
      docs/results/active_class_experiment.json --out experiment.png
"""

from __future__ import annotations

from pathlib import Path

from vision.common.core.errors import run_cli
from vision.common.core.figures import picture_parser, pyplot, save_figure
from vision.common.core.report import read_report

PANELS = (('rank1', 'rank-1 of held-out pictures (%)', 100),
          ('loss_train', 'full loss, training samples', 1),
          ('loss_held_out', 'full loss, held-out samples', 1))


def main(argv: list[str] | None = None) -> int:
    parser = picture_parser(__doc__, 'active_class_experiment.py')
    parser.add_argument('--objective', default='cosface', help='(default: %(default)s)')
    args = parser.parse_args(argv)
    content = read_report(args.json, code='VIS-INPUT-1243',
                          maker='benchmarks/active_class_experiment.py', column='rank1')
    rows = [row for row in content['rows'] if row['objective'] == args.objective]
    draw(rows, content.get('commit', ''), args.out)
    return 0


def draw(rows: list[dict], commit: str, out: Path) -> None:
    arms = list(dict.fromkeys(row['arm'] for row in rows))
    figure, panels = pyplot().subplots(1, len(PANELS), figsize=(11, 0.45 * len(arms) + 1.6),
                                       sharey=True)
    for panel, (column, title, factor) in zip(panels, PANELS, strict=True):
        for place, arm in enumerate(arms):
            values = [factor * row[column] for row in rows if row['arm'] == arm]
            panel.plot(values, [place] * len(values), 'o', markersize=5, alpha=0.7)
            panel.vlines(sum(values) / len(values), place - 0.3, place + 0.3, color='#444444')
        panel.set_xlabel(title)
        panel.grid(alpha=0.3)
    panels[0].set_yticks(range(len(arms)), arms)
    panels[0].invert_yaxis()
    seeds = len({row['seed'] for row in rows})
    figure.suptitle(f'{seeds} seed(s), a mark each, lines: means; commit {commit}', fontsize=9)
    save_figure(figure, out)


if __name__ == '__main__':
    run_cli(main)
