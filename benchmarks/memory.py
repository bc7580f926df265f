"""Peak memory, cost and fidelity of training under an activation budget, beside its rivals.

One run, side by side: all methods take turns on one network, with one thread, round after round.

  peak_ratio       highest sum of bytes of tensors made in a step, over the unmanaged step's;
                   gradients are allocated before. first_peak_ratio is that of the first steps,
                   when a budget's manager still learns.
  saved_ratio      the same at the end of forward: what waits for backward.
  extra_op_time    operators run beyond the unmanaged step's, each priced at its median time there,
                   over the time of all operators of the unmanaged step. Copies to and from the
                   host are not among them: transfer_time, bytes both ways at 1 GB/s over the same.
  step_ratio       thread CPU time of a step, the median of the rounds' ratios to the unmanaged
                   step of the same round.
  host_pool_ratio  most bytes that lay on the host at once, over the unmanaged peak.
  bit_equal        losses, gradients, weights, buffers and the random state after 20 steps of SGD
                   with momentum are those of the unmanaged run; 'differs' names what is not.
  max_batch        largest batch whose steps stay within the unmanaged peak of the base batch once
                   a plan is there; max_batch_first_ratio: what the first step of it took, over
                   that peak.

MODEL is one of five networks, or 'overhead': microseconds per operator of a managed step that
drops nothing, and its whole step against eager's, or 'leak': what 200 steps and an exception
leave behind. --rss reads one budget's peak a second time, as resident memory of a fresh process.

Examples:
  python benchmarks/memory.py resnet50 --json docs/results/memory_resnet50.json --record
  python benchmarks/memory.py transformer --quick --budgets 0.4
  python benchmarks/memory.py resnet50 --rss --budgets 0.4 --methods ours
  python benchmarks/memory.py overhead
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory_models import SMALL_TASKS, TASKS, Task
from memory_rivals import MODELLED_BANDWIDTH, Compiled, Method, Ours, make_ours, make_rivals
from rich.progress import Progress
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.common.core.tables import cells_of, print_table
from vision.common.nn.freed_memory import keep_freed_memory
from vision.memory.core.graph import StepReport
from vision.memory.nn.manager import MemoryBudget
from vision.memory.nn.tracker import LiveMemory

COLUMNS = ('method', 'budget', 'peak_ratio', 'saved_ratio', 'extra_op_time', 'transfer_time',
           'step_ratio', 'host_pool_ratio', 'bit_equal', 'max_batch')
BUDGETS = (0.6, 0.5, 0.42, 0.4, 0.3, 0.2)
SEED, LEARNING_RATE, MOMENTUM = 0, 1e-3, 0.9
MAX_GROWTH = 8  # of the batch, where the search for the largest one ends
# Views, and copies between memory and host, are no work that a method makes a device do again.
FREE = {'copy_', 'detach', 'alias', 'empty', 'empty_strided', 'clone', '_to_copy', 'set_', 'view',
        't', 'transpose', '_unsafe_view', 'expand', 'slice', 'select', 'as_strided', 'permute',
        'unsqueeze', 'squeeze', 'new_empty', 'new_empty_strided', 'empty_like', 'reshape'}
RSS_ENVIRONMENT = dict(MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='65536',
                       OMP_NUM_THREADS='1')  # freed memory goes back to the system at once


class OpClock(TorchDispatchMode):
    """Seconds of every operator's calls by (operator, shapes of its tensors)."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[tuple, list[float]] = defaultdict(list)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - start
        shapes = tuple(tuple(each.shape) for arg in args
                       for each in (arg if isinstance(arg, list | tuple) else (arg,))
                       if isinstance(each, Tensor))
        self.seconds[(func, shapes)].append(seconds)
        return result

    def priced(self, prices: OpClock, num_steps: int) -> float:
        """Seconds of one step of ``num_steps``, each operator at its median in ``prices``, or in
        this clock where it is not among them."""
        return sum(len(calls) / num_steps * float(np.median(prices.seconds.get(key) or calls))
                   for key, calls in self.seconds.items()
                   if key[0].overloadpacket.__name__ not in FREE)


@dataclass
class Reading:
    """Bytes at most in the steps of all batches; ``swapped`` is their sum. ``first_peak`` counts
    the steps in which a method warms up too."""

    peak: int = 0
    first_peak: int = 0
    saved: int = 0
    host_peak: int = 0
    swapped: int = 0
    reports: list[StepReport] = field(default_factory=list)


