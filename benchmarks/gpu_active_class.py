"""The face head on a GPU: full softmax, random classes and chosen ones, beside what was predicted.

One step of a head (selection, forward and backward over the active rows, the optimizer's update
in the class store) on rows as in active_class.py. The rivals are the full softmax in plain
PyTorch (float32, TF32, bfloat16 by autocast), Partial FC's random tenth (`random ahead`: drawn by
a thread during the step before, as a training does during its backbone's), and choosing by all
logits (`oracle`), which on a GPU is one product more. In float32 and bfloat16 only `full` and one
per cent by `oracle` are repeated: TF32 is what trains.

  step_ms     median between two events around a step, so with what the device waits for the host
  wall_ms     all steps by the clock, divided by their number
  host_ms     median until the host may go on
  select_ms   a selection alone, by the clock, the device waited for before and after
  waits       how often a step makes the host wait for the device, and where (file:line)
  peak_bytes  highest allocated memory of a step, rows and momentum included
  grad_*      of the features' gradient against that of the full softmax in float32
  predicted   milliseconds that vision/faces/core/select/break_even.py says, with rates of the
              data sheet (assumed) and of small loops on this device (measured)

A size that takes too much memory or time is a row with its error; rows are written as they come.

  python benchmarks/gpu_active_class.py --json docs/results/gpu_active_class.json --record

--quick --device cpu shows that it runs.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from active_class import build_parser as bench_parser
from active_class_bench import Bench, dense_step, gradient, synthetic_rows
from active_class_break_even import GPUS
from torch import Tensor
from torch.nn import functional

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.common.nn.devices import find_device
from vision.faces.core.select.break_even import HeadPlan, Machine, break_even
from vision.faces.nn.index.device_lists import DeviceLists
from vision.faces.nn.select.selectors import Selection

SIZES = ('1000000x512', '100000x512', '10000000x128')
# Heads with their share of active rows, the most wanted first: rows that come too late are left.
PLAN = (*((name, share, 'tf32') for name, share in (
    ('dense', 0), ('full', 0), ('random', 0.1), ('random ahead', 0.1), ('oracle', 0.01),
    ('oracle', 0.02), ('oracle', 0.1), ('device', 0.01))), *(
        (name, share, precision) for precision in ('float32', 'bfloat16')
        for name, share in (('full', 0), ('oracle', 0.01))))
ON_CPU = (('ivf', 0.01, 'tf32'),)
NPROBE, WARM_UP, NO_RENEWAL = 12, 3, dict(interval=1 << 40)
LARGE = 2_000_000  # rows from which on a step is repeated less, and the dense head has no room
LONG_S = 8  # that an index of 100,000 rows may take on the CPU
THREADS = min(8, os.cpu_count() or 1)  # of that index


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    if args.quick:
        args.sizes, args.batch, args.steps = ['20000x16'], 64, 2
    args.device, args.begun = find_device(args.device), time.perf_counter()
    machines = {'assumed': GPUS['H200 (assumed)'], 'measured': measured_machine(args)}
    rows: list[dict] = []
    for row in all_rows(args, machines):
        rows.append(row)
        print(f'{time.perf_counter() - args.begun:6.1f} s', {
            key: value for key, value in row.items() if key != 'wait_places'}, flush=True)
        write(args, rows, machines)
    for row in rows:
        print(summary(row), flush=True)
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('--device', default='cuda', help='(default: cuda)')
    add('--sizes', nargs='+', default=list(SIZES),
        help=f'classes x dimensions (default: {" ".join(SIZES)})')
    add('--batch', type=int, default=1024, help='features of a step (default: 1024)')
    add('--steps', type=int, default=10, help='timed steps of a head (default: 10)')
    add('--seconds', type=float, default=55.0,
        help='no row begins later than this (default: 55)')
    add('--seed', type=int, default=0, help='of rows and features (default: 0)')
    add('--quick', action='store_true', help='20,000 classes of 16 dimensions, 2 steps')
    add_report_options(parser, is_required=True)
    return parser


def write(args: argparse.Namespace, rows: list[dict], machines: dict[str, Machine]) -> None:
    write_report(args.json, rows, is_recorded=args.record, seed=args.seed, kind='synthetic rows',
                 cuda=torch.version.cuda, machines={k: vars(v) for k, v in machines.items()},
                 break_even={f'{name}, {batch} x {dim}, against {rival}': break_even(
                     machine, HeadPlan(batch, dim, num_probed=NPROBE), against=rival)
                     for name, machine in machines.items() for batch, dim in
                     ((256, 128), (1024, 512)) for rival in ('full', 'random')},
                 settings=dict(batch=args.batch, steps=args.steps, nprobe=NPROBE))


def all_rows(args: argparse.Namespace, machines: dict[str, Machine]) -> Iterator[dict]:
    """Sizes with all heads on the device, then the smallest with an index on the CPU."""
    smallest = min(args.sizes, key=lambda size: int(size.split('x')[0]))
    for plan, sizes in ((PLAN, args.sizes), (ON_CPU, [smallest])):
        for size in sizes:
            num, dim = map(int, size.split('x'))
            common = dict(classes=num, dim=dim, batch=args.batch)
            try:
                bench = made_bench(args, num, dim)
            except Exception as error:
                yield common | dict(error=reason(error))
                continue
            for row in heads(args, bench, plan):
                if row['head'] != 'oracle':  # the model has none
                    active = row.get('active', num)
                    row |= dict(predicted={
                        key: predicted(machine, args.batch, dim, num, row['head'], active)
                        for key, machine in machines.items()})
                yield common | row
            del bench
            free(args)


def made_bench(args: argparse.Namespace, num: int, dim: int) -> Bench:
    options = bench_parser().parse_args(['--batch', str(args.batch), '--json', '-',
                                         '--seed', str(args.seed)])
    return Bench(options, synthetic_rows(num, dim, args.seed, args.device), args.seed)


def heads(args: argparse.Namespace, bench: Bench, plan: tuple[tuple[str, float, str], ...]
          ) -> Iterator[dict]:
    kept: dict[str, object] = {}  # one index for all rows of a size
    for name, share, precision in plan:
        row = dict(head=name, precision=precision)
        if share:
            row |= dict(active=bench.num_active(share), share=share)
        if name == 'dense' and bench.num_classes > LARGE:
            yield row | dict(skipped='takes more memory than the device has')
            continue
        left = args.seconds - (time.perf_counter() - args.begun)
        if left < (LONG_S if name == 'ivf' and args.device.type == 'cuda' else 0):
            yield row | dict(skipped='no time left')
            continue
        try:
            with products(bench, precision):
                row |= measured(args, bench, name, row.get('active'), kept)
        except Exception as error:  # there may be no second run: the other rows are wanted
            row |= dict(error=reason(error))
        free(args)
        yield row


@contextmanager
def products(bench: Bench, precision: str) -> Iterator[None]:
    """Float32 products as they are, in TF32, or the head's in bfloat16."""
    before = torch.get_float32_matmul_precision(), bench.matmul_dtype
    torch.set_float32_matmul_precision('high' if precision == 'tf32' else 'highest')
    bench.matmul_dtype = torch.bfloat16 if precision == 'bfloat16' else None
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        bench.matmul_dtype = before[1]


