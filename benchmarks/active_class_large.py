"""Memory and time of a head with more class rows than fit twice: build, steps, checkpoint, resume.

The real parts run, on rows of the same structure as in active_class.py: rows in host memory
(`store=dict(backend='host')`), an ivf index of one byte per number, ArcFace over the active rows,
the optimizer's step, one renewal of the index, a checkpoint in one file with rows and index, and,
in a new process, both resumed from the memory-mapped file and trained on. Both processes end with
the same few steps, and the rows that these have chosen and stepped must agree bit for bit.

  peak_bytes         highest resident memory of a phase, of what the kernel counted
  resident_bytes     after it; file_bytes of these are pages of a mapped file, which the kernel
                     takes back when another needs memory
  all_stepped_bytes  rows and state when every row has been stepped at least once: state takes a
                     page only when a row on it is stepped

  python benchmarks/active_class_large.py --json docs/results/active_class_large.json --record

--classes 20000 --lists 64 shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.common.nn.checkpoint import load_checkpoint, save_checkpoint
from vision.faces.nn.head.margins import ArcFace
from vision.faces.nn.head.selective import selective_loss
from vision.faces.nn.select.build import build_selector
from vision.faces.nn.store.class_store import build_store

OPTIMIZERS = dict(row_adagrad=dict(type='row_adagrad'), sgd=dict(type='sgd', momentum=0.9))
LR = 0.1
LAST_STEPS = 5  # made by both processes from the checkpoint on
CHUNK_ROWS = 100_000  # of clusters of 40 in groups of 25, as in active_class.py
STRIDE = 7_368_787  # a prime: neighbours of a cluster lie far apart, as identities do


class Phases:
    """Time and memory of one phase after the other, in this process."""

    def __init__(self, console: Console) -> None:
        self.console, self.found = console, {}

    def measure(self, name: str, work, *args):
        Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
        start = time.perf_counter()
        result = work(*args)
        seconds = round(time.perf_counter() - start, 2)
        memory = {key: 1024 * int(line.split()[1]) for line in Path('/proc/self/status')
                  .read_text().splitlines() for key in [line.split(':')[0]]
                  if key in ('VmHWM', 'VmRSS', 'RssFile')}
        self.found[name] = dict(seconds=seconds, peak_bytes=memory['VmHWM'],
                                resident_bytes=memory['VmRSS'], file_bytes=memory['RssFile'])
        self.console.print(f'{name}: {json.dumps(self.found[name])}', soft_wrap=True)
        return result


class Run:
    """The head's parts and one step of them."""

    def __init__(self, args: argparse.Namespace, saved: list[dict] | None = None) -> None:
        self.args, self.margin, self.rows_crc = args, ArcFace(64.0, 0.5), 0
        self.store = build_store(args.classes, args.dim, backend='host', seed=args.seed,
                                 optimizer=OPTIMIZERS[args.optimizer], is_filled=saved is None)
        if saved is not None:
            self.store.load_ranges(saved, takes_tensors=True)

    def make_selector(self) -> None:
        args = self.args
        self.selector = build_selector(
            'ivf', self.store, num_active=args.active, seed=args.seed, code='sq8',
            num_lists=args.lists, nprobe=args.nprobe, num_threads=args.threads,
            upkeep=dict(interval=1 << 40))

    def build_index(self) -> None:
        self.make_selector()
        self.selector.upkeep.index(0)

    def resume_index(self, state: dict) -> None:
        self.make_selector()
        self.selector.load_state_dict(state)

    def save(self, path: Path) -> None:
        save_checkpoint(dict(state_dict={}, active_class=dict(
            stores=[self.store.state_dict()], selectors=[self.selector.state_dict()])), path)

    def renew(self) -> None:
        keeper = self.selector.upkeep
        index = keeper.index(0).renewal(self.store.snapshot(torch.float16))()
        keeper.adopt(index, 0)

    def train(self, first: int, num: int) -> list[float]:
        """Milliseconds of each step; ``rows_crc`` is then of the ids and rows of them all."""
        times, self.rows_crc = [], 0
        for step in range(first, first + num):
            generator = torch.Generator().manual_seed(step)
            labels = torch.randint(self.args.classes, (self.args.batch,), generator=generator)
            noise = torch.randn(len(labels), self.args.dim, generator=generator)
            own, place = labels.unique(return_inverse=True)
            live = functional.normalize(self.store.pull(own).detach())[place]
            features = functional.normalize(live + noise / self.args.dim**0.5).requires_grad_()
            start = time.perf_counter()
            self.store.prefetch(own)
            rows = self.selector.select(features.detach(), labels, step).rows
            weights = self.store.pull(rows)
            selective_loss(features, weights, torch.searchsorted(rows, labels),
                           self.margin).loss.backward()
            self.store.push(rows, weights.grad, lr=LR)
            times.append(1000 * (time.perf_counter() - start))
            for found in (rows, self.store.peek(rows)):
                self.rows_crc = zlib.crc32(found.numpy().tobytes(), self.rows_crc)
        return times

    def last_steps(self) -> None:
        self.train(1000, LAST_STEPS)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.optimizer:
        console = Console(stderr=True)
        print(json.dumps(resume(args, console) if args.resume else measure(args, console)))
        return 0
    refuse_no_evidence(args.json, is_recorded=args.record)
    rows = []
    settings = {key: value for key, value in vars(args).items()
                if key not in ('json', 'record', 'seed', 'folder', 'resume', 'optimizer',
                               'optimizers')}
    for name in args.optimizers:  # each takes its time: what is there is not lost
        args.optimizer = name
        rows.append(in_new_process(args))
        write_report(args.json, rows, is_recorded=args.record, seed=args.seed, settings=settings)
    Console().print(f'rows: {args.json}', soft_wrap=True)
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('--classes', type=int, default=10_000_000, help='class rows (default: 10,000,000)')
    add('--dim', type=int, default=128, help='of rows and embeddings (default: 128)')
    add('--batch', type=int, default=256, help='features of a step (default: 256)')
    add('--active', type=int, default=8192, help='active rows of a step (default: 8192)')
    add('--lists', type=int, default=2048, help='of the index (default: 2048)')
    add('--nprobe', type=int, default=2, help='lists searched per feature (default: 2)')
    add('--steps', type=int, default=100, help='default: 100')
    add('--optimizers', nargs='+', choices=tuple(OPTIMIZERS), default=list(OPTIMIZERS),
        help='of the rows, a measurement for each (default: row_adagrad, sgd with momentum)')
    add('--threads', type=int, default=1, help='of torch and FAISS (default: 1)')
    add('--seed', type=int, default=0, help='of rows and features (default: 0)')
    add('--folder', type=Path, help='for the checkpoint (default: a temporary one)')
    add_report_options(parser, is_required=True)
    add('--optimizer', help=argparse.SUPPRESS)  # what new processes are called with
    add('--resume', type=Path, help=argparse.SUPPRESS)
    return parser