class Bench:
    """One network in one state, on which all methods take turns."""

    def __init__(self, task: Task, *, fidelity_steps: int, rounds: int) -> None:
        torch.manual_seed(SEED)
        self.task, self.model = task, task.build()
        self.fidelity_steps, self.rounds = fidelity_steps, rounds
        self.start = copy.deepcopy(self.model.state_dict())
        self.batches = task.batches(task.batch)
        self.reset()
        self.unmanaged = Method()
        self.plain = self.read(self.unmanaged)
        self.peak_bytes = self.plain.peak
        self.expected = self.trained(self.unmanaged)
        self.prices = OpClock()
        for _ in range(rounds):
            self.reset()
            self.run(self.unmanaged, self.batches, [self.prices])
        self.op_seconds = self.prices.priced(self.prices, rounds)

    def reset(self) -> None:
        """The first state again; gradients are there, so that they count as no activations."""
        self.model.load_state_dict(self.start)
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        np.random.seed(SEED)
        torch.manual_seed(SEED)

    def run(self, method: Method, batches: Sequence[Any], meters: Sequence = ()) -> None:
        for batch in batches:
            method.step(self.task, self.model, batch, meters)

    def read(self, method: Method, batches: Sequence[Any] | None = None) -> Reading:
        """A step of each batch once the method is warm, and the steps before that."""
        reading = Reading()
        for index in range(method.warm_steps + 1):
            for batch in self.batches if batches is None else batches:
                live, waiting = LiveMemory(), []
                method.step(self.task, self.model, batch, [live],
                            after_forward=lambda live=live, out=waiting: out.append(
                                live.live_bytes))
                reading.first_peak = max(reading.first_peak, live.peak_bytes)
                if index == method.warm_steps:
                    reading.peak = max(reading.peak, live.peak_bytes)
                    reading.saved = max(reading.saved, *waiting)
                    reading.host_peak = max(reading.host_peak, method.host_peak_bytes)
                    reading.swapped += method.swapped_bytes
                    reading.reports += [method.report] if method.report else []
        return reading

    def trained(self, method: Method) -> dict[str, Tensor]:
        """All that some steps end with, and their losses."""
        self.reset()
        optimizer = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        losses = []
        for index in range(self.fidelity_steps):
            optimizer.zero_grad(set_to_none=False)
            losses.append(method.step(self.task, self.model,
                                      self.batches[index % len(self.batches)]))
            optimizer.step()
        named = dict(self.model.named_parameters())
        return {'loss': torch.stack(losses), 'random state': torch.get_rng_state(),
                **{f'weight {name}': value.detach().clone() for name, value in named.items()},
                **{f'gradient {name}': value.grad.clone() for name, value in named.items()},
                **{f'buffer {name}': value.clone() for name, value in self.model.named_buffers()}}

    def extra_seconds(self, method: Method) -> float:
        """Operators of a step of each batch beyond those of the unmanaged one."""
        self.reset()
        clock = OpClock()
        self.run(method, self.batches, [clock])
        return clock.priced(self.prices, 1) - self.op_seconds

    def row(self, method: Method) -> dict[str, Any]:
        self.reset()
        reading, extra = self.read(method), self.extra_seconds(method)
        actual = self.trained(method)
        differs = [name for name, value in self.expected.items()
                   if not torch.equal(value, actual[name])]
        peak = self.peak_bytes
        row = dict(peak_ratio=reading.peak / peak, first_peak_ratio=reading.first_peak / peak,
                   saved_ratio=reading.saved / self.plain.saved,
                   extra_op_time=extra / self.op_seconds,
                   transfer_time=2 * reading.swapped / MODELLED_BANDWIDTH / self.op_seconds,
                   host_pool_ratio=reading.host_peak / peak,
                   bit_equal=not differs, differs=differs[:3] + (
                       [f'and {len(differs) - 3} more'] if len(differs) > 3 else []))
        if reports := reading.reports:  # the method's own account, to check ours against
            row.update(modes=[each.mode for each in reports],
                       replayed_calls=sum(each.replayed_calls for each in reports),
                       own_extra=sum(each.replay_seconds for each in reports)
                       / max(sum(each.op_seconds for each in reports), 1e-9))
        return row

    def step_ratios(self, methods: Sequence[Method], advance: Callable[[], None]
                    ) -> dict[Method, float]:
        """Alternating; the median over the rounds of the ratio to the round's unmanaged step."""
        times: dict[Method, list[float]] = {method: [] for method in methods}
        self.reset()
        for _ in range(self.rounds):
            for method in methods:
                start = time.thread_time()
                self.run(method, self.batches)
                times[method].append(time.thread_time() - start)
                advance()
        base = times[methods[0]]
        return {method: float(np.median(np.divide(each, base))) for method, each in times.items()}

    def max_batch(self, make: Callable[[], Method]) -> tuple[int, float]:
        """(largest batch, over the cap at most in the steps before the method was warm); by
        doubling, then bisection. 0: the base batch does not fit."""
        firsts = {0: 0}

        def fits(size: int) -> bool:
            self.reset()
            method = make()
            try:
                reading = self.read(method, self.task.batches(size))
            finally:
                method.close()
            firsts[size] = reading.first_peak
            return reading.peak <= self.peak_bytes

        low, high, most = 0, self.task.batch, MAX_GROWTH * self.task.batch
        while high <= most and fits(high):
            low, high = high, 2 * high
        while high - low > 1 and low < most:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low, firsts[low] / self.peak_bytes


