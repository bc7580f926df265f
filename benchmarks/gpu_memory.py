"""Activation memory on a GPU: bytes that the allocator gives out, time, fidelity, beside rivals.

ResNet-50 (224 px, batch 256), a transformer of 12 layers (width 768, length 1024, batch 32,
bfloat16 autocast) and a Very Deep PolyNet (331 px, batch 32), where memory is what limits, and the
transformer at batch 8, which queues its operators as fast as the device runs them: there the
bookkeeping cannot hide. A step is forward and backward, gradients and parameters are there before.
One row is written a method, as it is done, the most telling of each network first:

  peak_mb, peak_ratio   most that torch.cuda.max_memory_allocated says during a step, above what is
                        held between steps; over the free step's.
  first_peak_mb         the same over the steps before a plan has settled.
  step_ms, step_ratio   of steps queued one after the other, until the device is done, median of
                        blocks; over those of the free step.
  host_ms               until a step is queued, on an idle device; where the queue is full, that
                        waits for the device.
  overhead_us_per_op    what that is more than the free step's, an operator.
  link_gb               copied to the host and back in a step.
  host_mb               held for that on the host.
  bit_equal             losses, gradients, weights, buffers after 4 steps of SGD are those of the
                        free run, with deterministic algorithms; None: not asked, or two free runs
                        differ.

'ours, nothing to do' has a budget of twice the peak: what the bookkeeping costs. A row that fails
has the reason instead of figures; one that may not be done by --seconds (ours take up to twice as
long as the longest row of their network before) is left out.

Examples:
  python benchmarks/gpu_memory.py --json docs/results/gpu_memory.json --record
  python benchmarks/gpu_memory.py --quick --device cpu
"""

from __future__ import annotations

import argparse
import gc
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # read once, when CUDA starts

import numpy as np
import torch
from memory_models import Task, polynet, resnet, transformer
from memory_rivals import Checkpointed, Method, Ours
from torch import Tensor, nn

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.common.core.tables import cells_of, print_table
from vision.common.nn.devices import find_device
from vision.memory.nn.manager import TIMED_STEPS
from vision.memory.nn.tracker import LiveMemory
from vision.memory.nn.transfer import CudaTransfer, Transfer

COLUMNS = ('model', 'method', 'budget', 'peak_mb', 'peak_ratio', 'first_peak_mb', 'step_ms',
           'step_ratio', 'host_ms', 'link_gb', 'host_mb', 'bit_equal')
SETTLED = TIMED_STEPS + 4  # steps until a plan was made again with measured times, and used
FIDELITY_STEPS, BLOCK_STEPS = 4, 3
MODELS = ('resnet50', 'transformer', 'transformer-small', 'polynet')
COMPARED = {'resnet50': ('free', 'ours recompute')}  # bit by bit; attention is not deterministic
SEED = 0


def tasks(device: torch.device, *, is_quick: bool) -> list[Task]:
    """In the order of ``MODELS``."""
    shape = dict(width=32, depth=3, heads=2, length=64) if is_quick else \
        dict(width=768, depth=12, heads=12, length=1024)
    made = [resnet(50, base_channels=8, side=64, batch=4) if is_quick else
            resnet(50, side=224, batch=256), transformer(**shape, batch=32),
            transformer(**shape, batch=8),
            polynet('small', side=107, batch=2) if is_quick else polynet(side=331, batch=32)]
    return [replace(task, name=name, setting=f'{task.setting}, batch {task.batch}',
                    loss=task.loss if 'transformer' not in name else autocast(task.loss, device))
            for name, task in zip(MODELS, made, strict=True)]


def autocast(loss: Callable, device: torch.device) -> Callable:
    def lowered(*args) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return loss(*args)
    return lowered


class SavedOnHost(Method):
    """torch.autograd.graph.save_on_cpu, through pinned memory."""

    def __init__(self, device: torch.device) -> None:
        super().__init__('save_on_cpu')
        self.is_pinned = device.type == 'cuda'

    def around(self, task: Task, model: nn.Module) -> AbstractContextManager:
        self.swapped_bytes = 0
        inner = torch.autograd.graph.save_on_cpu(pin_memory=self.is_pinned)
        pack = inner.pack_hook

        def counted(tensor: Tensor) -> Any:
            self.swapped_bytes += tensor.nbytes
            self.host_peak_bytes = self.swapped_bytes
            return pack(tensor)
        inner.pack_hook = counted
        return inner


