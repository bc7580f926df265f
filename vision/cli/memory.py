"""Does a config's training fit a memory budget, at what cost, and who holds the peak?

Builds model and optimizer of the config and one batch of its train_dataloader, runs a few steps
without a budget (forward, backward and optimizer; nothing is saved), and answers from what was
recorded: the peak without a budget; for each budget whether it fits, the peak, the extra time and
the host memory that a plan predicts; which layers' tensors are there at the moment of the peak.
Bytes are those of tensors made in a step: parameters, their gradients, optimizer state and the
batch are not among them, nor the scratch memory of operators.

Writes live.png, live bytes over the step without a budget and under each, and trade_off.png, the
extra time against the peak. With --results it draws rows of benchmarks/memory.py instead.

Examples:
  python tools/analysis/memory_report.py configs/polynet/polynet-small_imagenette160.py \\
      --budget 0.6 0.4 --batch 8 --out report
  python tools/analysis/memory_report.py configs/detectors/yolox-nano_coco.py --budget 8GB \\
      --device cuda
  python tools/analysis/memory_report.py --results docs/results/memory_resnet50.json \\
      --out docs/images
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vision.common.core.amounts import format_bytes, parse_budget
from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import refuse_unwritable
from vision.common.core.report import read_report
from vision.memory.core.graph import Trace
from vision.memory.core.plan import Link, Plan, make_plan, trade_off

CURVE_RATIOS = tuple(np.round(np.arange(1.0, 0.09, -0.05), 2))
NUM_HOLDERS = 10
# Each way. What a PCIe 3.0 x16 link gives in practice; the link of the paper's GPUs is not known.
GB_PER_S = 12.0
COLOURS = ('#1769aa', '#2e8540', '#d1730f', '#8e44ad', '#c0392b', '#16a085')
METHOD_STYLES = {
    'ours recompute': ('#1769aa', 'o-'), 'ours swap': ('#16a085', 's-'),
    'ours mixed, 1 GB/s beside': ('#2e8540', 'D-'),
    'ours mixed, 1 GB/s in turn': ('#7ab648', 'd-'), 'ours mixed, measured': ('#8e44ad', '^-'),
    'block checkpoint': ('#d1730f', 'X'), 'block checkpoint, reentrant': ('#c0392b', 'X'),
    'selective checkpoint': ('#777777', 'P'), 'save_on_cpu': ('#222222', '*'),
    'compiler budget': ('#b8860b', 'v--')}


@dataclass(frozen=True)
class Holder:
    """Values of one module, operator and shape that are there at the peak."""

    where: str
    operator: str
    shape: tuple[int, ...]
    num_bytes: int
    count: int


def peak_holders(trace: Trace) -> list[Holder]:
    """Largest first: what forward made and is there right after the operator of the peak. What
    backward makes has no module; it is the rest of the peak."""
    if not len(trace.live_bytes):
        return []
    peak = int(trace.live_bytes.argmax())
    groups: dict[tuple, list[int]] = defaultdict(list)
    for value in trace.values:
        if value.born <= peak <= value.death:
            groups[value.where, trace.calls[value.call].name, value.shape].append(value.num_bytes)
    holders = [Holder(*key, sum(sizes), len(sizes)) for key, sizes in groups.items()]
    return sorted(holders, key=lambda holder: -holder.num_bytes)


def record(args: argparse.Namespace) -> tuple[Trace, int]:
    """(the recorded step, its peak by a tracker that knows nothing of plans).

    Raises:
        VisionError: the config has no train_dataloader, or its step was not recorded.
    """
    import torch
    from mmengine.optim import build_optim_wrapper

    from vision.common.mm.launch import explained, model_and_batch
    from vision.memory.nn.manager import MemoryBudget
    from vision.memory.nn.tracker import LiveMemory
    config, model, batch = model_and_batch(args, batch_size=args.batch, device=args.device)
    with explained(config):
        optimizer = build_optim_wrapper(model, config.optim_wrapper)

    def step() -> None:
        model.train_step(batch, optimizer)

    step()  # makes gradients and optimizer state, which stay from step to step
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    keep_gradients(optimizer)
    with LiveMemory() as live:
        step()
    manager = MemoryBudget(ratio=1.0)
    manager.name(model)
    with manager:
        step()
    trace = manager.trace()
    manager.close()
    if trace is None:
        raise VisionError('VIS-RUN-1451', 'the step was not recorded as a whole',
                          where=args.config, why='the recorder says why in its log',
                          do='look at the lines above; torch.compile and create_graph cannot '
                          'be recorded')
    return trace, live.peak_bytes


def keep_gradients(optimizer: Any) -> None:
    """Zero gradients instead of dropping them, so that none is made in the recorded step."""
    wrappers = optimizer.values() if hasattr(optimizer, 'optim_wrappers') else [optimizer]
    for wrapper in wrappers:
        inner = wrapper.optimizer
        zero = inner.zero_grad
        inner.zero_grad = lambda *_, zero=zero, **__: zero(set_to_none=False)


def budgets_of(args: argparse.Namespace, trace: Trace) -> list[tuple[str, int]]:
    """(as it was given, bytes)."""
    amounts = [(text, parse_budget(number(text))) for text in args.budget]
    budgets = [(text, amount.bytes if amount.bytes is not None
                else round(amount.ratio * trace.peak_bytes)) for text, amount in amounts]
    need, name = trace.largest_need
    for text, num_bytes in budgets:
        if num_bytes < need:
            raise VisionError('VIS-CONFIG-1452', f'the budget {text} is less than what one '
                              'operator needs', where='--budget',
                              why=f'{name} reads and makes {format_bytes(need)}, and the budget '
                              f'is {format_bytes(num_bytes)}',
                              do='give a larger budget, or a smaller --batch')
    return budgets


def number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def show(console: Console, trace: Trace, measured: int, plans: Sequence[tuple[str, int, Plan]]
         ) -> None:
    console.print(f'without a budget: peak {format_bytes(trace.peak_bytes)} as recorded, '
                  f'{format_bytes(measured)} as measured; {len(trace.seconds)} operators, '
                  f'{1e3 * trace.op_seconds:.0f} ms')
    if plans:
        table = Table(title='under a budget, as planned')
        for column in ('budget', 'bytes', 'fits', 'peak', 'of unmanaged', 'extra time',
                       'recomputed', 'swapped', 'host memory'):
            table.add_column(column, justify='right')
        for text, num_bytes, plan in plans:
            kinds = list(plan.actions.values())
            table.add_row(text, format_bytes(num_bytes), 'yes' if plan.fits else 'no',
                          format_bytes(plan.peak_bytes),
                          f'{plan.peak_bytes / max(1, trace.peak_bytes):.3f}',
                          f'{100 * extra_time(plan, trace):.1f} %', str(kinds.count('drop')),
                          str(kinds.count('swap')), format_bytes(plan.host_bytes))
        console.print(table)
    table = Table(title='who holds the peak')
    for column in ('module', 'operator', 'shape'):
        table.add_column(column)
    for column in ('count', 'bytes', '% of peak'):
        table.add_column(column, justify='right')
    holders = peak_holders(trace)
    rest = trace.peak_bytes - sum(holder.num_bytes for holder in holders)
    for holder in [*holders[:NUM_HOLDERS], Holder('made in backward', '-', (), rest, 0)]:
        table.add_row(holder.where or '-', holder.operator,
                      ' x '.join(map(str, holder.shape)) or '-', str(holder.count or '-'),
                      format_bytes(holder.num_bytes),
                      f'{100 * holder.num_bytes / max(1, trace.peak_bytes):.1f}')
    console.print(table)


def extra_time(plan: Plan, trace: Trace) -> float:
    """Of the step's operators' time."""
    return plan.extra_seconds / max(trace.op_seconds, 1e-9)


def pyplot():
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    return pyplot


def draw_live(trace: Trace, plans: Sequence[tuple[str, int, Plan]], out: Path) -> None:
    figure, panel = pyplot().subplots(figsize=(8, 3.8))
    moments = np.arange(len(trace.live_bytes))
    panel.fill_between(moments, trace.live_bytes / 1e6, color='#bbbbbb', step='mid',
                       label='without a budget')
    for (text, num_bytes, plan), colour in zip(plans, COLOURS * len(plans), strict=False):
        panel.step(moments, plan.live_bytes / 1e6, where='mid', color=colour, linewidth=1.2,
                   label=f'{text}: {plan.peak_bytes / 1e6:.0f} MB')
        panel.axhline(num_bytes / 1e6, color=colour, linewidth=0.7, linestyle=':')
    panel.set_xlabel('operator of the step: forward, backward, optimizer')
    panel.set_ylabel('live bytes (MB)')
    finish(figure, [panel], out)


def draw_trade_off(trace: Trace, curve: Sequence[Plan], out: Path) -> None:
    figure, panel = pyplot().subplots(figsize=(5.2, 3.8))
    points = sorted({(plan.peak_bytes / trace.peak_bytes, extra_time(plan, trace))
                     for plan in curve})
    panel.plot(*zip(*points, strict=True), 'o-', color=COLOURS[0], markersize=4,
               label='as planned')
    panel.set_xlabel('peak, of the unmanaged')
    panel.set_ylabel("extra time, of the operators'")
    panel.set_ylim(bottom=0)
    finish(figure, [panel], out)


def draw_results(content: dict, out: Path) -> None:
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
    first = rows[0]
    figure.suptitle(f'{first["model"]}, {content.get("setting", "")}, batch {first["batch"]}; '
                    f'commit {content["commit"]}', fontsize=9)
    finish(figure, panels, out)


def finish(figure, panels, out: Path) -> None:
    for panel in panels:
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)
    print(f'picture: {out}')


def build_parser() -> argparse.ArgumentParser:
    from vision.common.mm.launch import add_config_arguments
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('config', nargs='?', help='config that tools/train.py trains')
    add('--budget', nargs='+', default=['0.6', '0.4', '0.3'], metavar='AMOUNT',
        help="ratios of the unmanaged peak, or bytes such as '12GB' (default: 0.6 0.4 0.3)")
    add('--batch', type=int, metavar='N', help="batch size (default: the config's)")
    add('--device', default='cpu', help='where the steps run (default: cpu)')
    add('--actions', choices=('recompute', 'swap', 'both'), default='both',
        help='what a plan may do (default: both)')
    add('--bandwidth', type=float, default=GB_PER_S, metavar='GB_PER_S',
        help=f'between device and host, each way (default: {GB_PER_S:.0f}, a PCIe 3.0 x16 link)')
    add('--out', type=Path, metavar='FOLDER', help='where the pictures go (default: none drawn)')
    add('--results', type=Path, metavar='JSON', help='draw rows of benchmarks/memory.py '
        'as memory_MODEL.png in --out; no config then')
    add_config_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if (args.config is None) == (args.results is None) or (args.results and not args.out):
        parser.error('give a config, or --results JSON with --out FOLDER')
    if args.out:
        refuse_unwritable(args.out / 'live.png')
    if args.results:
        content = read_report(args.results, code='VIS-INPUT-1454', column='peak_ratio',
                              maker='benchmarks/memory.py')
        draw_results(content, args.out / f'memory_{content["rows"][0]["model"]}.png')
        return 0
    if (args.batch is not None and args.batch < 1) or args.bandwidth <= 0:
        raise VisionError('VIS-INPUT-1453', 'a number that must be positive is not',
                          where=f'--batch {args.batch} --bandwidth {args.bandwidth}',
                          do='give a batch of at least 1 and a bandwidth above 0')
    trace, measured = record(args)
    rate = args.bandwidth * 1e9
    # A GPU copies while it computes; on a CPU a copy is paid in full.
    link = Link(rate, rate, overlaps=args.device.startswith('cuda'))
    options = dict(actions=args.actions, link=link)
    plans = [(text, num_bytes, make_plan(trace, num_bytes, **options))
             for text, num_bytes in budgets_of(args, trace)]
    console = Console()
    console.width = max(console.width, 120)  # module names are long
    show(console, trace, measured, plans)
    if args.out:
        draw_live(trace, plans, args.out / 'live.png')
        draw_trade_off(trace, trade_off(trace, CURVE_RATIOS, **options),
                       args.out / 'trade_off.png')
    return 0


if __name__ == '__main__':
    run_cli(main)
