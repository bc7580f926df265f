"""How long does a step of a pipeline take under a schedule, who waits, what memory does it need?

Simulates one schedule, and others beside it, from the cost of a chunk's forward (F), gradient of
the input (I) and gradient of the weights (W), and prints for each: the step's time, the idle share
of the rank that is idle most, the most activations that a rank holds (1 is one micro-batch in all
chunks of the rank), and the all-gathers of sharded parameters. Schedules with fewer
chunks on a rank get the same model in fewer, longer chunks. With --unit auto the units that were
tried are listed too.

With --out it draws timeline.png (a row for each rank; shades are chunks, numbers micro-batches),
memory.png (over the step, of the rank that needs most), and writes trace.json of the first
schedule, which chrome://tracing and ui.perfetto.dev open.

--profile CONFIG runs the model of a config here, on one micro-batch of its data, piece by piece
forward and backward, cuts it into stages of even time, and takes their seconds and bytes; the
latency between ranks is the one that you give, in seconds.

Times are in one unit of your choice; --costs-file holds measured ones by stage:
  {"forward": [..], "backward_input": [..], "backward_weight": [..], "latency": 0.001,
   "gather": [..], "reduce": [..], "activation_bytes": [..], "weight_bytes": [..],
   "static_bytes": [.. by rank]}

Examples:
  vision pipeline --ranks 4 --chunks 4 --microbatches 28
  vision pipeline --ranks 4 --chunks 4 --microbatches 28 --unit 7 \\
      --costs 1:1.3:0.7 --latency 0.25 --compare 1f1b breadth-first interleaved-zero-bubble
  vision pipeline --ranks 4 --chunks 2 --microbatches 28 --unit 7 \\
      --compare 1f1b breadth-first interleaved-zero-bubble --out report
  vision pipeline --ranks 2 --chunks 4 --microbatches 16 --gather 0.5 \\
      --active 3 --budget 40
  vision pipeline --microbatches 8 --chunks 2 --compare 1f1b \\
      --profile configs/pipeline/vit-tiny_pp4_imagenette160.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path

from vision.common.core.amounts import format_bytes, parse_budget
from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_unwritable
from vision.common.core.tables import print_table
from vision.pipeline.core.compare import NAMES, Comparison, Simulated, read_costs
from vision.pipeline.core.drawing import draw_memory, draw_timelines
from vision.pipeline.core.gathers import REDUCE_MODES, count
from vision.pipeline.core.tasks import REDUCE_GRAD, Costs, Table


def costs_of(args: argparse.Namespace) -> Costs:
    """By stage, of ``--chunks`` chunks on each rank.

    Raises:
        VisionError: VIS-DATA-1501, a file of costs that cannot be read.
    """
    num_stages = args.ranks * args.chunks
    if args.profile:
        return profiled(args)
    if args.costs_file:
        return read_costs(args.costs_file, args.ranks, num_stages)
    uniform = Costs.uniform(num_stages, args.costs, latency=args.latency, gather=args.gather,
                            reduce=args.reduce_time)
    # Without measured bytes memory is counted in activations of one chunk.
    return Costs(**{field.name: getattr(uniform, field.name) for field in fields(Costs)}
                 | dict(weight_bytes=()))


def profiled(args: argparse.Namespace) -> Costs:
    """Of the model of ``--profile`` on this machine, in even stages.

    Raises:
        VisionError: VIS-CONFIG-1551, a batch that has fewer samples than micro-batches.
    """
    from vision.common.mm.launch import model_and_batch
    from vision.pipeline.mm.plan import measured_costs
    args.config = args.profile
    config, model, batch = model_and_batch(args)
    inputs = model.data_preprocessor(batch, True)['inputs']
    size = len(inputs) // args.microbatches
    if not size:
        raise VisionError('VIS-CONFIG-1551', f'a batch of {len(inputs)} samples for '
                          f'{args.microbatches} micro-batches',
                          where='train_dataloader.batch_size', do='--microbatches N, or '
                          '--cfg-options train_dataloader.batch_size=N')
    stages, said = measured_costs(model, inputs[:size],
                                  (config.get('strategy') or {}).get('stages'),
                                  num_ranks=args.ranks, num_chunks=args.chunks)
    print(said)
    num_stages = args.ranks * args.chunks
    return replace(stages, latency=args.latency, gather=(args.gather,) * num_stages,
                   reduce=(args.reduce_time,) * num_stages)


def has_bytes(args: argparse.Namespace) -> bool:
    """Whether costs come with measured bytes; without them memory is counted in activations."""
    return bool(args.costs_file or args.profile)


def torch_table(name: str, *sizes: int) -> Table:
    """A table of torch's own schedules, looked up when one is asked for."""
    from vision.pipeline.nn.torch_private import torch_table  # seconds, and not always needed
    return torch_table(name, *sizes)


def show(found: Sequence[Simulated], args: argparse.Namespace) -> None:
    """Print a line for each schedule, the units that were tried for it, and warnings."""
    columns = ('schedule', 'chunks', 'step', 'bubble', 'activations',
               *(['peak memory'] if has_bytes(args) else []),
               f'gathers, {args.active} whole', 'reductions')
    print_table(columns, [row_of(each, has_bytes(args)) for each in found],
                title=f'{args.ranks} ranks, {args.chunks} chunks on each, {args.microbatches} '
                'micro-batches')
    for each in found:
        if each.candidates:
            show_candidates(each, args)
        if each.warning:
            print(each.warning)


