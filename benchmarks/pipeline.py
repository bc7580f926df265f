"""Schedules of a pipeline side by side.

Part 'simulated': every schedule under the same costs, by the simulator of vision.pipeline.core.

  bubble_percent  idle share of the step of the rank that is idle most.
  activations   most that a rank holds from forward to the gradient of the weights; 1 is one
                micro-batch in all chunks of the rank.
  gathers_K     all-gathers of sharded parameters of the rank that has most, in a step with K of
                its chunks whole at a time (all of them, where it has no more).
  whole_2       share of a rank's parameters that two whole chunks are: 1 where it has no more.
  step          time, in that of a chunk's forward.

Costs F:I:W are of one micro-batch in one chunk; a schedule with fewer chunks on a rank gets the
same model in longer chunks. Latency is until an output is on the next rank; gather is the time of
an all-gather of a chunk (two chunks whole then, and step and bubble wait for it). ZeroPP's table
is the one that the search finds for its unit, without tables of others.

Part 'executed': every schedule by the runtime of vision.pipeline.nn, on four forks of this process
(2.5 minutes).

  makespan_s        from the first action of any rank to the last: median of the rounds, in which
                    all schedules take turns; least_s and most_s beside it. Each action sleeps
                    until its time is over. to_1f1b, to_breadth_first: over theirs.
  simulated_s       by the simulator with the times and the latency measured in this run;
                    simulation_error is its difference from makespan_s, relative to that.
  in_flight         most micro-batches in chunks of a rank at once, counted from what ran.
  gradient_error    largest difference from one process, over the largest gradient;
                    sharded_gradient_error: two pipelines of two ranks with sharded data.
  gathers, reduces  collectives that a rank ran in a sharded step, of the rank that has most;
                    is_as_planned: on each rank as many as its row of the table has.

Part 'training': real steps of two configs on two processes of this machine, under ZeroPP and
under what a user would take instead (10 minutes; reads data/imagenette160).

  step_ms           forward, backward and optimizer, of the slowest rank: median of five steps
                    after four.
  parameters_mb     that a rank holds between steps, of the rank that has most.
  resident_mb       by how much the resident memory of that rank grew at most.

Examples:
  python benchmarks/pipeline.py --part simulated \\
      --json docs/results/pipeline_simulated.json --record
  python benchmarks/pipeline.py --part executed \\
      --json docs/results/pipeline_executed.json --record
  python benchmarks/pipeline.py --part training \\
      --json docs/results/pipeline_training.json --record
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline_executed import executed
from pipeline_training import training

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.common.core.tables import print_table
from vision.pipeline.core.gathers import count, with_gathers
from vision.pipeline.core.schedules import make_table
from vision.pipeline.core.simulate import simulate
from vision.pipeline.core.tasks import UNSHARD, Costs, Table
from vision.pipeline.core.transfers import validate, with_transfers
from vision.pipeline.core.zeropp import zeropp
from vision.pipeline.nn.torch_private import torch_table

ACTIVE = (1, 2, 3)
# Chunks on a rank: fixed by the schedule, or those of the setting (None).
CHUNKS = {'gpipe': 1, '1f1b': 1, 'interleaved-1f1b': None, 'breadth-first': None,
          'interleaved-zero-bubble': None, 'zbv': 2, 'dualpipev': 2}
TORCH = ('interleaved-zero-bubble', 'zbv', 'dualpipev')


@dataclass(frozen=True)
class Setting:
    """P, V, M, the units of ZeroPP (P, 2 P - 1 or so, more, M), and costs."""

    ranks: int
    chunks: int
    microbatches: int
    units: tuple[int, ...]
    times: tuple[float, float, float] = (1, 1, 1)
    latency: float = 0.0
    gather: float = 0.0

    def __str__(self) -> str:
        parts = [f'P={self.ranks} V={self.chunks} M={self.microbatches}',
                 ':'.join(f'{time:g}' for time in self.times)]
        parts += [f'{name} {value:g}' for name, value in
                  (('latency', self.latency), ('gather', self.gather)) if value]
        return ', '.join(parts)


LARGE = 4, 4, 28, (4, 7, 14, 28)
SETTINGS = (Setting(*LARGE), Setting(*LARGE, latency=0.25),
            Setting(*LARGE, (1, 1.3, 0.7), 0.25), Setting(*LARGE, (1, 0.8, 1.2), 0.25),
            Setting(*LARGE, (1, 1.3, 0.7), 0.25, gather=1),
            Setting(4, 2, 16, (4, 8, 16)), Setting(8, 2, 32, (8, 16, 32)))


def simulated() -> list[dict[str, Any]]:
    """A row for each schedule in each setting."""
    rows = []
    for setting in SETTINGS:
        costs = Costs.uniform(setting.ranks * setting.chunks, setting.times,
                              latency=setting.latency, gather=setting.gather)
        rows += [row_of(setting, table, costs.merged(table.num_stages))
                 for table in tables(setting, costs)]
    return rows


def tables(setting: Setting, costs: Costs) -> Iterator[Table]:
    for name, fixed in CHUNKS.items():
        make = torch_table if name in TORCH else make_table
        yield make(name, setting.ranks, fixed or setting.chunks, setting.microbatches)
    for unit in setting.units:
        yield zeropp(setting.ranks, setting.chunks, setting.microbatches, unit, costs)


def row_of(setting: Setting, table: Table, costs: Costs) -> dict[str, Any]:
    complete = with_transfers(with_gathers(table, active=2), costs)
    validate(complete)
    timeline = simulate(complete, costs)
    gathers = {f'gathers_{active}': max(count(with_gathers(table, active=active))[UNSHARD])
               for active in ACTIVE}
    return dict(setting=str(setting),
                method=table.name if table.unit is None else f'zeropp U={table.unit}',
                chunks=table.num_chunks, bubble_percent=round(100 * timeline.bubble, 4),
                step=round(timeline.makespan, 6),
                activations=max(timeline.peak_in_flight) / table.num_chunks, **gathers,
                whole_2=min(2, table.num_chunks) / table.num_chunks)


PARTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    'simulated': simulated, 'executed': executed, 'training': training}


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('--part', choices=PARTS, default='simulated', help='what is measured (default: simulated)')
    add_report_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    rows = PARTS[args.part]()
    show(rows)
    if args.json:
        write_report(args.json, rows, is_recorded=args.record, part=args.part)
        print(f'rows: {args.json}')
    return 0


def show(rows: list[dict[str, Any]]) -> None:
    """A table for each setting."""
    for setting in dict.fromkeys(row['setting'] for row in rows):
        mine = [row for row in rows if row['setting'] == setting]
        columns = [column for column in mine[0] if column != 'setting']
        print_table(columns, [[f'{row[column]:g}' if isinstance(row[column], float) else
                               str(row[column]) for column in columns] for row in mine],
                    title=setting)


if __name__ == '__main__':
    run_cli(main)