def measured(args: argparse.Namespace, bench: Bench, name: str, num_active: int | None,
             kept: dict[str, object]) -> dict:
    if name == 'dense':
        cast = nullcontext() if bench.matmul_dtype is None else torch.autocast(
            args.device.type, bench.matmul_dtype)
        step = dense_step(bench)

        def plain(number: int, features: Tensor, labels: Tensor) -> None:
            with cast:
                step(features, labels)
        return timed(args, bench, plain)
    bench.reset_rows(bench.rows)
    options = dict(device=dict(nprobe=NPROBE, upkeep=NO_RENEWAL),
                   ivf=dict(nprobe=NPROBE, upkeep=NO_RENEWAL, num_threads=THREADS))
    kind = name.removesuffix(' ahead')
    selector = bench.selector(kind, num_active or bench.num_classes, **options.get(name, {}))
    row = {}
    bench.generator.manual_seed(args.seed + 2)  # the same samples for every head
    if name in options:
        if name not in kept:
            row, kept[name] = built(args, bench, selector)
        selector.upkeep.adopt(kept[name], 0)
    row |= gradient_errors(bench, selector)
    told = ToldOfNext(selector)
    step = partial(bench.step, selector if name == kind else told)
    return row | timed(args, bench, step, told) | \
        dict(select_ms=select_ms(args, bench, selector))