def row_of(each: Simulated, has_bytes: bool) -> list[str]:
    """A line of the table: step, bubble, activations in flight, memory, gathers and reductions."""
    timeline = each.timeline
    return [each.label, str(timeline.table.num_chunks), f'{timeline.makespan:.5g}',
            f'{100 * timeline.bubble:.1f} %', f'{each.devices_in_flight:g}',
            *([format_bytes(max(timeline.peak_bytes))] if has_bytes else []),
            str(max(timeline.gathers)), str(max(count(timeline.table)[REDUCE_GRAD]))]


def show_candidates(each: Simulated, args: argparse.Namespace) -> None:
    """Print the units that were tried for a schedule, and which one was taken."""
    columns = ('unit', 'step', 'bubble', 'activations', 'peak memory', 'gathers', 'fits')
    print_table(columns, [
        [f'{row.unit} tight' if row.is_tight else str(row.unit), f'{row.makespan:.5g}',
         f'{100 * row.bubble:.1f} %', f'{row.peak_in_flight / args.chunks:g}',
         format_bytes(row.peak_bytes) if has_bytes(args) else
         f'{row.peak_bytes} activations of a chunk', str(row.gathers),
         'yes' if row.fits else 'no'] for row in each.candidates],
        title=f'units tried; taken: {each.label}', num_left=0)


def times(text: str) -> tuple[float, ...]:
    """'1:1.3:0.7' as the times of F, I and W."""
    found = tuple(float(part) for part in text.split(':'))
    if len(found) != 3 or not all(0 <= value < float('inf') for value in found) or not any(found):
        raise ValueError
    return found


def unit(text: str) -> int | None:
    """Reads ``--unit``: 'auto' gives None; ValueError for what is neither that nor a number."""
    return None if text == 'auto' else int(text)


def budget(text: str) -> int:
    """Reads ``--budget``: bytes of '12GB', or a plain number; ValueError for a ratio."""
    amount = parse_budget(int(text) if text.isdigit() else text)
    if amount.bytes is None:
        raise ValueError
    return amount.bytes


def duration(text: str) -> float:
    """Reads a time from 0 on, finite, in the unit of the costs; ValueError for any other."""
    value = float(text)
    if not 0 <= value < float('inf'):
        raise ValueError
    return value


def build_parser() -> argparse.ArgumentParser:
    """Options of the pipeline, of its costs and of the schedules beside it; those of a config only
    where MMEngine is installed."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('--ranks', type=int, default=4, help='P, of the pipeline (default: 4)')
    add('--chunks', type=int, default=4, help='V, chunks of the model on a rank (default: 4)')
    add('--microbatches', type=int, default=28, help='M, of a step (default: 28)')
    add('--schedule', choices=NAMES, default='zeropp', metavar='NAME',
        help=f'{", ".join(NAMES)} (default: zeropp)')
    add('--unit', type=unit, metavar='auto|N', help='micro-batches of a scheduling unit of zeropp '
        '(default: auto, the fastest)')
    add('--costs', type=times, default=(1.0, 1.0, 1.0), metavar='F:I:W',
        help='time of a chunk for one micro-batch (default: 1:1:1)')
    add('--latency', type=duration, default=0.0, metavar='TIME',
        help='until an output is on the next rank (default: 0)')
    add('--gather', type=duration, default=0.0, metavar='TIME',
        help="all-gather of a chunk's parameters (default: 0)")
    add('--reduce-time', type=duration, default=0.0, metavar='TIME',
        help="reduce-scatter of a chunk's gradients (default: 0)")
    costs = parser.add_mutually_exclusive_group()
    costs.add_argument('--costs-file', type=Path, metavar='JSON',
                       help='measured costs instead of these four')
    costs.add_argument('--profile', metavar='CONFIG', help='measure the model of a config that '
                       'tools/train.py trains')
    add('--active', type=int, default=2, metavar='N',
        help='chunks of a rank that are whole at the same time (default: 2)')
    add('--reduce', choices=REDUCE_MODES, default='per_unit',
        help='when gradients are reduced (default: per_unit)')
    add('--budget', type=budget, metavar='AMOUNT', help="of a rank, for --unit auto: '12GB', or "
        'without measured bytes a number of chunk activations')
    add('--compare', nargs='+', choices=NAMES, default=[], metavar='NAME',
        help='further schedules, simulated with the same costs')
    add('--out', type=Path, metavar='FOLDER', help='where pictures and trace go (default: none)')
    if find_spec('mmengine'):  # schedules alone are simulated without it
        from vision.common.mm.launch import add_config_arguments
        add_config_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.out:
        refuse_unwritable(args.out / 'trace.json')
    compared = Comparison(args.ranks, args.chunks, args.microbatches, costs_of(args), args.unit,
                          args.active, args.reduce, args.budget, torch_table)
    found = [compared.simulated(name) for name in dict.fromkeys((args.schedule, *args.compare))]
    show(found, args)
    if args.out:
        draw_timelines(found[1:] + found[:1], args.out / 'timeline.png')
        draw_memory(found, args.out / 'memory.png', has_bytes=has_bytes(args),
                    budget_bytes=args.budget)
        with atomic_write(args.out / 'trace.json') as file:
            file.write(json.dumps(found[0].timeline.chrome_trace()).encode())
        print(f'trace: {args.out / "trace.json"}')
    return 0


if __name__ == '__main__':
    run_cli(main)
