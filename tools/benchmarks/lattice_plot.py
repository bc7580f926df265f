"""The picture of lattice_tradeoff.py: accuracy over milliseconds, a line a method, named at it.

  python tools/benchmarks/lattice_plot.py docs/results/lattice_tradeoff_NAME.json --out curve.png
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use('Agg')  # before pyplot is imported: no window is needed
from matplotlib import patheffects, pyplot
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from vision.common.core.errors import run_cli
from vision.common.core.report import read_report

# Ours in one strong colour, rivals apart from it (a palette that colour-blind people can tell).
STYLES = {'detect': ('#444444', 's'), 'shipped': ('#0b3d91', '*'), 'flow': ('#1769aa', 'D'),
          'flow-causal': ('#63a4d8', 'd'),
          'adaptive': ('#0b3d91', '^'), 'random': ('#9aa7b5', 'v'), 'hold': ('#b0a080', 'x'),
          'linear': ('#d1730f', 'o'), 'lk': ('#2e8540', 'o'), 'dis': ('#b5438a', 'o'),
          'bytetrack': ('#8c2d19', 'o'), 'bytetrack-offline': ('#c98276', 'o'),
          'paper': ('#6a51a3', 'P'), 'oracle': ('#a0a0a0', '.')}
MIN_DISTANCE = 0.045  # of two names, in heights of the panel


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('json', type=Path, help='results of lattice_tradeoff.py')
    parser.add_argument('--out', type=Path, required=True, help='picture to write (.png, .svg)')
    args = parser.parse_args(argv)
    draw(read_report(args.json, code='VIS-INPUT-905', maker='tools/benchmarks/lattice_tradeoff.py',
                     column='map50')['rows'], args.out)
    print(f'picture: {args.out}')
    return 0


def draw(rows: list[dict], out: Path) -> None:
    """Write the picture (.png, .svg). Rows without a time are left out; without any time, the
    share of keyframes takes its place. Of two protocols the second one (coco) is drawn."""
    rows = [row for row in rows if row['protocol'] == rows[-1]['protocol']]
    has_times = any(row['ms_per_frame'] is not None for row in rows)
    axis = 'ms_per_frame' if has_times else 'keyframe_rate'
    rows = [row for row in rows if row[axis] is not None and row['map50'] is not None]
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.6), sharex=True)
    for panel, column, title in zip(panels, ('map50', 'map5095'), (
            'AP at IoU 0.5 (%)', 'AP, mean over IoU 0.5 to 0.95 (%)'), strict=True):
        draw_panel(panel, rows, axis, column)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel('milliseconds per frame, detector included' if has_times
                         else 'share of frames that the detector sees')
    first = rows[0]
    figure.suptitle(f'{first["dataset"]}, protocol {first["protocol"]}, {first["frames"]} frames, '
                    f'{first["runtime"]}', fontsize=10)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)
    pyplot.close(figure)


def draw_panel(panel, rows: list[dict], axis: str, column: str) -> None:
    lines = defaultdict(list)
    for row in rows:
        lines[row['method']].append((row[axis], row[column], row['setting']))
    panel.set_xscale('log')
    for method, points in lines.items():  # in the order of the rows: by gap
        colour, marker = STYLES[method]
        if method == 'detect':  # its points are sizes of the input, in no order
            points.sort()
        is_ours = method in ('flow', 'shipped', 'adaptive')
        panel.plot([p[0] for p in points], [p[1] for p in points], marker=marker, color=colour,
                   linewidth=2.2 if is_ours else 1.2, markersize=7 if is_ours else 5,
                   zorder=3 if is_ours else 2)
        if method in ('flow', 'detect') and len(points) > 1:
            for x, y, setting in points:
                panel.annotate(setting, (x, y), (0, 6), textcoords='offset points', fontsize=6,
                               ha='center', color=colour)
    panel.margins(x=0.3, y=0.12)  # room for the names
    # 10, 20, 50 and not 10^1: a reader compares milliseconds.
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.25, which='both', linewidth=0.5)
    name_lines(panel, {method: min(points) for method, points in lines.items()})


def name_lines(panel, ends: dict[str, tuple]) -> None:
    """Each method's name left of its fastest point, moved up where two would overlap."""
    low, high = panel.get_ylim()
    last = float('-inf')
    for method, (x, y, _) in sorted(ends.items(), key=lambda item: item[1][1]):
        place = max(y, last + MIN_DISTANCE * (high - low))
        last = place
        panel.annotate(method, (x, y), (-10, (place - y) / (high - low) * panel.bbox.height
                                        * 72 / panel.figure.dpi), textcoords='offset points',
                       ha='right', va='center', fontsize=8, color=STYLES[method][0],
                       path_effects=[patheffects.withStroke(linewidth=2.5, foreground='white')],
                       arrowprops=dict(arrowstyle='-', color=STYLES[method][0], linewidth=0.5))


if __name__ == '__main__':
    run_cli(main)