class ToldOfNext:
    """A selector that is told of the next step's labels once it has selected."""

    def __init__(self, selector) -> None:
        self.selector, self.after_update = selector, selector.after_update
        self.labels: Tensor | None = None

    def select(self, features: Tensor, labels: Tensor, step: int) -> Selection:
        selection = self.selector.select(features, labels, step)
        if self.labels is not None:
            self.selector.expect(self.labels, step + 1)
        return selection


def select_ms(args: argparse.Namespace, bench: Bench, selector) -> float:
    """Of consecutive steps, nothing known of them beforehand."""
    times = []
    for step in range(1000, 1003):
        features, labels = bench.batch()
        start = now(args)
        selector.select(features.detach(), labels, step)
        times.append(1000 * (now(args) - start))
    return round(float(np.median(times)), 3)


def built(args: argparse.Namespace, bench: Bench, selector) -> tuple[dict, object]:
    """What the index costs, and the index."""
    start = now(args)
    snapshot = bench.store.snapshot(torch.float16)
    snapshot_s, start = now(args) - start, now(args)
    index = selector.upkeep.index(0)
    row = dict(snapshot_s=round(snapshot_s, 4), index_bytes=index.num_bytes,
               build_s=round(now(args) - start - snapshot_s, 3))
    if isinstance(index, DeviceLists):  # on the CPU a renewal is no matter of this device
        start = now(args)
        index.renewal(snapshot, num_iterations=0)()
        row |= dict(renewal_s=round(now(args) - start, 3))
    return row, index


def gradient_errors(bench: Bench, selector) -> dict:
    """Of the features' gradient, beside all classes in float32."""
    features, labels = bench.batch()
    live = bench.store.pull(torch.arange(bench.num_classes, device=bench.device)).detach()
    chosen = selector.select(features.detach(), labels, 0)
    part = gradient(bench, features, live[chosen.rows], chosen)[0].clone()
    everything = bench.selector('full', bench.num_classes).select(features, labels, 0)
    with products(bench, 'float32'):
        full = gradient(bench, features, live, everything)[0]
    return dict(grad_cosine=round(float(functional.cosine_similarity(
        full.flatten(), part.flatten(), 0)), 5),
        grad_rel_error=round(float((part - full).norm() / full.norm()), 5))


