"""All iteration times that vTrain published beside our predictions and those of a regression.

1,549 steps of GPT on A100 (github.com/VIA-Research/vTrain, MIT licence): more than the few rows
of simulator_rows.py, from one software on one kind of device. Rows on every fourth line (the
remainder of the line is 1, the header counted) are the quarter on which the shape of the cost
model was developed. The others are for judging, without those that --rows has: some of these were
fitted on. Nothing was chosen by what is left.

  no fit       presets of configs/clusters.
  fitted       constants of --parameters, which were fitted on 30 rows of --rows.
  regression   what a user with measured rows would do instead: nine coefficients, none negative,
               on counts of a step (``COUNTS``), least squares of relative errors, single nodes and
               several apart; on the fitted half of --rows, and on the whole quarter.

Examples:
  git clone https://github.com/VIA-Research/vTrain
  python benchmarks/simulator_vtrain.py --vtrain vTrain/data --rows FILE.csv \\
      --parameters configs/clusters/fitted.yaml --json docs/results/simulator_vtrain.json --record
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as Printed
from scipy.optimize import nnls
from simulator_rows import preset

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.simulator.core.fit import Pair, halves, score
from vision.simulator.core.parameters import read_parameters
from vision.simulator.core.published import Case, case_of, read_rows, read_vtrain
from vision.simulator.core.rows import predict_case

COUNTS = ('arithmetic', 'bubble', 'operators', 'bytes of tensor parallel', 'its messages',
          'gradients inside a node', 'gradients between nodes', 'parameters', 'scores')


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('--vtrain', type=Path, metavar='FOLDER', required=True,
        help='with ground_truth_single.csv and ground_truth_multi.csv')
    add('--rows', type=Path, metavar='FILE', required=True, help='CSV of published rows')
    add('--parameters', type=Path, metavar='FILE', required=True, help='fitted constants')
    add('--part', choices=('quarter', 'rest', 'both'), default='both',
        help='rows that are scored: those of the development, the others (default: both)')
    add_report_options(parser, what='scores')
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    cases = [case_of(row, preset) for row in read_vtrain(args.vtrain)]
    rows = [row for row in read_rows(args.rows) if 'vTrain' in row['source']]
    known = {same_step(row) for row in rows}
    parts = dict(quarter=[case for case in cases if is_developed(case)],
                 rest=[case for case in cases if not is_developed(case)
                       and same_step(case.row) not in known])
    few = [case for case in (case_of(row, preset) for row in halves(read_rows(args.rows))[0])
           if case.source == 'vTrain']
    fitted = read_parameters(args.parameters).constants
    found = {name: {node: scores(own, few_of(few, node), few_of(parts['quarter'], node), fitted)
                    for node in ('single', 'multi') for own in [few_of(part, node)]}
             for name, part in parts.items() if args.part in (name, 'both')}
    show(found)
    if args.json:
        write_report(args.json, [], is_recorded=args.record, part='vtrain', scores=found,
                     constants=dict(fitted))
        print(f'scores: {args.json}')
    return 0


def same_step(row: Mapping[str, str]) -> tuple[float, ...]:
    """Equal for rows of both files that are one measurement."""
    return tuple(round(float(row[name]), 3) for name in (
        'n_gpus', 'layers', 'hidden', 'dp', 'tp', 'pp', 'micro_batch', 'global_batch', 'value'))


def is_developed(case: Case) -> bool:
    return int(case.row['id'][-5:]) % 4 == 1


def few_of(cases: Sequence[Case], node: str) -> list[Case]:
    return [case for case in cases if case.is_multi_node == (node == 'multi')]


def scores(cases: Sequence[Case], few: Sequence[Case], quarter: Sequence[Case],
           fitted: Mapping[str, float]) -> dict[str, Any]:
    """Of each way to predict these cases."""
    works = ['/'.join(case.row[name] for name in ('n_gpus', 'layers', 'hidden', 'seq_or_img',
                                                  'global_batch')) for case in cases]
    ways = {'no fit': simulated(cases, {}), 'fitted': simulated(cases, fitted),
            f'regression on {len(few)} rows': regressed(few, cases),
            f'regression on {len(quarter)} rows': regressed(quarter, cases)}
    return {name: {**asdict(score(pairs, works)), 'median_error': round(float(np.median(
        [abs(p / m - 1) for p, m in pairs])), 4)} for name, pairs in ways.items()}


def simulated(cases: Sequence[Case], constants: Mapping[str, float]) -> list[Pair]:
    return [(predict_case(case, constants)[0], case.measured) for case in cases]


def regressed(known: Sequence[Case], cases: Sequence[Case]) -> list[Pair]:
    """Predictions of ``cases`` by coefficients of ``known``, whose relative errors are least."""
    measured = np.array([case.measured for case in known])
    matrix = np.array([counts(case) for case in known]) / measured[:, None]
    size = np.maximum(np.abs(matrix).max(0), 1e-30)
    coefficients = nnls(matrix / size, np.ones(len(known)))[0] / size
    return [(float(np.dot(counts(case), coefficients)), case.measured) for case in cases]


def counts(case: Case) -> list[float]:
    """Of one device and step, in the order of ``COUNTS``."""
    d, s = case.decoder, case.strategy
    layers = d.layers / s.pipeline * s.num_microbatches
    tokens = s.micro_batch * d.sequence
    flops = 4 / 3 * d.model_flops(s.global_batch * d.sequence) / s.world_size
    tensor = layers * tokens * d.hidden * (s.tensor - 1) / s.tensor
    held = d.num_parameters / s.tensor / s.pipeline
    gradients = held * (s.data - 1) / s.data
    return [flops, flops * (s.pipeline - 1) / s.num_microbatches, layers, tensor,
            layers * (s.tensor > 1), gradients * (not case.is_multi_node),
            gradients * case.is_multi_node, held,
            layers * s.micro_batch * d.heads / s.tensor * d.sequence**2]


def show(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    table = Printed('rows', 'nodes', 'way', 'count', 'mean error', 'median', 'bias', 'order',
                    'chosen')
    for part, nodes in found.items():
        for node, ways in nodes.items():
            for name, each in ways.items():
                table.add_row(part, node, name, str(each['count']), *(
                    f'{100 * each[key]:.1f} %' for key in ('mean_error', 'median_error', 'bias')),
                    f'{each["order"]:.3f}', f'{each["chosen"] or 1:.3f}')
    Console(width=110).print(table)


if __name__ == '__main__':
    run_cli(main)
