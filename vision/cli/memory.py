"""Does a config's training fit a memory budget, at what cost, and who holds the peak?

Builds model and optimizer of the config and one batch of its train_dataloader, runs a few steps
without a budget (forward, backward and optimizer; nothing is saved), and answers from what was
recorded: the peak without a budget; for each budget whether it fits, the peak, the extra time and
the host memory that a plan predicts; which layers' tensors are there at the moment of the peak.
Bytes are those of tensors made in a step: parameters, their gradients, optimizer state and the
batch are not among them, nor the scratch memory of operators.

Writes live.png, live bytes over the step without a budget and under each, and trade_off.png, the
extra time against the peak.

Examples:
  vision memory configs/polynet/polynet-small_imagenette160.py \\
      --budget 0.6 0.4 --batch 8 --out report
  vision memory configs/detectors/yolox-nano_coco.py --budget 8GB \\
      --device cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vision.common.core.amounts import format_bytes
from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import refuse_unwritable
from vision.common.core.tables import print_table
from vision.memory.core.graph import Trace
from vision.memory.core.peak import (
    Holder,
    budgets_of,
    draw_live,
    draw_trade_off,
    extra_time,
    peak_holders,
)
from vision.memory.core.plan import Link, Plan, make_plan, trade_off

CURVE_RATIOS = tuple(np.round(np.arange(1.0, 0.09, -0.05), 2))
NUM_HOLDERS = 10
# Each way. What a PCIe 3.0 x16 link gives in practice; the link of the paper's GPUs is not known.
GB_PER_S = 12.0
WIDTH = 120  # module names are long


def record(args: argparse.Namespace) -> tuple[Trace, int]:
    """(the recorded step of the config's model on its first batch, its measured peak)."""
    from mmengine.optim import build_optim_wrapper

    from vision.common.mm.launch import explained, model_and_batch
    from vision.memory.nn.record import record_step
    config, model, batch = model_and_batch(args, batch_size=args.batch, device=args.device)
    with explained(config):
        optimizer = build_optim_wrapper(model, config.optim_wrapper)
    return record_step(model, batch, optimizer)


def show(trace: Trace, measured: int, plans: Sequence[tuple[str, int, Plan]]) -> None:
    """Print the step without a budget, what each plan is predicted to do, and who holds
    the peak."""
    print(f'without a budget: peak {format_bytes(trace.peak_bytes)} as recorded, '
          f'{format_bytes(measured)} as measured; {len(trace.seconds)} operators, '
          f'{1e3 * trace.op_seconds:.0f} ms')
    if plans:
        columns = ('budget', 'bytes', 'fits', 'peak', 'of unmanaged', 'extra time', 'recomputed',
                   'swapped', 'host memory')
        print_table(columns, [row_of(*plan, trace) for plan in plans], num_left=0,
                    title='under a budget, as planned', min_width=WIDTH)
    holders = peak_holders(trace)
    rest = trace.peak_bytes - sum(holder.num_bytes for holder in holders)
    print_table(('module', 'operator', 'shape', 'count', 'bytes', '% of peak'), [
        [holder.where or '-', holder.operator, ' x '.join(map(str, holder.shape)) or '-',
         str(holder.count or '-'), format_bytes(holder.num_bytes),
         f'{100 * holder.num_bytes / max(1, trace.peak_bytes):.1f}']
        for holder in [*holders[:NUM_HOLDERS], Holder('made in backward', '-', (), rest, 0)]],
        title='who holds the peak', num_left=3, min_width=WIDTH)


def row_of(text: str, num_bytes: int, plan: Plan, trace: Trace) -> list[str]:
    """A line of the table of plans: budget as written and in bytes, fit, peak, extra time,
    actions."""
    kinds = list(plan.actions.values())
    return [text, format_bytes(num_bytes), 'yes' if plan.fits else 'no',
            format_bytes(plan.peak_bytes), f'{plan.peak_bytes / max(1, trace.peak_bytes):.3f}',
            f'{100 * extra_time(plan, trace):.1f} %', str(kinds.count('drop')),
            str(kinds.count('swap')), format_bytes(plan.host_bytes)]


def build_parser() -> argparse.ArgumentParser:
    """Options of the budgets, of the batch and device that are measured, and of a config."""
    from vision.common.mm.launch import add_config_arguments
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('config', help='config that tools/train.py trains')
    add('--budget', nargs='+', default=['0.6', '0.4', '0.3'], metavar='AMOUNT',
        help="ratios of the unmanaged peak, or bytes such as '12GB' (default: 0.6 0.4 0.3)")
    add('--batch', type=int, metavar='N', help="batch size (default: the config's)")
    add('--device', default='cpu', help='where the steps run (default: cpu)')
    add('--actions', choices=('recompute', 'swap', 'both'), default='both',
        help='what a plan may do (default: both)')
    add('--bandwidth', type=float, default=GB_PER_S, metavar='GB_PER_S',
        help=f'between device and host, each way (default: {GB_PER_S:.0f}, a PCIe 3.0 x16 link)')
    add('--out', type=Path, metavar='FOLDER', help='where the pictures go (default: none drawn)')
    add_config_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.out:
        refuse_unwritable(args.out / 'live.png')
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
             for text, num_bytes in budgets_of(args.budget, trace)]
    show(trace, measured, plans)
    if args.out:
        draw_live(trace, plans, args.out / 'live.png')
        draw_trade_off(trace, trade_off(trace, CURVE_RATIOS, **options),
                       args.out / 'trade_off.png')
    return 0


if __name__ == '__main__':
    run_cli(main)