def measure(args: argparse.Namespace, console: Console) -> dict:
    """In a process of its own, whose memory holds nothing of the measurement before."""
    phases = Phases(console)
    run = phases.measure('new_rows', Run, args)
    phases.measure('structure', fill, run.store.state_dict()['rows'], args.seed)
    phases.measure('build_index', run.build_index)
    times = phases.measure('steps', run.train, 0, args.steps)
    touched = int((run.store.state_dict()['last'] > 0).sum())
    phases.measure('renew_index', run.renew)
    times_after = phases.measure('steps_after_renewal', run.train, args.steps, 5)
    state = run.store.state_dict()
    num_bytes = sum(t.nbytes for t in (state['rows'], state['last'], *state['state'].values()))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / 'rows.pth'
        phases.measure('save', run.save, path)
        size = path.stat().st_size
        phases.measure('last_steps', run.last_steps)
        index_bytes, crc = run.selector.upkeep.index(0).num_bytes, run.rows_crc
        del run, state  # the second process has the machine's memory
        resumed = in_new_process(args, '--resume', str(path))
    assert resumed.pop('rows_crc') == crc, 'a resumed run has other rows than the one that went on'
    return dict(optimizer=args.optimizer, classes=args.classes, dim=args.dim, batch=args.batch,
                active=args.active, step_ms=round(float(np.median(times)), 1),
                step_p90_ms=round(float(np.percentile(times, 90)), 1),
                step_after_renewal_ms=round(float(np.median(times_after)), 1),
                rows_stepped=touched, all_stepped_bytes=num_bytes, index_bytes=index_bytes,
                checkpoint_bytes=size,
                peak_bytes=max(phase['peak_bytes'] for phase in phases.found.values()),
                phases=phases.found, resumed=resumed, is_equal_after_resume=True)


def fill(rows: Tensor, seed: int) -> None:
    """Unit rows in clusters of 40, those in groups of 25 clusters, far from their neighbours."""
    num, dim = rows.shape
    assert math.gcd(num, STRIDE) == 1
    for start in range(0, num, CHUNK_ROWS):
        generator = torch.Generator().manual_seed(seed + start)

        def spread(count: int, generator=generator) -> Tensor:
            return torch.randn(count, dim, generator=generator) / dim**0.5
        count = min(CHUNK_ROWS, num - start)
        groups = functional.normalize(spread(math.ceil(count / 1000)))
        centres = functional.normalize(groups.repeat_interleave(25, 0) + spread(25 * len(groups)))
        made = functional.normalize(centres.repeat_interleave(40, 0)[:count] + 0.8 * spread(count))
        rows[(torch.arange(start, start + count) * STRIDE) % num] = made


def in_new_process(args: argparse.Namespace, *more: str) -> dict:
    command = [sys.executable, __file__, *more]
    for name in ('classes', 'dim', 'batch', 'active', 'lists', 'nprobe', 'steps', 'threads',
                 'seed', 'folder', 'json', 'optimizer'):
        if getattr(args, name) is not None:
            command += [f'--{name}', str(getattr(args, name))]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def resume(args: argparse.Namespace, console: Console) -> dict:
    """In the second process: store and index of the checkpoint, and the last steps on them."""
    phases = Phases(console)
    content = phases.measure('load', load_checkpoint, args.resume)
    state = content.pop('active_class')
    run = phases.measure('take_rows', Run, args, state['stores'])
    phases.measure('fill_index', run.resume_index, state['selectors'][0])
    phases.measure('last_steps', run.last_steps)
    return dict(phases=phases.found, rows_crc=run.rows_crc)


if __name__ == '__main__':
    run_cli(main)
