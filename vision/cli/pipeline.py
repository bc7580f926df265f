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
  python tools/analysis/pipeline_schedule.py --ranks 4 --chunks 4 --microbatches 28
  python tools/analysis/pipeline_schedule.py --ranks 4 --chunks 4 --microbatches 28 --unit 7 \\
      --costs 1:1.3:0.7 --latency 0.25 --compare 1f1b breadth-first interleaved-zero-bubble
  python tools/analysis/pipeline_schedule.py --ranks 4 --chunks 2 --microbatches 28 --unit 7 \\
      --compare 1f1b breadth-first interleaved-zero-bubble --out report
  python tools/analysis/pipeline_schedule.py --ranks 2 --chunks 4 --microbatches 16 --gather 0.5 \\
      --active 3 --budget 40
  python tools/analysis/pipeline_schedule.py --microbatches 8 --chunks 2 --compare 1f1b \\
      --profile configs/pipeline/vit-tiny_pp4_imagenette160.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table as Printed

from vision.common.core.amounts import format_bytes, parse_budget
from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_unwritable
from vision.pipeline.core.choose import Candidate, choose
from vision.pipeline.core.cut import cut
from vision.pipeline.core.gathers import REDUCE_MODES, count, with_gathers
from vision.pipeline.core.schedules import SCHEDULES, make_table
from vision.pipeline.core.simulate import Timeline, simulate
from vision.pipeline.core.tasks import (
    COMPUTE,
    REDUCE_GRAD,
    UNSHARD,
    B,
    Costs,
    F,
    I,
    Table,
    W,
    looped,
)
from vision.pipeline.core.transfers import validate, with_transfers
from vision.pipeline.core.zeropp import zeropp

TORCH = ('interleaved-zero-bubble', 'zbv', 'dualpipev')
NAMES = ('zeropp', *SCHEDULES, *TORCH)
CHUNKS = {'gpipe': 1, '1f1b': 1, 'zbv': 2, 'dualpipev': 2}  # of those that have a fixed number
LABELS = {F: 'forward', I: 'gradient of the input', W: 'gradient of the weights',
          B: 'both gradients', UNSHARD: 'all-gather', REDUCE_GRAD: 'reduce-scatter'}
# Darkest and lightest shade of a kind: the first chunk of a rank and its last.
SHADES = {F: ('#1d4e89', '#9cc5ec'), I: ('#b3541e', '#f6c391'), W: ('#35682d', '#b5dba6'),
          B: ('#8c2f39', '#eaa9a9'), UNSHARD: ('#6c4ab6', '#6c4ab6'),
          REDUCE_GRAD: ('#c9a227', '#c9a227')}
LINES = ('#1d4e89', '#b3541e', '#35682d', '#8c2f39', '#6c4ab6', '#c9a227', '#333333')


