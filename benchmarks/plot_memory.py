"""Extra work and step time against the peak, a point a method and budget, as a picture.

Reads what benchmarks/memory.py wrote.

  python benchmarks/plot_memory.py docs/results/memory_resnet50.json --out memory_resnet50.png
"""

from __future__ import annotations

from pathlib import Path

from vision.common.core.errors import run_cli
from vision.common.core.figures import picture_parser, pyplot, save_figure
from vision.common.core.report import read_report

METHOD_STYLES = {
    'ours recompute': ('#1769aa', 'o-'), 'ours swap': ('#16a085', 's-'),
    'ours mixed, 1 GB/s beside': ('#2e8540', 'D-'),
    'ours mixed, 1 GB/s in turn': ('#7ab648', 'd-'), 'ours mixed, measured': ('#8e44ad', '^-'),
    'block checkpoint': ('#d1730f', 'X'), 'block checkpoint, reentrant': ('#c0392b', 'X'),
    'selective checkpoint': ('#777777', 'P'), 'save_on_cpu': ('#222222', '*'),
    'compiler budget': ('#b8860b', 'v--')}


def main(argv: list[str] | None = None) -> int:
    args = picture_parser(__doc__, 'memory.py').parse_args(argv)
    draw(read_report(args.json, code='VIS-INPUT-1454', column='peak_ratio',
                     maker='benchmarks/memory.py'), args.out)
    return 0


def draw(content: dict, out: Path) -> None:
    """Two panels of one benchmark: work done again, and the whole step, against the peak."""
    figure, panels = pyplot().subplots(1, 2, figsize=(10, 4.2))
    rows = [row for row in content['rows'] if row.get('peak_ratio') is not None]
    for panel, key, title in (
            (panels[0], 'extra_op_time', "operators run again, of the step's"),
            (panels[1], 'step_ratio', 'step time, of the unmanaged')):
        for name, (colour, form) in METHOD_STYLES.items():
            points = sorted((row['peak_ratio'], row[key]) for row in rows
                            if row['method'] == name and row.get(key) is not None)
            if points:
                panel.plot(*zip(*points, strict=True), form, color=colour, label=name,
                           markersize=6, linewidth=1.2)
        panel.set_xlabel('peak, of the unmanaged')
        panel.set_ylabel(title)
        panel.grid(alpha=0.3)
    first = rows[0]
    figure.suptitle(f'{first["model"]}, {content.get("setting", "")}, batch {first["batch"]}; '
                    f'commit {content["commit"]}', fontsize=9)
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc='lower center', ncols=5, fontsize=8, frameon=False)
    save_figure(figure, out, rect=(0, 0.12, 1, 1))


if __name__ == '__main__':
    run_cli(main)