class Bench:
    """One network on the device, on which the methods take turns."""

    def __init__(self, task: Task, device: torch.device, rounds: int) -> None:
        torch.manual_seed(SEED)
        self.task, self.device, self.rounds = task, device, rounds
        self.model = task.build().to(device)
        self.batches = [tuple(part.to(device) for part in batch)
                        for batch in task.batches(task.batch)]
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.start = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.free = Method('free')
        self.free_row: dict[str, Any] = {}
        self.longest_seconds = 0.0  # of a row so far
        self.expected: dict[str, Tensor] | None = None

    def step(self, method: Method, index: int = 0) -> Tensor:
        return method.step(self.task, self.model, self.batches[index % len(self.batches)])

    def row(self, method: Method) -> dict[str, Any]:
        """All figures of one method, warmed up here."""
        began = time.perf_counter()
        is_ours = isinstance(method, Ours)
        first = max(self.peak(method) for _ in range(SETTLED if is_ours else 2))
        peak = self.peak(method)
        row = dict(peak_mb=peak / 1e6, first_peak_mb=first / 1e6,
                   host_ms=self.host_ms(method), link_gb=2 * method.swapped_bytes / 1e9,
                   host_mb=method.host_peak_bytes / 1e6)
        if is_ours:
            report, trace = method.report, method.manager.trace()
            row |= dict(mode=report.mode, drops=report.drops, is_over=report.is_over,
                        counted_mb=report.peak_bytes / 1e6,
                        budget_mb=report.budget_bytes / 1e6, replayed=report.replayed_calls,
                        num_ops=None if trace is None else len(trace.seconds))
        row['step_ms'] = self.step_ms(method)
        if method is self.free:
            self.free_row = row
        row |= dict(peak_ratio=self.over_free(row, 'peak_mb'),
                    step_ratio=self.over_free(row, 'step_ms'),
                    bit_equal=self.is_bit_equal(method)
                    if method.name in COMPARED.get(self.task.name, ()) else None)
        if row.get('num_ops'):
            row['overhead_us_per_op'] = 1e3 * (row['host_ms'] - self.free_row['host_ms']) \
                / row['num_ops']
        return row | dict(seconds=time.perf_counter() - began)

    def over_free(self, row: dict[str, Any], figure: str) -> float | None:
        """None where the free step failed: what it has no room for may fit by another method."""
        return row[figure] / self.free_row[figure] if self.free_row else None

    def share_of_free(self, ratio: float) -> int:
        """So much of the free step's peak, in bytes."""
        if not self.free_row:
            raise RuntimeError(f"a budget of {ratio} of the free step's peak: that step failed")
        return int(ratio * 1e6 * self.free_row['peak_mb'])

    def peak(self, method: Method) -> int:
        """Bytes above those between steps."""
        if self.device.type != 'cuda':
            with LiveMemory() as live:
                self.step(method)
            return live.peak_bytes
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.step(method)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def host_ms(self, method: Method) -> float:
        times = []
        for _ in range(self.rounds):
            synchronize(self.device)
            start = time.perf_counter()
            self.step(method)
            times.append(1e3 * (time.perf_counter() - start))
        synchronize(self.device)
        return float(np.median(times))

    def step_ms(self, method: Method) -> float:
        times = []
        for _ in range(self.rounds):
            synchronize(self.device)
            start = time.perf_counter()
            for _ in range(BLOCK_STEPS):
                self.step(method)
            synchronize(self.device)
            times.append(1e3 * (time.perf_counter() - start) / BLOCK_STEPS)
        return float(np.median(times))

    def is_bit_equal(self, method: Method) -> bool | None:
        with deterministic():
            if self.expected is None:
                self.expected = self.trained(self.free)
            actual = self.trained(method)
        is_equal = all(torch.equal(value, actual[name]) for name, value in self.expected.items())
        if method is self.free:
            self.can_compare = is_equal
        return is_equal if self.can_compare else None

    def trained(self, method: Method) -> dict[str, Tensor]:
        """All that some steps end with, and their losses."""
        self.model.load_state_dict(self.start)
        torch.manual_seed(SEED)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        losses = []
        for index in range(FIDELITY_STEPS):
            optimizer.zero_grad(set_to_none=False)
            losses.append(self.step(method, index))
            optimizer.step()
        named = dict(self.model.named_parameters())
        return dict(loss=torch.stack(losses)) | {
            f'{kind} {name}': value.detach().clone() for kind, name, value in (
                *(('weight', name, value) for name, value in named.items()),
                *(('gradient', name, value.grad) for name, value in named.items()),
                *(('buffer', name, value) for name, value in self.model.named_buffers()))}