@dataclass(frozen=True)
class Simulated:
    """One schedule: its complete table in time, and the units tried for it."""

    label: str
    timeline: Timeline
    candidates: tuple[Candidate, ...] = ()
    warning: str = ''

    @property
    def devices_in_flight(self) -> float:
        """Activations in those of all chunks of a rank for one micro-batch."""
        return max(self.timeline.peak_in_flight) / self.timeline.table.num_chunks


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
        VisionError: VIS-CONFIG-1511, a batch that has fewer samples than micro-batches; the
            model cannot be cut (1501, 1520 to 1527).
    """
    from vision.common.mm.launch import model_and_batch
    from vision.pipeline.mm.plan import stage_costs
    from vision.pipeline.nn.chunks import measure_pieces, pieces_of
    args.config = args.profile
    config, model, batch = model_and_batch(args)
    inputs = model.data_preprocessor(batch, True)['inputs']
    size = len(inputs) // args.microbatches
    if not size:
        raise VisionError('VIS-CONFIG-1511', f'a batch of {len(inputs)} samples for '
                          f'{args.microbatches} micro-batches',
                          where='train_dataloader.batch_size', do='--microbatches N, or '
                          '--cfg-options train_dataloader.batch_size=N')
    pieces = pieces_of(model, (config.get('strategy') or {}).get('stages'))
    costs = measure_pieces(model, pieces, inputs[:size])
    ranges = cut([cost.seconds for cost in costs], args.ranks * args.chunks)
    Console().print(f'{len(pieces)} pieces in {len(ranges)} stages of '
                    f'{", ".join(str(end - begin) for begin, end in ranges)}; a micro-batch of '
                    f'{size} takes {sum(cost.seconds for cost in costs):.3g} s in all of them')
    stages = stage_costs(costs, ranges, looped(args.ranks, args.chunks))
    return replace(stages, latency=args.latency, gather=(args.gather,) * len(ranges),
                   reduce=(args.reduce_time,) * len(ranges))


def read_costs(path: Path, num_ranks: int, num_stages: int) -> Costs:
    """Costs as the module's docstring has them; a key may be left out but for the three times."""
    try:
        content = dict(json.loads(path.read_text()))
        lengths = {'latency': None, 'static_bytes': num_ranks}
        known = {field.name: lengths.get(field.name, num_stages) for field in fields(Costs)}
        if unknown := sorted(set(content) - set(known)):
            raise ValueError(f'unknown keys {unknown}; known are {sorted(known)}')
        for name, length in known.items():
            values = content.get(name, [])
            if length is None:
                content[name] = float(values or 0)
                continue
            needed = name in ('forward', 'backward_input', 'backward_weight')
            if len(values) != length and (values or needed):
                raise ValueError(f'{name} has {len(values)} values, {length} are needed')
            if not all(value >= 0 for value in values):
                raise ValueError(f'{name} has a value that is no number from 0 on')
            content[name] = tuple(values)
    except (OSError, ValueError, TypeError) as error:
        raise VisionError('VIS-DATA-1501', f'{path} does not hold costs of {num_stages} stages',
                          where=str(path), why=str(error),
                          do='give a JSON file as --help shows it') from error
    return Costs(**content)


def simulated(name: str, args: argparse.Namespace, costs: Costs) -> Simulated:
    """A schedule with gathers and transfers, checked and simulated."""
    num_chunks = CHUNKS.get(name, args.chunks)
    if args.chunks % num_chunks:
        raise VisionError('VIS-CONFIG-1504', f'{name} beside {args.chunks} chunks on each rank',
                          why=f'it has {num_chunks}, and chunks are joined to compare them',
                          do=f'give a multiple of {num_chunks} to --chunks, or leave {name} out')
    sizes = args.ranks, num_chunks, args.microbatches
    costs = costs.merged(args.ranks * num_chunks)
    if name == 'zeropp' and args.unit is None:
        choice = choose(*sizes, costs, budget_bytes=args.budget, active=args.active,
                        reduce=args.reduce)
        validate(choice.table)
        return Simulated(f'zeropp U={choice.unit}', choice.timeline, choice.candidates,
                         choice.warning)
    if name == 'zeropp':
        table = zeropp(*sizes, args.unit, costs, active=args.active)
    else:
        table = torch_table(name, *sizes) if name in TORCH else make_table(name, *sizes)
    table = with_transfers(with_gathers(table, active=args.active, reduce=args.reduce), costs)
    validate(table)
    label = name if table.unit is None else f'{name} U={table.unit}'
    return Simulated(label, simulate(table, costs))


def has_bytes(args: argparse.Namespace) -> bool:
    return bool(args.costs_file or args.profile)


def torch_table(name: str, *sizes: int) -> Table:
    from vision.pipeline.nn.torch_private import torch_table  # seconds, and not always needed
    return torch_table(name, *sizes)


def show(console: Console, found: Sequence[Simulated], args: argparse.Namespace) -> None:
    table = Printed(title=f'{args.ranks} ranks, {args.chunks} chunks on each, '
                    f'{args.microbatches} micro-batches')
    columns = ('schedule', 'chunks', 'step', 'bubble', 'activations',
               *(['peak memory'] if has_bytes(args) else []),
               f'gathers, {args.active} whole', 'reductions')
    for column in columns:
        table.add_column(column, justify='left' if column == 'schedule' else 'right')
    for each in found:
        timeline = each.timeline
        reductions = count(timeline.table)[REDUCE_GRAD]
        table.add_row(each.label, str(timeline.table.num_chunks), f'{timeline.makespan:.5g}',
                      f'{100 * timeline.bubble:.1f} %', f'{each.devices_in_flight:g}',
                      *([format_bytes(max(timeline.peak_bytes))] if has_bytes(args) else []),
                      str(max(timeline.gathers)), str(max(reductions)))
    console.print(table)
    for each in found:
        if each.candidates:
            show_candidates(console, each, args)
        if each.warning:
            console.print(f'[yellow]{each.warning}')


