"""The picture of lattice_tradeoff.py: accuracy over milliseconds, a line a method.

  python benchmarks/lattice_plot.py docs/results/lattice_tradeoff_NAME.json --out curve.png
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from matplotlib import patheffects
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from vision.common.core.errors import run_cli
from vision.common.core.figures import picture_parser, pyplot, save_figure
from vision.common.core.report import read_report

# Ours in one strong colour, rivals apart from it (a palette that colour-blind people can tell).
STYLES = {'detect': ('#444444', 's'), 'shipped': ('#0b3d91', '*'), 'flow': ('#1769aa', 'D'),
          'flow-causal': ('#63a4d8', 'd'),
          'adaptive': ('#0b3d91', '^'), 'random': ('#9aa7b5', 'v'), 'hold': ('#b0a080', 'x'),
          'linear': ('#d1730f', 'o'), 'lk': ('#2e8540', 'o'), 'dis': ('#b5438a', 'o'),
          'bytetrack': ('#8c2d19', 'o'), 'bytetrack-offline': ('#c98276', 'o'),
          'paper': ('#6a51a3', 'P'), 'oracle': ('#a0a0a0', '.')}
# Where the settings of a line stand, points off their markers: gaps, and sizes of the input.
NAMED = {'flow': (-13, 4), 'detect': (2, 8)}
OURS = ('flow', 'shipped', 'adaptive')


def main(argv: list[str] | None = None) -> int:
    args = picture_parser(__doc__, 'lattice_tradeoff.py').parse_args(argv)
    draw(read_report(args.json, code='VIS-INPUT-905', maker='benchmarks/lattice_tradeoff.py',
                     column='map50')['rows'], args.out)
    return 0


def draw(rows: list[dict], out: Path) -> None:
    """Write the picture (.png, .svg). Rows without a time are left out; without any time, the
    share of keyframes takes its place. Of two protocols the second one (coco) is drawn."""
    rows = [row for row in rows if row['protocol'] == rows[-1]['protocol']]
    has_times = any(row['ms_per_frame'] is not None for row in rows)
    axis = 'ms_per_frame' if has_times else 'keyframe_rate'
    rows = [row for row in rows if row[axis] is not None and row['map50'] is not None
            and (row['method'] != 'shipped' or row['setting'] == 'default')]
    figure, panels = pyplot().subplots(1, 2, figsize=(13, 6), sharex=True)
    for panel, column, title in zip(panels, ('map50', 'map5095'), (
            'AP at IoU 0.5 (%)', 'AP, mean over IoU 0.5 to 0.95 (%)'), strict=True):
        draw_panel(panel, rows, axis, column)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel('milliseconds per frame, detector included' if has_times
                         else 'share of frames that the detector sees')
    first = rows[0]
    figure.suptitle(f'{first["dataset"]}, protocol {first["protocol"]}, {first["frames"]} frames, '
                    f'{first["runtime"]}', fontsize=10)
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc='lower center', ncols=-(-len(names) // 2), fontsize=9,
                  frameon=False)
    save_figure(figure, out, rect=(0, 0.09, 1, 1))


def draw_panel(panel, rows: list[dict], axis: str, column: str) -> None:
    lines = defaultdict(list)
    for row in rows:
        lines[row['method']].append((row[axis], row[column], row['setting']))
    panel.set_xscale('log')
    for method, points in lines.items():  # in the order of the rows: by gap
        colour, marker = STYLES[method]
        if method == 'detect':  # its points are sizes of the input, in no order
            points.sort()
        is_ours, is_shipped = method in OURS, method == 'shipped'
        panel.plot([p[0] for p in points], [p[1] for p in points], marker=marker, color=colour,
                   linewidth=2.2 if method == 'flow' else 1.2, label=method,
                   linestyle='' if is_shipped else '-',
                   markersize=13 if is_shipped else 7 if is_ours else 5,
                   alpha=1 if is_ours or method == 'detect' else 0.75,
                   zorder=4 if is_shipped else 3 if is_ours else 2)
        if method in NAMED and len(points) > 1:
            for x, y, setting in points:
                panel.annotate(setting.split('-in')[-1], (x, y), NAMED[method],
                               textcoords='offset points', fontsize=8, color=colour, zorder=5,
                               ha='center', path_effects=[patheffects.withStroke(
                                   linewidth=2.5, foreground='white')])
    panel.margins(x=0.06, y=0.08)
    # 10, 20, 50 and not 10^1: a reader compares milliseconds.
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.25, which='both', linewidth=0.5)


if __name__ == '__main__':
    run_cli(main)
