"""From how many classes on active-class selection pays: the model, this machine, and a check.

Rates of this machine are measured by four small loops (products, scanned lists, streamed bytes,
calls), never by a head. From them vision/faces/core/select/break_even.py says at how many classes
`ivf` overtakes the full softmax and Partial FC's random tenth; then heads are timed at half and
at twice that number: there the order must be the one that was said. GPUs are modelled with
assumed rates (``GPUS``), nothing was run on one.

  python benchmarks/active_class_break_even.py \\
      --json docs/results/active_class_break_even.json --record
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from active_class import build_parser as bench_parser
from active_class_bench import Bench, synthetic_rows, time_steps

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.faces.core.select.break_even import HeadPlan, Machine, break_even
from vision.faces.nn.index.faiss_index import build_index, make_spec

BATCHES, DIMS = (256, 512, 1024, 2048, 4096, 8192), (64, 128, 256, 512)
RIVALS = ('full', 'random')
# Assumed, from data sheets: products in TF32 at 40 % of the peak, streams at 75 % of the peak,
# lists scanned from memory at a fifth of that (half precision, 2 bytes a multiply-add), 10
# microseconds a launch.
GPUS = {name: Machine(flops_per_s=0.4 * flops, bytes_per_s=0.75 * stream,
                      scan_per_s=0.2 * 0.75 * stream, call_s=1e-5)
        for name, flops, stream in (('A100 80 GB (assumed)', 156e12, 2.0e12),
                                    ('H200 (assumed)', 494e12, 4.8e12))}


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    torch.set_num_threads(args.threads)
    here = measured_machine(args.batch, args.dim)
    rows = [row for name, machine in {'this machine': here, **GPUS}.items()
            for row in predictions(name, machine)]
    checks = [check for rival in RIVALS for check in checked(here, rival, args)]
    for check in checks:
        print(check, flush=True)
    write_report(args.json, rows, is_recorded=args.record, checks=checks, seed=0,
                 kind='modelled; checks: synthetic rows',
                 machines={name: vars(machine) for name, machine in
                           {'this machine': here, **GPUS}.items()},
                 settings=dict(batch=args.batch, dim=args.dim, threads=args.threads,
                               steps=args.steps))
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('--batch', type=int, default=256, help='of the check (default: 256)')
    add('--dim', type=int, default=128, help='of the check (default: 128)')
    add('--steps', type=int, default=20, help='timed steps of a head (default: 20)')
    add('--threads', type=int, default=1, help='of torch and FAISS (default: 1)')
    add('--most', type=int, default=300_000, help='classes that are measured (default: 300000)')
    add_report_options(parser, is_required=True)
    return parser


def measured_machine(batch: int, dim: int) -> Machine:
    """Rates of this machine, each by a loop of its own."""
    x, rows = torch.randn(batch, dim), torch.randn(4096, dim)
    product_s = best_seconds(lambda: x @ rows.T)
    stream = torch.randn(1 << 24)  # 64 MB: no cache holds it
    stream_s = best_seconds(lambda: stream.mul_(1.0))
    one = torch.zeros(1)
    call_s = best_seconds(lambda: [one.add_(1.0) for _ in range(100)]) / 100
    num, num_probed = 20_000, 32
    unit = torch.nn.functional.normalize(torch.randn(num, dim))
    index = build_index(make_spec('ivf', dim, seed=0, is_cosine=True, nprobe=num_probed), unit,
                        seed=0)
    queries, num_lists = unit[:batch].contiguous(), 4 * math.sqrt(num)
    scan_s = best_seconds(lambda: index.search(queries, 10))
    scanned = batch * dim * (num * num_probed / num_lists + num_lists)
    return Machine(flops_per_s=2 * batch * 4096 * dim / product_s, call_s=call_s,
                   bytes_per_s=2 * stream.nbytes / stream_s, scan_per_s=2 * scanned / scan_s)


def best_seconds(call: Callable, repeats: int = 7) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def predictions(name: str, machine: Machine) -> list[dict]:
    return [dict(machine=name, batch=batch, dim=dim,
                 **{f'classes_{rival}': break_even(machine, HeadPlan(batch, dim), against=rival)
                    for rival in RIVALS}) for dim in DIMS for batch in BATCHES]


def checked(machine: Machine, rival: str, args: argparse.Namespace) -> list[dict]:
    """Said and measured milliseconds at half and at twice the number of classes."""
    plan = HeadPlan(args.batch, args.dim)
    found = break_even(machine, plan, against=rival)
    checks = []
    for num in [] if found is None else (max(2 * args.batch, found // 2), 2 * found):
        if num > args.most:
            checks.append(dict(rival=rival, classes=num, skipped='more than --most'))
            continue
        said = [1000 * getattr(plan, name)(num).seconds(machine) for name in ('selected', rival)]
        took = measured(num, rival, plan, args)
        checks.append(dict(
            rival=rival, predicted_break_even=found, classes=num,
            predicted_ms=np.round(said, 2).tolist(), measured_ms=np.round(took, 2).tolist(),
            is_predicted_faster=bool(said[0] <= said[1]),
            is_measured_faster=bool(took[0] <= took[1])))
    return checks


def measured(num: int, rival: str, plan: HeadPlan, args: argparse.Namespace
             ) -> tuple[float, float]:
    """Milliseconds of a step with `ivf`, its renewal spread over the interval, and the rival's."""
    options = bench_parser().parse_args(['--batch', str(plan.batch), '--json', '-',
                                         '--steps', str(args.steps)])
    bench = Bench(options, synthetic_rows(num, plan.dim, 0))
    num_active = min(num, round(plan.batch * (1 + plan.num_per_sample)))
    selector = bench.selector('ivf', num_active, nprobe=plan.num_probed,
                              upkeep=dict(interval=1 << 40))
    own_ms = time_steps(bench, selector)
    start = time.perf_counter()
    selector.upkeep.index(0).renewal(bench.store.snapshot(torch.float16), num_iterations=0)()
    own_ms += 1000 * (time.perf_counter() - start) / plan.interval
    other = bench.selector('full', num) if rival == 'full' else \
        bench.selector('random', max(plan.batch, round(plan.random_share * num)))
    return own_ms, time_steps(bench, other)


if __name__ == '__main__':
    run_cli(main)
