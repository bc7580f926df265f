"""Time and gradient fidelity of active-class selection beside the full softmax.

One step of a head is measured: selection, forward and backward of ArcFace over the active rows,
and the optimizer's update of them in the real class store. Beside it, with the same data in the
same process and number of threads: the dense step over all classes (the faster of plain PyTorch
and of our own code with the selector `full`) and Partial FC's random tenth.

Rows are synthetic: clusters of 40 within groups of 25 clusters, as class rows are late in
training, or those of --rows FILE: a checkpoint of a run with ActiveClassHead, or one matrix in
.npy, .pth or .safetensors. Features are noisy copies of their class rows, at a cosine of about
0.7.

  grad_cosine, grad_rel_error  of the features' gradient against that of the full softmax, with
                               rows moved by --drift since the index was built (its worst moment)
  upkeep_ms                    all work on the index per step: renewals, and one cold build in
                               10,000 steps, on the same number of threads, not overlapped
  extra_bytes                  index and counters beyond rows and momentum
  stall_share                  of a run with the build in a thread: snapshot and waiting

  python tools/benchmarks/active_class.py --json docs/results/active_class.json

Memory: about 4.5 GB at a million classes of 128 dimensions. --quick shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_unwritable
from vision.common.core.report import write_report
from vision.common.nn.checkpoint import load_checkpoint
from vision.faces.nn.head.margins import ArcFace
from vision.faces.nn.head.selective import SelectiveLoss, selective_loss
from vision.faces.nn.select.build import NAMES, build_selector
from vision.faces.nn.select.selectors import Selection
from vision.faces.nn.store.class_store import build_store, class_rows

COLUMNS = ('classes', 'selector', 'nprobe', 'active', 'step_ms', 'upkeep_ms', 'full_step_ms',
           'random10_step_ms', 'grad_cosine', 'grad_rel_error', 'outside_mass', 'extra_bytes',
           'build_s', 'stall_share')
LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
COLD_STEPS = 10_000  # one build from nothing per so many steps
# Where a build or search takes minutes: left out above so many classes unless named.
SMALL_ONLY = {'forest': 300_000, 'faiss': 300_000}
SEARCHES_LISTS = ('ivf', 'device')
OPTIONS = dict(faiss=dict(factory='HNSW16,SQfp16', parameters='efSearch=128'))


@dataclass
class Bench:
    """One number of classes: rows, what a step is made of, and the two rivals' times."""

    args: argparse.Namespace
    rows: Tensor
    seed: int = 0

    def __post_init__(self) -> None:
        self.num_classes, self.dim = self.rows.shape
        self.margin = ArcFace(self.args.scale, self.args.margin)
        self.store = build_store(self.num_classes, self.dim, seed=self.seed, optimizer=dict(
            type='sgd', momentum=MOMENTUM, weight_decay=WEIGHT_DECAY))
        self.generator = torch.Generator().manual_seed(self.seed + 1)
        self.reset_rows(self.rows)

    def reset_rows(self, rows: Tensor) -> None:
        """Put these rows in the store, at rest: no momentum, nothing to catch up."""
        state = self.store.state_dict()
        for tensor in state['state'].values():
            tensor.zero_()
        self.store.load_ranges([state | dict(rows=rows, last=torch.full_like(
            state['last'], state['missed']['num_steps']))])

    def batch(self, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(features that need a gradient, labels)."""
        rows = self.rows if rows is None else rows
        labels = torch.randint(self.num_classes, (self.args.batch,), generator=self.generator)
        noise = torch.randn(len(labels), self.dim, generator=self.generator)
        features = functional.normalize(rows[labels]) + noise / self.dim**0.5
        return functional.normalize(features).requires_grad_(), labels

    def step(self, selector, number: int, features: Tensor, labels: Tensor) -> None:
        selection = selector.select(features.detach(), labels, number)
        weights = self.store.pull(selection.rows)
        self.loss(features, weights, selection).loss.backward()
        self.store.push(selection.rows, weights.grad, lr=LR)
        selector.after_update(selection.rows, number)

    def loss(self, features: Tensor, weights: Tensor, selection: Selection) -> SelectiveLoss:
        is_weighed = self.args.correction == 'sampled'
        return selective_loss(
            features, weights, selection.columns, self.margin, correction=self.args.correction,
            expected_counts=selection.expected_counts if is_weighed else None)

    def selector(self, name: str, num_active: int, **options):
        if name not in ('full', 'random'):
            options |= dict(scale=self.args.scale, target=self.margin.target,
                            random_frac=self.args.random_frac)
        return build_selector(name, self.store, num_active=num_active, seed=self.seed,
                              **OPTIONS.get(name, {}) | options)

    def num_active(self) -> int:
        share = self.args.active[0 if self.num_classes < 300_000 else -1]
        return max(self.args.batch, round(share * self.num_classes))


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    refuse_unwritable(args.json)
    torch.set_num_threads(args.threads)
    if args.quick:
        args.classes, args.steps = [4000], 3
    console, rows = Console(), []
    with Progress(console=console, transient=True) as progress:
        for num_classes in args.classes if args.rows is None else [None]:
            weights = synthetic_rows(num_classes, args.dim, args.seed) if args.rows is None \
                else read_rows(args.rows)
            bench = Bench(args, weights, args.seed)
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
    add('--scale', type=float, default=64.0, help='of the logits (default: 64)')
    add('--margin', type=float, default=0.5, help="ArcFace's angle (default: 0.5)")
    add('--random-frac', type=float, default=0.1,
        help='share of the active rows that is drawn at random (default: 0.1)')
    add('--correction', choices=('none', 'sampled'), default='none',
        help='sampled: random rows stand for those that were not drawn (default: none)')
    add('--interval', type=int, default=500, help='steps between renewals of an index '
        '(default: 500)')
    add('--drift', type=float, default=0.99,
        help='cosine between rows and the snapshot of the index where fidelity is measured '
        '(default: 0.99)')
    add('--steps', type=int, default=20, help='timed steps per selector (default: 20)')
    add('--threads', type=int, default=1, help='of torch and FAISS (default: 1)')
    add('--seed', type=int, default=0, help='of rows and features (default: 0)')
    add('--quick', action='store_true', help='4000 classes, 3 steps')
    add('--json', type=Path, required=True, help='results; a table goes beside it (.md)')
    return parser


def synthetic_rows(num: int, dim: int, seed: int) -> Tensor:
    """(num, dim) unit rows: clusters of 40 around centres in groups of 25, in random order."""
    generator = torch.Generator().manual_seed(seed)

    def spread(count: int) -> Tensor:
        return torch.randn(count, dim, generator=generator) / dim**0.5
    groups = functional.normalize(spread(math.ceil(num / 1000)))
    centres = functional.normalize(groups.repeat_interleave(25, 0) + spread(25 * len(groups)))
    rows = centres.repeat_interleave(40, 0)[:num] + 0.8 * spread(num)
    return functional.normalize(rows)[torch.randperm(num, generator=generator)]


def read_rows(path: Path) -> Tensor:
    if path.suffix == '.npy':
        rows = torch.from_numpy(np.load(path, allow_pickle=False))
    else:
        content = load_checkpoint(path)
        rows = class_rows(content['active_class']['stores']) if 'active_class' in content \
            else next(iter(content['state_dict'].values()), None)
    if not isinstance(rows, Tensor) or rows.ndim != 2:
        raise VisionError('VIS-INPUT-1052', f'{path} holds no matrix of class rows',
                          where=str(path), do='give a checkpoint of a run with '
                          'ActiveClassHead, or save one (classes, dim) array')
    return functional.normalize(rows.float())


def measure_all(bench: Bench, progress: Progress):
    num, args = bench.num_classes, bench.args
    names = args.selectors or [n for n in NAMES if num <= SMALL_ONLY.get(n, num)]
    plan = [(name, nprobe) for name in names
            for nprobe in (args.nprobe if name in SEARCHES_LISTS else [None])]
    task = progress.add_task(f'{num:,} classes', total=len(plan) + 2)
    common = dict(classes=num, dim=bench.dim, batch=args.batch)
    common['dense_torch_step_ms'] = dense_step_ms(bench)
    common['full_selector_step_ms'] = time_steps(bench, bench.selector('full', num), repeats=2)
    common['full_step_ms'] = min(common['dense_torch_step_ms'], common['full_selector_step_ms'])
    progress.advance(task)
    common['random10_step_ms'] = time_steps(bench, bench.selector('random', num // 10))
    progress.advance(task)
    for name, nprobe in plan:
        row = dict(selector=name, nprobe=nprobe, **common)
        if name == 'full':
            row |= dict(active=num, step_ms=common['full_selector_step_ms'])
        elif name == 'random':
            row |= dict(active=num // 10, step_ms=common['random10_step_ms'],
                        **fidelity(bench, bench.selector(name, num // 10)))
        else:
            row |= measure_selector(bench, name, {} if nprobe is None else dict(nprobe=nprobe))
        yield {column: None for column in COLUMNS} | dict(upkeep_ms=0.0, extra_bytes=0) | row
        progress.advance(task)


def dense_step_ms(bench: Bench) -> float:
    """Forward, backward and SGD of the whole matrix in plain PyTorch, ArcFace on the target."""
    weights, momentum = bench.rows.clone().requires_grad_(), torch.zeros_like(bench.rows)

    def step(features: Tensor, labels: Tensor) -> None:
        weights.grad = None
        cosine = features @ functional.normalize(weights).T
        place = torch.arange(len(labels)), labels
        target = torch.cos(cosine[place].clamp(-0.9999, 0.9999).acos() + 0.5)
        functional.cross_entropy(cosine.index_put(place, target) * 64, labels).backward()
        with torch.no_grad():
            momentum.mul_(MOMENTUM).add_(weights.grad.add_(weights, alpha=WEIGHT_DECAY))
            weights.sub_(momentum, alpha=LR)
    return median_ms([partial(step, *bench.batch()) for _ in range(3)])


def time_steps(bench: Bench, selector, repeats: int | None = None, first: int = 0) -> float:
    repeats = repeats or bench.args.steps
    work = [partial(bench.step, selector, first + number, *bench.batch())
            for number in range(repeats + 1)]
    return median_ms(work)


def median_ms(calls: list[Callable]) -> float:
    """Median of all calls but the first, which warms up."""
    times = []
    for call in calls:
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return round(float(np.median(times[1:])), 3)


def measure_selector(bench: Bench, name: str, options: dict) -> dict:
    bench.reset_rows(bench.rows)
    num_active, has_index = bench.num_active(), name != 'oracle'
    if has_index:  # renewed by hand below, so no step holds a renewal
        options |= dict(upkeep=dict(interval=1 << 40))
    selector = bench.selector(name, num_active, **options)
    row = dict(active=num_active)
    if has_index:
        selector.upkeep.index(0)
        row |= dict(build_s=round(selector.upkeep.seconds['build'], 3),
                    extra_bytes=selector.upkeep.num_bytes + store_extra_bytes(bench))
        row |= {f'fresh_{key}': value for key, value in fidelity(bench, selector).items()}
    row['step_ms'] = time_steps(bench, selector, None if has_index else 2)
    if has_index:
        row |= upkeep(bench, selector, row['build_s'])
        row |= stall(bench, selector, row['step_ms'])
        bench.reset_rows(moved(bench.rows, bench.args.drift, bench.generator))
    else:
        bench.reset_rows(bench.rows)
    return row | fidelity(bench, selector)


def upkeep(bench: Bench, selector, build_s: float) -> dict:
    """Milliseconds per step, from one renewal of each kind done now."""
    keeper, interval = selector.upkeep, bench.args.interval
    start = time.perf_counter()
    rows = bench.store.snapshot(torch.float16)
    snapshot = time.perf_counter() - start
    seconds = []
    for num_iterations in (0, keeper.schedule.warm_iterations):
        start = time.perf_counter()
        keeper.index(0).renewal(rows, num_iterations=num_iterations)()
        seconds.append(time.perf_counter() - start)
    every = keeper.schedule.warm_every
    renewal = snapshot + (seconds[0] * (every - 1) + seconds[1]) / every
    return dict(upkeep_ms=round(1000 * (renewal / interval + build_s / COLD_STEPS), 3),
                assign_s=round(seconds[0], 3), warm_s=round(seconds[1], 3),
                snapshot_s=round(snapshot, 3))


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


def moved(rows: Tensor, cosine: float, generator: torch.Generator) -> Tensor:
    """Rows turned in random directions, to about this cosine with what they were."""
    noise = torch.randn(rows.shape, generator=generator) / rows.shape[1]**0.5
    return functional.normalize(rows + math.sqrt(1 / cosine**2 - 1) * noise)


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


def fidelity(bench: Bench, selector, num_batches: int = 2) -> dict:
    """Gradient of the features over active rows against that over all, on the live rows."""
    everything = bench.selector('full', bench.num_classes)
    live = bench.store.pull(torch.arange(bench.num_classes)).detach()
    cosines, errors, outside = [], [], []
    for number in range(num_batches):
        features, labels = bench.batch(live)
        full, log_all = gradient(bench, features, live, everything.select(features, labels, 0))
        chosen = selector.select(features.detach(), labels, number)
        part, log_active = gradient(bench, features, live[chosen.rows], chosen)
        cosines.append(float(functional.cosine_similarity(full.flatten(), part.flatten(), 0)))
        errors.append(float((part - full).norm() / full.norm()))
        outside.append(float(1 - (log_active - log_all).exp().mean()))  # weighed: near 0
    return dict(grad_cosine=round(float(np.mean(cosines)), 5),
                grad_rel_error=round(float(np.mean(errors)), 5),
                outside_mass=round(float(np.mean(outside)), 5))


def gradient(bench: Bench, features: Tensor, rows: Tensor, selection: Selection
             ) -> tuple[Tensor, Tensor]:
    features.grad = None
    result = bench.loss(features, rows, selection)
    result.loss.backward()
    return features.grad, result.log_normaliser


def growth(rows: list[dict]) -> dict[str, float]:
    """Exponent of step and upkeep in the number of classes, for selectors with two sizes."""
    found = {}
    for name, nprobe in {(row['selector'], row['nprobe']) for row in rows}:
        own = sorted((row['classes'], row['step_ms'] + row['upkeep_ms']) for row in rows
                     if (row['selector'], row['nprobe']) == (name, nprobe))
        if len(own) > 1 and own[0][0] < own[-1][0]:
            label = name if nprobe is None else f'{name}, nprobe {nprobe}'
            found[label] = round(math.log(own[-1][1] / own[0][1])
                                / math.log(own[-1][0] / own[0][0]), 3)
    return found


def write(args: argparse.Namespace, rows: list[dict], console: Console) -> None:
    settings = {key: str(value) if isinstance(value, Path) else value
                for key, value in vars(args).items() if key not in ('json', 'seed')}
    write_report(args.json, rows, seed=args.seed, settings=settings, growth_exponent=growth(rows))
    table = Table(title=f'{args.batch} samples, {args.threads} thread(s)')
    for column in COLUMNS:
        table.add_column(column.replace('_', ' '), justify='right')
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)
    with atomic_write(args.json.with_suffix('.md'), 'w') as file:
        file.write('| ' + ' | '.join(COLUMNS) + ' |\n|' + '---|' * len(COLUMNS) + '\n')
        file.writelines('| ' + ' | '.join(cells(row)) + ' |\n' for row in rows)
    console.print(f'growth exponents: {json.dumps(growth(rows))}\nrows: {args.json}',
                  soft_wrap=True)


def cells(row: dict) -> list[str]:
    return ['-' if row[column] is None else f'{row[column]:.3f}'
            if isinstance(row[column], float) else str(row[column]) for column in COLUMNS]


if __name__ == '__main__':
    run_cli(main)