def show_candidates(console: Console, each: Simulated, args: argparse.Namespace) -> None:
    table = Printed(title=f'units tried; taken: {each.label}')
    for column in ('unit', 'step', 'bubble', 'activations', 'peak memory', 'gathers', 'fits'):
        table.add_column(column, justify='right')
    for row in each.candidates:
        table.add_row(f'{row.unit} tight' if row.is_tight else str(row.unit),
                      f'{row.makespan:.5g}', f'{100 * row.bubble:.1f} %',
                      f'{row.peak_in_flight / args.chunks:g}',
                      format_bytes(row.peak_bytes) if has_bytes(args) else
                      f'{row.peak_bytes} activations of a chunk', str(row.gathers),
                      'yes' if row.fits else 'no')
    console.print(table)


def draw_timelines(found: Sequence[Simulated], out: Path) -> None:
    """A panel for each schedule on one axis of time: what is shorter is faster."""
    from matplotlib.patches import Patch
    pyplot = _pyplot()
    num_ranks = found[0].timeline.table.num_ranks
    figure, panels = pyplot.subplots(len(found), 1, sharex=True, squeeze=False, figsize=(
        17, len(found) * (0.34 * num_ranks + 0.62) + 0.5))
    longest = max(each.timeline.makespan for each in found)
    pixels_per_time = 16.2 * figure.dpi / longest
    kinds: dict[str, None] = {}
    for each, panel in zip(found, panels[:, 0], strict=True):
        kinds |= dict.fromkeys(_draw_rows(panel, each.timeline, pixels_per_time))
        timeline = each.timeline
        num_gathers = max(timeline.gathers)
        panel.set_title(
            f'{each.label}:  {100 * timeline.bubble:.1f} % idle,  activations of '
            f'{each.devices_in_flight:g} micro-batches,  {num_gathers} all-gather'
            f'{"" if num_gathers == 1 else "s"} a rank', loc='left', fontsize=10)
        panel.set_xlim(0, longest)
        panel.set_ylim(num_ranks - 0.5, -0.5)
        panel.set_yticks(range(num_ranks), [f'rank {rank}' for rank in range(num_ranks)],
                         fontsize=8)
        panel.tick_params(length=0, labelsize=8)
        panel.spines[:].set_visible(False)
        panel.axvline(timeline.makespan, color='#222222', linewidth=0.8)
    patches = [Patch(color=_shades(kind, 3)[1], label=LABELS[kind]) for kind in LABELS
               if kind in kinds]
    figure.legend(handles=patches, loc='upper right', ncols=len(patches), fontsize=8,
                  frameon=False)
    panels[-1, 0].set_xlabel('time', fontsize=8)
    _finish(figure, out)


def _draw_rows(panel, timeline: Timeline, pixels_per_time: float) -> set[str]:
    """Draw the tasks of all ranks; the kinds that were drawn."""
    table = timeline.table
    has_collectives = any(timeline.costs.gather) or any(timeline.costs.reduce)
    height = 0.66 if has_collectives else 0.86
    room = 5.5 * len(str(table.num_microbatches - 1)) + 1  # pixels of the longest number
    drawn: set[str] = set()
    for rank, row in enumerate(table.rows):
        panel.barh(rank, timeline.makespan, height=0.86, color='#ececec')
        chunk_of = {stage: chunk for chunk, stage in enumerate(table.stages_of(rank))}
        bars: dict[str, list[tuple[float, float, str]]] = {}
        for action, start, end in zip(row, timeline.starts[rank], timeline.ends[rank],
                                      strict=True):
            if end == start or action.kind not in LABELS:
                continue
            colour = _shades(action.kind, table.num_chunks)[chunk_of[action.stage]]
            bars.setdefault(action.kind, []).append((start, end - start, colour))
            if action.kind in COMPUTE and (end - start) * pixels_per_time > room:
                panel.text((start + end) / 2, rank - (0.86 - height) / 2, str(action.mb),
                           ha='center', va='center_baseline', fontsize=5.5,
                           color='white' if _is_dark(colour) else '#222222')
        for kind, spans in bars.items():
            drawn.add(kind)
            low, tall = (rank - 0.43, height) if kind in COMPUTE else (rank + 0.26, 0.17)
            panel.broken_barh([span[:2] for span in spans], (low, tall), linewidth=0.3,
                              facecolors=[span[2] for span in spans], edgecolors='white')
    return drawn