def timed(args: argparse.Namespace, bench: Bench, step: Callable[[int, Tensor, Tensor], None],
          told: ToldOfNext | None = None) -> dict:
    """``step(number, features, labels)`` by events, by the clock and by the host.

    Args:
        told: gets the labels of the step after, before each step.
    """
    is_gpu = args.device.type == 'cuda'
    num_steps = args.steps if bench.num_classes <= LARGE else max(2, args.steps // 2)
    batches = [bench.batch() for _ in range(WARM_UP + num_steps + 1)]

    def call_step(number: int) -> None:
        if told is not None:
            told.labels = batches[number + 1][1] if number + 1 < len(batches) else None
        step(number, *batches[number])
    run = [partial(call_step, number) for number in range(len(batches))]
    for call in run[:WARM_UP]:
        call()
    marks, host_ms = [], []
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)]
                 for _ in range(num_steps)]
    start = now(args)
    for number, call in enumerate(run[WARM_UP:-1]):
        begun = time.perf_counter()
        if is_gpu:
            marks[number][0].record()
        call()
        if is_gpu:
            marks[number][1].record()
        host_ms.append(1000 * (time.perf_counter() - begun))
    wall_ms = 1000 * (now(args) - start) / num_steps
    step_ms = [a.elapsed_time(b) for a, b in marks] or host_ms
    places = waits_of(run[-1], is_gpu)
    return dict(step_ms=round(float(np.median(step_ms)), 3), wall_ms=round(wall_ms, 3),
                host_ms=round(float(np.median(host_ms)), 3), waits=len(places),
                wait_places=places,
                peak_bytes=torch.cuda.max_memory_allocated() if is_gpu else None)


def waits_of(call: Callable[[], None], is_gpu: bool) -> list[str]:
    """file:line of each operation of a call that waits for the device."""
    if not is_gpu:
        return []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode('default')
    return [f'{Path(each.filename).name}:{each.lineno}' for each in caught
            if 'called a synchronizing' in str(each.message)]


def predicted(machine: Machine, batch: int, dim: int, num: int, head: str, active: int
              ) -> float:
    """Milliseconds of a step as the model has them, renewals spread over their interval."""
    said = HeadPlan(batch, dim, num_per_sample=max(0.0, active / batch - 1), num_probed=NPROBE)
    work = {'dense': said.full, 'full': said.full, 'random': said.random,
            'random ahead': said.random}.get(head, said.selected)
    return round(1000 * work(num).seconds(machine), 3)


def measured_machine(args: argparse.Namespace) -> Machine:
    """Rates of the device, each by a loop of its own."""
    device, dim = args.device, 512
    num = 4096 if args.quick else 1 << 16
    x, rows = (torch.randn(each, dim, device=device) for each in (args.batch, num))
    product_s = best_seconds(args, lambda: x @ rows.T)
    stream = torch.randn(1 << (20 if args.quick else 28), device=device)
    stream_s = best_seconds(args, lambda: stream.mul_(1.0))
    one = torch.zeros(1, device=device)
    call_s = best_seconds(args, lambda: [one.add_(1.0) for _ in range(100)]) / 100
    lists, queries = rows.view(64, -1, dim), x[:64]
    found = torch.randint(num, (64, lists.shape[1]), device=device)
    scan_s = best_seconds(args, lambda: torch.bmm(
        rows[found.flatten()].view(64, -1, dim), queries[:, :, None]))
    return Machine(flops_per_s=2 * args.batch * num * dim / product_s, call_s=call_s,
                   bytes_per_s=2 * stream.nbytes / stream_s,
                   scan_per_s=2 * found.numel() * dim / scan_s)


def best_seconds(args: argparse.Namespace, call: Callable, repeats: int = 7) -> float:
    times = []
    for _ in range(repeats):
        start = now(args)
        call()
        times.append(now(args) - start)
    return min(times)


def now(args: argparse.Namespace) -> float:
    if args.device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()


def free(args: argparse.Namespace) -> None:
    if args.device.type == 'cuda':
        torch.cuda.empty_cache()


def reason(error: Exception) -> str:
    return f'{type(error).__name__}: {error}'.split('\n')[0][:300]


def summary(row: dict) -> str:
    figures = ' '.join(f'{key} {row[key]}' for key in (
        'step_ms', 'wall_ms', 'host_ms', 'select_ms', 'waits', 'grad_cosine', 'grad_rel_error',
        'predicted', 'error', 'skipped') if row.get(key) is not None)
    return (f'{row["classes"]:,} x {row["dim"]} {row.get("head", "")} {row.get("share", "")} '
            f'{row.get("precision", "")}: {figures}')


if __name__ == '__main__':
    run_cli(main)
