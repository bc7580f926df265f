"""How near the simulator comes to what is measured.

Part 'schedules': every schedule of vision.pipeline and of torch, with uneven stages, on four forks
of this process (9 minutes). Each compute action sleeps until its time is over; transfers, the
runtime and, in the sharded setting, the gathers of two pipelines of two ranks are real.

  predicted_s       makespan, written to a file (--predictions) before any of the schedules runs;
                    its sha256 is in each row. Known by then are the times of the actions, and
                    overhead_s of each compute action, fitted to the makespan of 1F1B with the
                    first costs; in the sharded setting also gather_s and reduce_s, of one of them
                    alone.
  measured_s        median of the rounds, in which all take turns; least_s and most_s beside it.
  error             of the prediction, relative to what was measured; ideal_error of one without
                    overhead and collectives.

Also written: 'swapped', pairs of a setting that are measured in another order than predicted;
predictions less than half a percent apart have none.

Part 'memory': peaks of two training steps with AdamW beside those of torch's own memory trackers,
of five models, plain and sharded over eight ranks by FSDP2 (2 minutes).

  predicted_bytes   of a trace without data; tracked_bytes by torch, of real steps whose
                    collectives do nothing. error is relative to the latter; both by category
                    beside it.

Part 'rows': published measurements beside our predictions of them, all of them; what is in its
tables stands in simulator_rows.py, which runs by itself too.

Part 'search': how long the search of decoders takes (simulator_search.py says what its rows are).

Examples:
  python benchmarks/simulator.py --json docs/results/simulator_schedules.json --record
  python benchmarks/simulator.py --part memory --json docs/results/simulator_memory.json --record
  python benchmarks/simulator.py --part search --json docs/results/simulator_search.json --record
  python benchmarks/simulator.py --rows FILE.csv --parameters configs/clusters/fitted.yaml
"""

from __future__ import annotations

import argparse
from pathlib import Path

import simulator_rows
from simulator_memory import memory
from simulator_schedules import SEEDS, schedules, swapped
from simulator_search import show_search, time_search

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.common.core.tables import print_table

PARTS = ('schedules', 'memory', 'rows', 'search')


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('--part', choices=PARTS, help='what is measured (default: schedules, or rows if there '
        'are some)')
    add_report_options(parser)
    add('--predictions', type=Path, metavar='FILE', help='of schedules, before they run '
        '(default: beside the rows)')
    simulator_rows.add_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    part = args.part or ('rows' if args.rows else 'schedules')
    if (part == 'rows') != bool(args.rows):
        parser.error('--rows FILE and --part rows go together')
    if part == 'rows':
        return simulator_rows.run(args)
    if part == 'memory':
        return _memory(args)
    if part == 'search':
        return _search(args)
    predictions = args.predictions
    if predictions is None and args.json:
        predictions = args.json.with_suffix('.predicted.json')
    rows = schedules(predictions)
    orders = swapped(rows)
    show(rows)
    worst = max(abs(row['error']) for row in rows)
    print(f'largest error {100 * worst:.2f} %, in another order: {", ".join(orders) or "none"}')
    if args.json:
        write_report(args.json, rows, is_recorded=args.record, part=part, seed=SEEDS[0],
                     swapped=orders)
        print(f'rows: {args.json}')
    return 0


def _memory(args: argparse.Namespace) -> int:
    rows = memory()
    for row in rows:
        print(f'{row["model"]:24} {row["ranks"]} ranks: predicted {row["predicted_bytes"]:,}, '
              f'tracked {row["tracked_bytes"]:,}, error {100 * row["error"]:+.3f} %')
    if args.json:
        write_report(args.json, rows, is_recorded=args.record, part='memory', seed=0)
        print(f'rows: {args.json}')
    return 0


def _search(args: argparse.Namespace) -> int:
    rows = time_search()
    show_search(rows)
    if args.json:
        write_report(args.json, rows, is_recorded=args.record, part='search', seed=0)
        print(f'rows: {args.json}')
    return 0 if all(row.get('is_same', True) for row in rows) else 1


def show(rows: list[dict]) -> None:
    columns = ('setting', 'method', 'predicted_s', 'measured_s', 'least_s', 'most_s', 'error',
               'ideal_error')
    print_table(columns, [[f'{100 * row[column]:+.2f} %' if column.endswith('error') else
                           str(row[column]) for column in columns] for row in rows],
                num_left=2, min_width=120)


if __name__ == '__main__':
    run_cli(main)