def _shades(kind: str, num_chunks: int) -> list[str]:
    """From the first chunk's to the last's; that of a single chunk is the middle one."""
    from matplotlib.colors import to_hex, to_rgb
    dark, light = map(to_rgb, SHADES[kind])
    parts = [0.4] if num_chunks == 1 else [chunk / (num_chunks - 1) for chunk in range(num_chunks)]
    return [to_hex([a + part * (b - a) for a, b in zip(dark, light, strict=True)])
            for part in parts]


def _is_dark(colour: str) -> bool:
    from matplotlib.colors import to_rgb
    red, green, blue = to_rgb(colour)
    return 0.3 * red + 0.59 * green + 0.11 * blue < 0.55


def draw_memory(found: Sequence[Simulated], args: argparse.Namespace, out: Path) -> None:
    figure, panel = _pyplot().subplots(figsize=(8, 4))
    scale = 1e6 if has_bytes(args) else 1
    for each, colour in zip(found, LINES * len(found), strict=False):
        peaks = each.timeline.peak_bytes
        rank = peaks.index(max(peaks))
        moments, values = zip(*each.timeline.memory(rank), strict=True)
        if not has_bytes(args):  # chunks differ in size from schedule to schedule
            scale = each.timeline.table.num_chunks * each.timeline.costs.activation_bytes[0]
        panel.step(moments, [value / scale for value in values], where='post', color=colour,
                   linewidth=1.2, label=f'{each.label}, rank {rank}: '
                   f'{max(peaks) / scale:g}{" MB" if has_bytes(args) else ""}')
    if args.budget:
        panel.axhline(args.budget / scale, color='#222222', linewidth=0.8, linestyle=':',
                      label='budget')
    panel.set_xlabel('time')
    panel.set_ylabel('memory (MB)' if has_bytes(args) else
                     'activations, in micro-batches of all chunks of a rank')
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    _finish(figure, out)


def _pyplot():
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    return pyplot


def _finish(figure, out: Path) -> None:
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)
    print(f'picture: {out}')


def times(text: str) -> tuple[float, ...]:
    """'1:1.3:0.7' as the times of F, I and W."""
    found = tuple(float(part) for part in text.split(':'))
    if len(found) != 3 or not all(0 <= value < float('inf') for value in found) or not any(found):
        raise ValueError
    return found


def unit(text: str) -> int | None:
    return None if text == 'auto' else int(text)


def budget(text: str) -> int:
    amount = parse_budget(int(text) if text.isdigit() else text)
    if amount.bytes is None:
        raise ValueError
    return amount.bytes


def duration(text: str) -> float:
    value = float(text)
    if not 0 <= value < float('inf'):
        raise ValueError
    return value


def build_parser() -> argparse.ArgumentParser:
    from vision.common.mm.launch import add_config_arguments
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
    add_config_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.out:
        refuse_unwritable(args.out / 'trace.json')
    costs = costs_of(args)
    found = [simulated(name, args, costs) for name in dict.fromkeys((args.schedule,
                                                                     *args.compare))]
    console = Console()
    console.width = max(console.width, 100)  # a table is of no use in pieces
    show(console, found, args)
    if args.out:
        draw_timelines(found[1:] + found[:1], args.out / 'timeline.png')
        draw_memory(found, args, args.out / 'memory.png')
        with atomic_write(args.out / 'trace.json') as file:
            file.write(json.dumps(found[0].timeline.chrome_trace()).encode())
        print(f'trace: {args.out / "trace.json"}')
    return 0


if __name__ == '__main__':
    run_cli(main)
