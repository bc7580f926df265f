"""Step time against gradient error of active-class selection as a picture.

Reads what benchmarks/active_class.py wrote.

  python benchmarks/plot_active_class.py docs/results/active_class.json --out curve.png
"""

from __future__ import annotations

from pathlib import Path

from vision.common.core.errors import run_cli
from vision.common.core.figures import picture_parser, pyplot, save_figure
from vision.common.core.report import read_report


def main(argv: list[str] | None = None) -> int:
    args = picture_parser(__doc__, 'active_class.py').parse_args(argv)
    content = read_report(args.json, code='VIS-INPUT-1053',
                          maker='benchmarks/active_class.py', column='grad_rel_error')
    draw(content['rows'], content.get('commit', ''), args.out)
    return 0


def draw(rows: list[dict], commit: str, out: Path) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    sizes = sorted({row['classes'] for row in rows})
    figure, panels = pyplot().subplots(1, len(sizes), figsize=(4.8 * len(sizes), 3.8),
                                       squeeze=False)
    for panel, size in zip(panels[0], sizes, strict=True):
        own = [row for row in rows if row['classes'] == size]
        for row in own:
            time_ms = row['run_ms']
            panel.scatter(time_ms, row['grad_rel_error'], s=24)
            panel.annotate(label_of(row, own), (time_ms, row['grad_rel_error']), fontsize=8,
                           xytext=(4, 3), textcoords='offset points')
        panel.axvline(own[0]['full_step_ms'], color='#444444', linestyle='--', linewidth=1)
        panel.axhline(0.1, color='#a0a0a0', linestyle=':', linewidth=1)
        panel.set_xscale('log')
        panel.set_yscale('log')
        panel.margins(x=0.12, y=0.1)  # room for the names
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
            axis.set_minor_formatter(NullFormatter())
        panel.set_xlabel('step with all upkeep (ms); dashed: full softmax')
        panel.set_ylabel('relative error of the gradient')
        panel.set_title(f'{size:,} classes', fontsize=10)
        panel.grid(alpha=0.3)
    figure.suptitle(f'{rows[0]["batch"]} samples, {rows[0]["dim"]} dimensions, commit {commit}',
                    fontsize=9)
    save_figure(figure, out)


def label_of(row: dict, rows: list[dict]) -> str:
    """The selector; with its lists searched where one selector stands there several times."""
    name = row['selector']
    is_alone = sum(other['selector'] == name for other in rows) == 1
    return name if is_alone else f'{name}, {row["nprobe"]} lists'


if __name__ == '__main__':
    run_cli(main)