@contextmanager
def deterministic() -> Iterator[None]:
    """Where torch has no such kernel (max pooling's backward) two free runs tell."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize()


def rivals(name: str, device: torch.device) -> tuple[list[Callable[[Bench], Method]],
                                                     list[Callable[[Bench], Method]]]:
    """Makers of a network's methods in the order in which they run: those that say most, and those
    for which there may be time when all networks have had these."""
    def ours(actions: str, ratio: float) -> Callable[[Bench], Method]:
        return lambda bench: Ours(
            f'ours {actions}', ratio, max(bench.share_of_free(ratio), 1), actions=actions,
            device=device)

    def idle(bench: Bench) -> Method:
        return Ours('ours, nothing to do', 2.0, bench.share_of_free(2.0) + 10**9,
                    actions='recompute', device=device)

    def host(_: Bench) -> Method:
        return SavedOnHost(device)

    first = [lambda bench: bench.free, lambda _: Checkpointed('block checkpoint', 'non-reentrant'),
             ours('recompute', 0.4)]
    if name == 'polynet':
        return first, []
    if name == 'transformer-small':
        return [*first, idle], [host]  # of others, pinning the memory for it takes a minute
    return [*first, ours('both', 0.4), idle], [ours('recompute', 0.6), ours('both', 0.6)]


class Turn:
    """One network's rows, with the reason where there are no figures. Its bench is made with the
    first and lives on, as far as there is a second turn for it."""

    def __init__(self, task: Task, device: torch.device, rounds: int) -> None:
        self.task, self.device, self.rounds = task, device, rounds
        self.bench: Bench | None = None

    def rows(self, makers: list[Callable[[Bench], Method]], until: float) -> Iterator[dict]:
        for make in makers:
            row: dict[str, Any] = dict(model=self.task.name, setting=self.task.setting)
            longest = self.bench.longest_seconds if self.bench else 0.0
            if time.perf_counter() + 2 * longest > until:
                yield row | dict(failed='no time was left for the rows from here on')
                return
            method = None
            try:
                self.bench = self.bench or Bench(self.task, self.device, self.rounds)
                method = make(self.bench)
                row |= dict(method=method.name, budget=method.budget)
                row |= self.bench.row(method)
                if method is not self.bench.free:  # the first starts libraries
                    self.bench.longest_seconds = max(longest, row['seconds'])
            except Exception as error:  # there is no second try: the next row may have figures
                row['failed'] = f'{type(error).__name__}: {str(error)[:300]}'
                row['traceback'] = traceback.format_exc().splitlines()[-12:]
            if method is not None:
                method.close()
            method = None
            gc.collect()
            if self.device.type == 'cuda':
                torch.cuda.empty_cache()
            yield row


def link_row(device: torch.device) -> dict[str, Any]:
    moves = (CudaTransfer if device.type == 'cuda' else Transfer)(device, None, None)
    link = moves.link
    return dict(model='link', method='pinned copies', out_gb_per_s=link.out_bytes_per_s / 1e9,
                in_gb_per_s=link.in_bytes_per_s / 1e9)


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument('--device', default='cuda', help='(default: cuda)')
    parser.add_argument('--quick', action='store_true', help='small networks: does all of it run?')
    parser.add_argument('--models', nargs='+', choices=MODELS, default=MODELS,
                        help='those of the four')
    parser.add_argument('--seconds', type=float, default=115, metavar='S',
                        help='rows that may take longer are left out (default: 115)')
    parser.add_argument('--rounds', type=int, default=2, help='timed blocks of 3 steps (2)')
    add_report_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    device = find_device(args.device)
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        told = {name: round(value, 3) if isinstance(value, float) else value
                for name, value in row.items() if name not in ('traceback', 'setting')}
        print(f'{time.perf_counter() - began:6.1f} s  {told}', flush=True)
        if args.json:
            write_report(args.json, rows, is_recorded=args.record, seed=SEED,
                         quick=args.quick)

    add(link_row(device))
    turns = [Turn(task, device, args.rounds) for task in tasks(device, is_quick=args.quick)
             if task.name in args.models]
    for part in range(2):
        for turn in turns:
            makers = rivals(turn.task.name, device)
            for row in turn.rows(makers[part], began + args.seconds):
                add(row)
            if part or not makers[1]:
                turn.bench = None
    print_table(COLUMNS, [cells_of(row, ('model', 'method', 'budget', 'failed')
                                   if 'failed' in row else COLUMNS, digits=3)
                          for row in rows[1:]], num_left=2, min_width=150)
    return 0


if __name__ == '__main__':
    run_cli(main)