def autocast(loss: Callable) -> Callable:
    def lowered(*args) -> Tensor:
        with torch.autocast('cpu', torch.bfloat16):
            return loss(*args)
    return lowered


def measure(args: argparse.Namespace, task: Task) -> list[dict[str, Any]]:
    """A row for each method; one that cannot run has the reason instead of figures."""
    rows, able = {}, []
    with Progress(transient=True) as progress:
        step = progress.add_task(f'{task.name}: unmanaged', total=None)
        bench = Bench(task, fidelity_steps=args.fidelity_steps, rounds=args.rounds)
        others = [method for method in make_rivals()[1:] + make_ours(
            args.budgets, bench.peak_bytes) if is_chosen(args, method)]
        methods = [bench.unmanaged, *others]
        progress.update(step, total=len(methods) * (2 + args.rounds), completed=0)
        for method in methods:
            progress.update(step, description=f'{method.name} {method.budget or ""}')
            try:
                rows[method] = bench.row(method)
                able.append(method)
            except Exception as error:  # what a rival cannot do is a result, with its reason
                if isinstance(method, Ours) or method is bench.unmanaged:
                    raise
                rows[method] = dict(failed=f'{type(error).__name__}: '
                                    f'{str(error).strip().splitlines()[0][:200]}')
            progress.advance(step)
        progress.update(step, description='time, in turn')
        for method, ratio in bench.step_ratios(able, lambda: progress.advance(step)).items():
            rows[method]['step_ratio'] = ratio
        largest: dict[str, tuple[int, float]] = {}
        for method in able:
            progress.update(step, description=f'largest batch: {method.name}')
            if not args.no_max_batch and not isinstance(method, Compiled) and \
                    method.name not in largest:
                largest[method.name] = bench.max_batch(maker(method, bench.peak_bytes))
            rows[method]['max_batch'], rows[method]['max_batch_first_ratio'] = largest.get(
                method.name, (None, None))
            progress.advance(step)
    for method in methods:
        method.close()
    return [dict(model=task.name, batch=task.batch, method=method.name, budget=method.budget)
            | rows[method] | dict(unmanaged_mb=bench.peak_bytes / 1e6) for method in methods]


def maker(method: Method, cap_bytes: int) -> Callable[[], Method]:
    """Of fresh methods of the same kind; ours with the cap as its budget."""
    if isinstance(method, Ours):
        form = [each.name for each in make_ours([1.0], cap_bytes)].index(method.name)
        return lambda: make_ours([1.0], cap_bytes)[form]
    return lambda: method  # keeps nothing from step to step


def is_chosen(args: argparse.Namespace, method: Method) -> bool:
    return not args.methods or any(part in method.name for part in args.methods)


