"""Published measurements beside our predictions of them, all of them.

Rows are sorted by their ids; constants are fitted on the first, third, ... and the others are only
scored. Without --parameters and --fit the presets of configs/clusters are used as they are.

  error     of the prediction, relative to what was measured, in the row's own metric.
  without   overlap or sharing of adapters: mean errors with that part of the model off.
  order     share of pairs of rows that are in the measured order.
  chosen    what was measured for the strategy that is predicted best, over the best measured, of
            rows that do the same work; none where a half has no two of one work.

Examples:
  python benchmarks/simulator_rows.py --rows FILE.csv
  python benchmarks/simulator_rows.py --rows FILE.csv --fit configs/clusters/fitted.yaml
  python benchmarks/simulator_rows.py --rows FILE.csv \\
      --parameters configs/clusters/fitted.yaml --json docs/results/simulator_rows.json --record
"""

from __future__ import annotations

import argparse
from functools import lru_cache
from pathlib import Path
from typing import Any

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.common.core.tables import print_table
from vision.simulator.core.cluster import Cluster, read_cluster
from vision.simulator.core.parameters import Fitted, read_parameters, write_parameters
from vision.simulator.core.published import read_rows
from vision.simulator.core.rows import (
    RECALLED,
    Outcome,
    ablation_errors,
    fit_rows,
    predict_rows,
    summary,
)

CLUSTERS = Path(__file__).resolve().parents[1] / 'configs' / 'clusters'


@lru_cache
def preset(name: str) -> Cluster:
    return read_cluster(CLUSTERS / f'{name}.yaml')


def measure(rows_path: Path, *, parameters: Path | None = None, fit_to: Path | None = None
            ) -> tuple[list[Outcome], Fitted]:
    """Predictions of all rows, and the constants they were made with."""
    rows = read_rows(rows_path)
    fitted = read_parameters(parameters) if parameters else Fitted({}, 0.0, '')
    if fit_to:
        constants = fit_rows(rows, preset)
        own = [each.times for each in predict_rows(rows, preset, constants)
               if each.half == 'fit' and each.case.decoder and each.case.metric != 'peak_memory'
               and each.case.source not in RECALLED]
        fitted = write_parameters(fit_to, constants, own)
    return predict_rows(rows, preset, fitted.constants), fitted


def scores(outcomes: list[Outcome]) -> dict[str, Any]:
    """Of both halves and of all rows together."""
    halves = {half: [each for each in outcomes if each.half == half] for half in ('fit', 'held')}
    return {name: summary(group) for name, group in (*halves.items(), ('all', outcomes)) if group}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--rows', type=Path, metavar='FILE', help='CSV of published rows')
    add('--parameters', type=Path, metavar='FILE', help='fitted constants, frozen')
    add('--fit', type=Path, metavar='FILE', help='fit constants and write them to this file')
    add('--half', choices=('fit', 'held', 'all'), default='all',
        help='rows and scores that are shown (default: all); constants are those of the fit half')


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add_arguments(parser)
    add_report_options(parser, what='rows and scores')
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if not args.rows:
        parser.error('--rows FILE is needed')
    refuse_no_evidence(args.json, is_recorded=args.record)
    return run(args)


def run(args: argparse.Namespace) -> int:
    outcomes, fitted = measure(args.rows, parameters=args.parameters, fit_to=args.fit)
    if args.half != 'all':
        outcomes = [each for each in outcomes if each.half == args.half]
    found, off = scores(outcomes), ablation_errors(outcomes, fitted.constants)
    show(outcomes, found)
    for what, sources in off.items():
        for name, each in sources.items():
            print(f'without {what}: {name} ({each["count"]}): {100 * each["on"]:.1f} % becomes '
                  f'{100 * each["off"]:.1f} %')
    if args.json:
        rows = [each.to_dict() for each in outcomes]
        write_report(args.json, rows, is_recorded=args.record, part='rows', scores=found,
                     ablations=off, constants=dict(fitted.constants))
        print(f'rows: {args.json}')
    return 0


def show(outcomes: list[Outcome], found: dict[str, Any]) -> None:
    rows = []
    for each in outcomes:
        row = each.to_dict()
        memory = '' if row['memory_error'] is None else f'{100 * row["memory_error"]:+.1f} %'
        rows.append([row['id'], row['source'], row['half'], row['metric'],
                     f'{each.predicted:.5g}', f'{each.measured:.5g}',
                     f'{100 * row["error"]:+.1f} %', memory])
    print_table(('id', 'source', 'half', 'metric', 'predicted', 'measured', 'error', 'memory'),
                rows, num_left=4)
    rows = []
    for half, parts in found.items():
        memory = {f'{name}, memory': each for name, each in parts['memory']['by_source'].items()}
        for name, each in {**parts['times'], **memory}.items():
            rows.append([half, name, str(each['count']), *(
                f'{100 * each[key]:.1f} %' for key in ('mean_error', 'max_error', 'bias')),
                *('' if each[key] is None else f'{each[key]:.3f}' for key in ('order', 'chosen'))])
    print_table(('half', 'rows of', 'count', 'mean error', 'largest', 'bias', 'order', 'chosen'),
                rows, num_left=2)
    for half, parts in found.items():
        for row in parts['scaling']:
            print(f'{half}: {row["id"]} {row["precision"]}, from the rate of one device: '
                  f'{100 * row["error"]:+.1f} %')
        wrong = parts['memory']['said_not_to_fit_though_it_ran']
        print(f'{half}: said not to fit though it ran: {", ".join(wrong) or "none"}')


if __name__ == '__main__':
    run_cli(main)
