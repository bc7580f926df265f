"""Speed and accuracy of the lattice and its rivals as a picture.

Reads what tools/benchmarks/lattice_baseline.py wrote.

  python tools/analysis/plot_lattice.py docs/results/lattice_moving-sprites.json --out curve.png
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from vision.common.core.errors import run_cli
from vision.common.core.report import read_report

STYLES = dict(detect=('detection on every frame', 's', '#444444'),
              linear=('keyframes + linear interpolation', 'o', '#d1730f'),
              lattice=('lattice', 'D', '#1769aa'),
              oracle=('perfect positions, links of linear', '*', '#a0a0a0'),
              adaptive=('lattice, adaptive keyframes', '^', '#2e8540'))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('json', type=Path, help='results of lattice_baseline.py')
    parser.add_argument('--out', type=Path, required=True, help='picture to write (.png, .svg)')
    args = parser.parse_args(argv)
    content = read_report(args.json, code='VIS-INPUT-905',
                          maker='tools/benchmarks/lattice_baseline.py')
    draw(content, content['rows'], args.out)
    print(f'picture: {args.out}')
    return 0


def draw(content: dict, rows: list[dict], out: Path) -> None:
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    figure, panels = pyplot.subplots(1, 2, figsize=(9.5, 3.8), sharex=True)
    for panel, column, title in zip(panels, ('map50', 'map50_medium_fast'),
                                    ('all objects', 'medium and fast objects'), strict=True):
        lines = defaultdict(list)
        for row in rows:
            if row[column] is not None:
                lines[row['method']].append((row['keyframe_rate'], row[column], row['setting']))
        for method, points in lines.items():
            label, marker, colour = STYLES[method]
            points.sort()
            panel.plot([p[0] for p in points], [p[1] for p in points], marker=marker,
                       color=colour, label=label, linewidth=1.4)
        panel.set_xscale('log', base=2)
        panel.set_xlabel('share of frames that the detector sees')
        panel.set_ylabel('AP at IoU 0.5 (%)')
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8, loc='best')
    first = rows[0]
    figure.suptitle(f'{first["dataset"]}, protocol {first["protocol"]}, {first["frames"]} frames, '
                    f'commit {content.get("commit", "")}', fontsize=9)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)


if __name__ == '__main__':
    run_cli(main)