class Empty(TorchDispatchMode):
    """What any dispatch mode costs."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def overhead(task: Task, rounds: int) -> list[dict[str, Any]]:
    """What the bookkeeping costs where nothing is dropped: microseconds for each of many small
    operators, and the whole step of a network."""
    x = torch.randn(64, 300, requires_grad=True)  # 75 KiB: saved values are managed

    def small_operators() -> None:
        y = x
        for _ in range(300):
            y = torch.tanh(y)
        y.sum().backward()
        x.grad = None

    model = task.build()
    (batch, *_) = task.batches(task.batch)

    def network() -> None:
        task.loss(model, batch).backward()

    rows = []
    for name, step in (('small operators', small_operators), (task.name, network)):
        with OpClock() as clock:
            step()
        num_ops = sum(map(len, clock.seconds.values()))
        times = overhead_times(step, rounds)
        eager = np.array(times['eager'])
        rows += [dict(model=name, method=way, num_ops=num_ops,
                      microseconds_per_op=1e6 * float(np.median(each - eager)) / num_ops,
                      step_ratio=float(np.median(each / eager)))
                 for way, each in times.items()]
    return rows


def overhead_times(step: Callable[[], None], rounds: int) -> dict[str, np.ndarray]:
    """Thread CPU seconds of each way, in turn."""
    planned = MemoryBudget(bytes=10**12, device='cpu')

    def recording() -> MemoryBudget:
        return MemoryBudget(bytes=10**12, mode='reactive', verify='never', device='cpu')

    ways: dict[str, Callable[[], Any]] = {
        'eager': nullcontext, 'empty dispatch mode': Empty, 'ours, recording': recording,
        'ours, planned': lambda: planned}
    for _ in range(2):
        with planned:
            step()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, make in ways.items():
            around = make()
            start = time.thread_time()
            with around:
                step()
            times[name].append(time.thread_time() - start)
            if name == 'ours, recording':
                around.close()
    planned.close()
    return {name: np.array(each) for name, each in times.items()}


def leak(num_steps: int = 200) -> list[dict[str, Any]]:
    """Live tensors and their bytes after many steps, and after an exception in the midst."""
    rows = []
    for name, options in (('ours recompute', dict(actions='recompute')),
                          ('ours swap', dict(actions='swap'))):
        task = SMALL_TASKS['transformer']()
        bench = Bench(task, fidelity_steps=1, rounds=1)
        (batch, *_) = bench.batches
        method = Ours(name, 0.3, round(0.3 * bench.peak_bytes), **options)
        bench.run(method, [batch] * 5)
        before = counted_tensors()
        with LiveMemory() as live:
            bench.run(method, [batch] * num_steps)
            try:
                with method.around(task, bench.model):
                    task.loss(bench.model, batch)
                    raise KeyboardInterrupt
            except KeyboardInterrupt:
                pass
            gc.collect()
        after = counted_tensors()
        bench.run(method, [batch])  # an exception leaves nothing that would stop the next step
        rows.append(dict(model='leak', method=name, steps=num_steps, live_bytes=live.live_bytes,
                         tensors_more=after[0] - before[0], bytes_more=after[1] - before[1]))
        method.close()
    return rows


def counted_tensors() -> tuple[int, int]:
    """(number, bytes of their storages) of all tensors that Python knows."""
    gc.collect()
    found = [each for each in gc.get_objects() if type(each) in (Tensor, Parameter)]
    return len(found), sum({each.untyped_storage()._cdata: each.untyped_storage().nbytes()
                            for each in found}.values())


class ResidentPeak(threading.Thread):
    """Highest anonymous resident bytes of this process, read every 2 ms, while it is entered."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.stopped, self.peak_bytes = threading.Event(), 0

    def __enter__(self) -> ResidentPeak:
        self.before_bytes = resident_bytes()
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stopped.set()
        self.join()
        self.peak_bytes -= self.before_bytes

    def run(self) -> None:
        while not self.stopped.wait(0.002):
            self.peak_bytes = max(self.peak_bytes, resident_bytes())


def resident_bytes() -> int:
    line = next(line for line in Path('/proc/self/status').read_text().splitlines()
                if line.startswith('RssAnon'))
    return 1024 * int(line.split()[1])


def resident_reading(task: Task, name: str, budget_bytes: int) -> dict[str, Any]:
    """In a fresh process: a step's growth in resident memory, and what the tracker says."""
    torch.manual_seed(SEED)
    model, batches = task.build(), task.batches(task.batch)[-1:]  # the largest
    method = Method() if name == 'unmanaged' else next(
        each for each in make_ours([1.0], budget_bytes) if each.name == name)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    # Before the reading: the first use of a mode imports much, kernels make their scratch, and a
    # host pool, which is kept from step to step, takes its memory.
    for _ in range(method.warm_steps + 1):
        with LiveMemory() as live:
            method.step(task, model, batches[0])
    gc.collect()
    with ResidentPeak() as resident:
        method.step(task, model, batches[0])
    return dict(method=name, tracker_mb=live.peak_bytes / 1e6,
                host_mb=method.host_peak_bytes / 1e6, resident_mb=resident.peak_bytes / 1e6)


