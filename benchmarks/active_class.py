"""Time and gradient fidelity of active-class selection beside the full softmax.

One step of a head is measured: selection, forward and backward over the active rows, and the
optimizer's update of them in the real class store. Beside it, with the same data in the same
process and number of threads: the dense step over all classes (the faster of plain PyTorch and of
our own code with the selector `full`) and Partial FC's random tenth.

Rows are synthetic: clusters of 40 within groups of 25 clusters, as class rows are late in
training; features are noisy copies of their class rows, at a cosine of about 0.7. Or they are
trained ones, --rows FILE: a checkpoint of a run with ActiveClassHead, one matrix in .npy, .pth or
.safetensors, or what active_class_experiment.py keeps of its full arm, which has live features
and labels of training batches, too. Each row of the results
says which ('data': synthetic; trained rows with made features; live).

  grad_cosine, grad_rel_error  of the features' gradient against that of the full softmax, with
                               rows moved by --drift since the index was built (its worst moment)
  step_ms                      median of single steps between renewals
  run_ms                       a whole interval divided by its steps: steps, one renewal (one of
                               those with k-means), a measurement each --monitor-every steps and
                               one checkpoint of rows and selector, all in the foreground on the
                               same threads, and the first build spread over 10,000 steps
  extra_bytes                  index and counters beyond rows and momentum
  stall_share                  of a run with the build in a thread: snapshot and waiting

  python benchmarks/active_class.py --json docs/results/active_class.json --record

With --reach each selector is tried with more and more active rows (and lists searched) until the
gradient has a cosine of 0.99 and an error of 0.1, and measured there.

Memory: about 4.5 GB at a million classes of 128 dimensions. --quick shows that it runs.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from active_class_bench import (
    FULL_STEPS,
    OPTIONS,
    Bench,
    dense_step_ms,
    fidelity,
    moved,
    read_rows,
    synthetic_rows,
    time_steps,
)
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.common.core.tables import cells_of, print_table, write_markdown
from vision.faces.nn.select.build import NAMES

COLUMNS = ('classes', 'selector', 'nprobe', 'active', 'step_ms', 'run_ms', 'full_step_ms',
           'random10_step_ms', 'grad_cosine', 'grad_rel_error', 'outside_mass', 'extra_bytes',
           'build_s', 'stall_share', 'data')
COLD_STEPS = 10_000  # one build from nothing per so many steps
# Where a build or search takes minutes: left out above so many classes unless named.
SMALL_ONLY = {'oracle': 300_000, 'forest': 300_000, 'faiss': 300_000}
NO_INDEX = ('full', 'random', 'oracle')
SEARCHES_LISTS = ('ivf', 'device')
LEAST_COSINE, MOST_ERROR = 0.99, 0.1
# Of --reach: shares of active rows, and of the lists searched.
SHARES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.4, 0.7)
PROBED = (12, 32, 64, 128)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    torch.set_num_threads(args.threads)
    if args.quick:
        args.classes, args.steps = [4000], 3
    console, rows = Console(), []
    with Progress(console=console, transient=True) as progress:
        for num_classes in args.classes if args.rows is None else [None]:
            weights, live = (synthetic_rows(num_classes, args.dim, args.seed), None) \
                if args.rows is None else read_rows(args.rows)
            bench = Bench(args, weights, args.seed, live)
            rows += list(measure_all(bench, progress))
            del bench
    write(args, rows, console)
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('--classes', type=int, nargs='+', default=[100_000, 1_000_000],
        help='numbers of classes, a table for each (default: 100,000 and 1,000,000)')
    add('--rows', type=Path, help='trained class rows instead of synthetic ones')
    add('--dim', type=int, default=128, help='of embeddings and rows (default: 128)')
    add('--batch', type=int, default=256, help='features of a step (default: 256)')
    add('--active', type=float, nargs='+', default=[0.02, 0.005],
        help='share of active rows: below 300,000 classes, and above '
        '(default: 0.02 and 0.005)')
    add('--selectors', nargs='+', choices=NAMES,
        help='default: all, above 300,000 classes those that are built in a minute')
    add('--nprobe', type=int, nargs='+', default=[12],
        help='lists searched by ivf and device; a row for each (default: 12)')
    add('--reach', action='store_true', help='search for the settings of a good gradient')
    add('--loss', choices=('ArcFace', 'CosFace'), default='ArcFace', help='(default: ArcFace)')
    add('--scale', type=float, default=64.0, help='of the logits (default: 64)')
    add('--margin', type=float, default=0.5, help='of the loss (default: 0.5)')
    add('--random-frac', type=float, default=0.1,
        help='share of the active rows that is drawn at random (default: 0.1)')
    add('--correction', choices=('none', 'sampled'), default='none',
        help='sampled: random rows stand for those that were not drawn (default: none)')
    add('--interval', type=int, default=500, help='steps between renewals of an index '
        '(default: 500)')
    add('--drift', type=float, default=0.99,
        help='cosine between rows and the snapshot of the index where fidelity is measured '
        '(default: 0.99)')
    add('--monitor-every', type=int, default=200,
        help='steps between measurements of the selector on itself (default: 200)')
    add('--steps', type=int, default=20, help='timed steps per selector (default: 20)')
    add('--threads', type=int, default=1, help='of torch and FAISS (default: 1)')
    add('--seed', type=int, default=0, help='of rows and features (default: 0)')
    add('--quick', action='store_true', help='4000 classes, 3 steps')
    add_report_options(parser, what='rows, and a table beside them (.md),', is_required=True)
    return parser


def measure_all(bench: Bench, progress: Progress):
    num, args = bench.num_classes, bench.args
    names = args.selectors or [n for n in NAMES if num <= SMALL_ONLY.get(n, num)]
    plan = [(name, nprobe) for name in names for nprobe in (
        args.nprobe if name in SEARCHES_LISTS and not args.reach else [None])]
    task = progress.add_task(f'{num:,} classes', total=len(plan) + 2)
    data = 'synthetic' if args.rows is None else 'live' if bench.live else 'trained'
    common = dict(classes=num, dim=bench.dim, batch=args.batch, data=data)
    common['dense_torch_step_ms'] = dense_step_ms(bench)
    common['full_selector_step_ms'] = time_steps(bench, bench.selector('full', num),
                                                 repeats=FULL_STEPS)
    common['full_step_ms'] = min(common['dense_torch_step_ms'], common['full_selector_step_ms'])
    progress.advance(task)
    common['random10_step_ms'] = time_steps(bench, bench.selector('random', num // 10))
    progress.advance(task)
    for name, nprobe in plan:
        options = {} if nprobe is None else dict(nprobe=nprobe)
        row = dict(selector=name, nprobe=nprobe, **common)
        if name == 'full':
            row |= dict.fromkeys(('step_ms', 'run_ms'), common['full_selector_step_ms'])
            row |= dict(active=num)
        elif args.reach:
            row |= measure_reached(bench, name)
        elif name == 'random':
            row |= dict.fromkeys(('step_ms', 'run_ms'), common['random10_step_ms'])
            row |= dict(active=num // 10, **fidelity(bench, bench.selector(name, num // 10)))
        else:
            row |= measure_selector(bench, name, bench.num_active(), options)
        yield {column: None for column in COLUMNS} | dict(extra_bytes=0) | row
        progress.advance(task)


def measure_reached(bench: Bench, name: str) -> dict:
    """The fewest active rows of ``SHARES``, then the fewest lists of ``PROBED``, with a cosine
    and an error as wanted; where none are, the best there was (``is_reached``)."""
    tried = []
    for share in SHARES:
        for nprobe in PROBED if name in SEARCHES_LISTS else [None]:
            options = {} if nprobe is None else dict(nprobe=nprobe)
            bench.reset_rows(bench.rows)
            selector = bench.selector(name, bench.num_active(share), **options | (
                {} if name in NO_INDEX else dict(upkeep=dict(interval=1 << 40))))
            if name not in NO_INDEX:
                selector.upkeep.index(0)
                bench.reset_rows(moved(bench.rows, bench.args.drift, bench.generator))
            found = fidelity(bench, selector)
            tried.append((found['grad_rel_error'], share, options))
            if found['grad_cosine'] >= LEAST_COSINE and found['grad_rel_error'] <= MOST_ERROR:
                return dict(is_reached=True, **options) | measure_selector(
                    bench, name, bench.num_active(share), options) | found
    _, share, options = min(tried, key=lambda each: each[0])
    return dict(is_reached=False, **options) | measure_selector(
        bench, name, bench.num_active(share), options)


def measure_selector(bench: Bench, name: str, num_active: int, options: dict) -> dict:
    bench.reset_rows(bench.rows)
    row = dict(active=num_active)
    if name in NO_INDEX:
        selector = bench.selector(name, num_active, **options)
        row['step_ms'] = row['run_ms'] = time_steps(bench, selector, FULL_STEPS)
        bench.reset_rows(bench.rows)
        return row | fidelity(bench, selector)
    # Renewed where that is measured only, so no single step holds a renewal.
    selector = bench.selector(name, num_active, **options, upkeep=dict(interval=1 << 40))
    index = selector.upkeep.index(0)
    row |= dict(build_s=round(selector.upkeep.seconds['build'], 3),
                extra_bytes=selector.upkeep.num_bytes + store_extra_bytes(bench))
    row |= {f'fresh_{key}': value for key, value in fidelity(bench, selector).items()}
    row['step_ms'] = time_steps(bench, selector)
    row |= stall(bench, selector, row['step_ms'])
    bench.reset_rows(moved(bench.rows, bench.args.drift, bench.generator))
    row |= fidelity(bench, selector)
    bench.reset_rows(bench.rows)
    return row | whole_run(bench, name, num_active, options, index, row['build_s'])


def whole_run(bench: Bench, name: str, num_active: int, options: dict, index,
              build_s: float) -> dict:
    """Milliseconds a step of one interval with everything in it, and what two parts took."""
    args, num_lists = bench.args, (OPTIONS.get(name, {}) | options).get('nprobe', 12)
    interval = min(args.interval, 6) if args.quick else args.interval
    # Rules that let it measure and change nothing; 'device' measures nothing.
    rules = dict(monitor_every=min(args.monitor_every, interval), least_recall=1e-9,
                 least_gain=-1.0, active_range=(num_active - 1, num_active),
                 interval_range=(interval, interval + 1),
                 nprobe_range=(num_lists - 1, num_lists))
    selector = bench.selector(
        name, num_active, **options, **{} if name == 'device' else dict(adaptive=rules),
        upkeep=dict(interval=interval, swap_lag=0, warm_every=1))
    keeper = selector.upkeep
    if index.keeps_lists:  # others need the rows that they were built from
        keeper.adopt(index, 0)
    bench.step(selector, 0, *bench.batch())  # measures for the first time
    keeper.seconds = dict.fromkeys(keeper.seconds, 0.0)
    checkpoint_s = total = 0.0
    for number in range(1, interval + 2):
        batch, start = bench.batch(), time.perf_counter()
        bench.step(selector, number, *batch)
        total += time.perf_counter() - start
        if number == interval // 2:
            checkpoint_s = checkpoint_seconds(bench, selector)
    assert not getattr(selector, 'is_warming_up', False) and keeper.seconds['build'] > 0
    run_s = (total + checkpoint_s) / (interval + 1) + build_s / COLD_STEPS
    return dict(run_ms=round(1000 * run_s, 3), run_steps=interval + 1,
                renewal_s=round(keeper.seconds['snapshot'] + keeper.seconds['build'], 3),
                checkpoint_s=round(checkpoint_s, 3))


def checkpoint_seconds(bench: Bench, selector) -> float:
    """What ActiveClassHook does for a checkpoint, and the writing of it to memory."""
    start = time.perf_counter()
    torch.save(dict(store=bench.store.state_dict(), selector=selector.state_dict()), io.BytesIO())
    return time.perf_counter() - start


def stall(bench: Bench, selector, step_ms: float) -> dict:
    """Run through a renewal in a thread: what training waits for, as a share of an interval."""
    lag, keeper = max(2, bench.args.steps // 2), selector.upkeep
    index, before = keeper.index(0), keeper.schedule
    keeper.schedule = replace(before, interval=lag + 2, swap_lag=lag, is_async=True, warm_every=0)
    keeper.set_interval(lag + 2)
    keeper.adopt(index, 0)
    busy_ms = []
    for number in range(2 * lag + 4):
        if keeper.swap_step == number:
            keeper.wait()  # a real lag is longer than this run: this is no stall
        batch, start = bench.batch(), time.perf_counter()
        bench.step(selector, number, *batch)
        if keeper.swap_step is not None:
            busy_ms.append(1000 * (time.perf_counter() - start))
    waited = keeper.seconds['snapshot'] + keeper.seconds['wait']
    keeper.schedule = before
    keeper.set_interval(before.interval)
    keeper.adopt(index, 0)
    return dict(stall_share=round(1000 * waited / (bench.args.interval * step_ms), 5),
                step_while_building_ms=round(float(np.median(busy_ms)), 3))


def store_extra_bytes(bench: Bench) -> int:
    """Tensors of the store beyond rows and momentum."""
    total = sum(t.nbytes for t in tensors_of(bench.store.state_dict()))
    return max(0, total - 2 * bench.rows.nbytes)


def tensors_of(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else \
        value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


def growth(rows: list[dict]) -> dict[str, float]:
    """Exponent of the whole run's step in the number of classes, for selectors with two sizes."""
    found = {}
    for name, nprobe in {(row['selector'], row['nprobe']) for row in rows}:
        own = sorted((row['classes'], row['run_ms']) for row in rows
                     if (row['selector'], row['nprobe']) == (name, nprobe))
        if len(own) > 1 and own[0][0] < own[-1][0]:
            label = name if nprobe is None else f'{name}, nprobe {nprobe}'
            found[label] = round(math.log(own[-1][1] / own[0][1])
                                / math.log(own[-1][0] / own[0][0]), 3)
    return found


def write(args: argparse.Namespace, rows: list[dict], console: Console) -> None:
    settings = {key: str(value) if isinstance(value, Path) else value
                for key, value in vars(args).items() if key not in ('json', 'record', 'seed')}
    write_report(args.json, rows, is_recorded=args.record, seed=args.seed, settings=settings,
                 growth_exponent=growth(rows))
    table = [cells_of(row, COLUMNS, digits=3) for row in rows]
    print_table([column.replace('_', ' ') for column in COLUMNS], table, num_left=0,
                title=f'{args.batch} samples, {args.threads} thread(s)')
    write_markdown(args.json.with_suffix('.md'), COLUMNS, table)
    console.print(f'growth exponents: {json.dumps(growth(rows))}\nrows: {args.json}',
                  soft_wrap=True)


if __name__ == '__main__':
    run_cli(main)
