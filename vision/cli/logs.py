"""Curves and times of trainings: vision logs plot|summary|time WORK_DIR...

A log is a work_dir (its newest run), or a file TIMESTAMP/vis_data/scalars.json in it. Metrics of
validations stand at the iteration after which they were measured.

  vision logs plot work_dirs/a --keys loss_cls loss_bbox --out losses.png
  vision logs plot work_dirs/a work_dirs/b --keys coco/bbox_mAP --legend small large
  vision logs summary work_dirs/a
  vision logs time work_dirs/a work_dirs/b
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.files import refuse_unwritable
from vision.common.core.scalars import (
    RunLog,
    default_keys,
    read_log,
    require_keys,
    summarise,
    train_times,
)


def build_parser() -> argparse.ArgumentParser:
    """The actions ``plot``, ``summary`` and ``time``, with MMDetection's names beside them."""
    parser = command_parser(__doc__)
    actions = parser.add_subparsers(dest='action', required=True)
    plot = actions.add_parser('plot', aliases=['plot_curve'], help='draw losses and metrics')
    plot.add_argument('--keys', nargs='+', metavar='NAME', help='what to draw, as summary lists '
                      'it (default: loss)')
    plot.add_argument('--legend', nargs='+', metavar='NAME', help='a name for each log, or for '
                      'each line')
    plot.add_argument('--title', default='', help='above the picture')
    plot.add_argument('--out', type=Path, default=Path('curves.png'), metavar='FILE',
                      help='.png, .pdf or .svg (default: %(default)s)')
    summary = actions.add_parser('summary', help='first, last, least and largest of each scalar')
    summary.add_argument('--keys', nargs='+', metavar='NAME', help='only these')
    time = actions.add_parser('time', aliases=['cal_train_time'], help='seconds an iteration')
    time.add_argument('--include-outliers', action='store_true', help='also the first line of '
                      'each epoch, which holds its start')
    for action in (plot, summary, time):
        action.add_argument('logs', nargs='+', metavar='LOG', help='work_dir or scalars.json')
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    logs = [read_log(path) for path in args.logs]
    for log in logs:
        if log.num_broken:
            print(f'{log.path}: {log.num_broken} lines could not be read')
    if args.action in ('plot', 'plot_curve'):
        draw(parser, args, logs)
    elif args.action == 'summary':
        for log in logs:
            show_summary(log, args.keys)
    else:
        for log in logs:
            show_times(log, args.include_outliers)
    return 0


def draw(parser: argparse.ArgumentParser, args: argparse.Namespace, logs: list[RunLog]) -> None:
    """Write the curves of all logs in one picture; a name that a log has not is refused."""
    from vision.common.nn.plots import plot_curves
    refuse_unwritable(args.out)
    lines = {}
    keys = args.keys or sorted({key for log in logs for key in default_keys(log)})
    for log in logs:
        require_keys(log, keys)
    if args.legend and len(args.legend) not in (len(logs), len(logs) * len(keys)):
        parser.error(f'--legend has {len(args.legend)} names: give {len(logs)}, one a log, or '
                     f'{len(logs) * len(keys)}, one a line')
    for number, log in enumerate(logs):
        name = f'{log.name} ' if len(logs) > 1 else ''
        for place, key in enumerate(keys):
            title = f'{name}{key}'
            if args.legend:
                title = f'{args.legend[number]} {key}'.strip() if len(args.legend) == len(logs) \
                    and len(keys) > 1 else args.legend[number * len(keys) + place]
            if title in lines:  # two runs of one work_dir
                title = f'{title} ({number + 1})'
            lines[title] = log.curves[key]
    plot_curves(lines, args.out, title=args.title)
    print(f'{args.out}: {len(lines)} curves, {sum(len(x) for x, _ in lines.values())} points')


def show_summary(log: RunLog, keys: list[str] | None) -> None:
    """Print first, last, least and largest of each scalar, with the iteration at which it was."""
    from rich.console import Console
    from rich.table import Table
    require_keys(log, keys or [])
    table = Table()
    table.add_column('scalar', no_wrap=True,  # a name that is cut names nothing
                     min_width=max(map(len, log.curves)))
    for column in ('first', 'last', 'least', 'at', 'largest', 'at'):
        table.add_column(column, justify='right')
    for row in summarise(log):
        if keys and row['name'] not in keys:
            continue
        note = f' ({row["num_not_finite"]} not finite)' if row['num_not_finite'] else ''
        table.add_row(f'{row["name"]}{note}',
                      *(shown(row[name]) for name in ('first', 'last', 'min', 'min_at', 'max',
                                                      'max_at')))
    print(log.path)
    Console().print(table)


def show_times(log: RunLog, include_outliers: bool) -> None:
    """Print the mean time of an iteration, of the slowest and of the fastest epoch."""
    rows = train_times(log, include_outliers=include_outliers)
    print(f'{log.path}')
    if len(rows) > 1:
        slow, fast = (choose(rows, key=lambda row: row['mean_s']) for choose in (max, min))
        print(f'  slowest epoch {slow["epoch"]}: {slow["mean_s"]:.4f} s an iteration')
        print(f'  fastest epoch {fast["epoch"]}: {fast["mean_s"]:.4f} s an iteration')
    lines = sum(row['num'] for row in rows)
    mean = sum(row['mean_s'] * row['num'] for row in rows) / lines
    shares = [row['data_share'] for row in rows if row['data_share'] is not None]
    data = f', {100 * sum(shares) / len(shares):.0f} % of it waiting for data' if shares else ''
    print(f'  average of {lines} lines: {mean:.4f} s an iteration{data}')


def shown(value: float | int | None) -> str:
    """A number for the table; '-' for none."""
    if value is None:
        return '-'
    return str(value) if isinstance(value, int) else f'{value:.4g}'


if __name__ == '__main__':
    run_cli(main)