def resident(args: argparse.Namespace, task: Task) -> list[dict[str, Any]]:
    """Unmanaged, and ours at each budget, each in its own process."""
    def child(name: str, num_bytes: int) -> dict[str, Any]:
        command = [sys.executable, __file__, args.model, '--rss-child', name, str(num_bytes),
                   *(f'--{name}' for name in ('quick', 'bf16') if getattr(args, name))]
        done = subprocess.run(command, capture_output=True, text=True,
                              env=os.environ | RSS_ENVIRONMENT)
        if done.returncode:
            raise VisionError('VIS-RUN-1456', f'the process that reads {name} ended with code '
                              f'{done.returncode}', where=' '.join(command),
                              why=done.stderr.strip()[-400:], do='run that command by itself')
        return json.loads(done.stdout.splitlines()[-1])

    plain = child('unmanaged', 0)
    rows = [plain | dict(budget=None)]
    for method in make_ours(args.budgets, round(plain['tracker_mb'] * 1e6)):
        if is_chosen(args, method):
            budget_bytes = round(method.budget * plain['tracker_mb'] * 1e6)
            rows.append(child(method.name, budget_bytes) | dict(budget=method.budget))
        method.close()
    return [dict(model=task.name, batch=task.batch) | row
            | dict(tracker_ratio=row['tracker_mb'] / plain['tracker_mb'],
                   resident_ratio=row['resident_mb'] / plain['resident_mb']) for row in rows]


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('model', choices=(*TASKS, 'overhead', 'leak'), metavar='MODEL',
        help=f'{", ".join(TASKS)}, overhead or leak')
    add('--quick', action='store_true', help='small networks and few steps: does all of it run?')
    add('--budgets', type=float, nargs='+', default=list(BUDGETS), metavar='RATIO',
        help=f'of the unmanaged peak (default: {" ".join(map(str, BUDGETS))})')
    add('--methods', nargs='+', metavar='PART', help="those whose name has one of these in it, "
        "e.g. ours 'block checkpoint' (default: all)")
    add('--rounds', type=int, help='timed steps of each method (default: 5; quick: 2)')
    add('--fidelity-steps', type=int, help='after which all is compared (default: 20; quick: 4)')
    add('--no-max-batch', action='store_true', help='leave the search for the largest batch out')
    add('--bf16', action='store_true', help='forward passes under bfloat16 autocast')
    add('--rss', action='store_true', help='read resident memory in fresh processes instead')
    add('--rss-child', nargs=2, help=argparse.SUPPRESS)
    add_report_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    args.rounds = args.rounds if args.rounds is not None else 2 if args.quick else 5
    args.fidelity_steps = args.fidelity_steps if args.fidelity_steps is not None else \
        4 if args.quick else 20
    if not all(0 < ratio <= 1 for ratio in args.budgets) or min(args.rounds,
                                                                args.fidelity_steps) < 1:
        raise VisionError('VIS-INPUT-1455', 'a budget is no ratio, or a number of steps below 1',
                          where=f'--budgets {args.budgets} --rounds {args.rounds} '
                          f'--fidelity-steps {args.fidelity_steps}',
                          do='budgets above 0 and at most 1, at least one step of each')
    torch.set_num_threads(1)
    if args.model in ('overhead', 'leak'):
        tasks = SMALL_TASKS if args.quick else TASKS
        rows = overhead(tasks['resnet50'](), args.rounds) if args.model == 'overhead' else \
            leak(20 if args.quick else 200)
        return finish(args, rows, list(rows[0]))
    task = (SMALL_TASKS if args.quick else TASKS)[args.model]()
    if args.bf16:
        task = replace(task, loss=autocast(task.loss), setting=f'{task.setting}, bf16 autocast')
    if args.rss_child:
        print(json.dumps(resident_reading(task, args.rss_child[0], int(args.rss_child[1]))))
        return 0
    if args.rss:
        rows = resident(args, task)
        return finish(args, rows, list(rows[0]), setting=task.setting)
    keep_freed_memory()  # else half of the time goes to the system for new pages
    return finish(args, measure(args, task), COLUMNS, setting=task.setting)


def finish(args: argparse.Namespace, rows: list[dict], columns: Sequence[str], **extra) -> int:
    print_table(columns, [
        cells_of(row, ('method', 'budget', 'failed') if 'failed' in row else columns, digits=3)
        for row in rows], title=args.model, num_left=0, min_width=140)
    if args.json:
        write_report(args.json, rows, is_recorded=args.record, seed=SEED, threads=1,
                     quick=args.quick, **extra)
        print(f'rows: {args.json}')
    return 0


if __name__ == '__main__':
    run_cli(main)
