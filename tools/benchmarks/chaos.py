"""Break what runs and files rest on, many times over, and count what is lost or goes unnoticed.

Each scenario does the same to MMEngine's own runner where it has that part, for comparison. A
process is hit by SIGKILL while it writes a checkpoint under a name that exists already; runs get
SIGKILL, SIGTERM or Ctrl-C at random moments and are resumed; files of each kind that we write are
cut, and single bits flipped; the disk is full in the middle of a file. Linux; children are forks.

  python tools/benchmarks/chaos.py --json docs/results/chaos.json       # all of it
  python tools/benchmarks/chaos.py --only kills flips --scale 0.05      # a twentieth of two
"""

from __future__ import annotations

import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner, find_latest_checkpoint
from mmengine.runner import save_checkpoint as stock_save
from mmengine.runner.checkpoint import _load_checkpoint as stock_load
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import remove_unfinished
from vision.common.core.report import read_report, write_report
from vision.common.mm.checkpoints import newest_valid
from vision.common.mm.runner import ExactRunner
from vision.common.nn.checkpoint import (
    load_checkpoint,
    manifest_path,
    save_checkpoint,
    save_weights,
)
from vision.common.nn.checkpoint_folder import save_folder
from vision.registry import DATASETS, HOOKS, MODELS

ROOT = Path(__file__).parents[2]
MAX_WAIT = 1.6  # times the duration of one save: some kills fall into the second one
NUM_STEPS, INTERVAL = 40, 15  # of a run that is interrupted
NUM_HITS = {signal.SIGKILL: 50, signal.SIGTERM: 25, signal.SIGINT: 25}


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('--only', nargs='+', choices=SCENARIOS, default=list(SCENARIOS),
                        metavar='NAME', help=f'scenarios: {", ".join(SCENARIOS)}')
    parser.add_argument('--scale', type=float, default=1, help='times the number of tries '
                        '(default: 1)')
    parser.add_argument('--seed', type=int, default=0, help='of what is hit and when '
                        '(default: 0)')
    parser.add_argument('--json', type=Path, help='write the rows here')
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # a fork does not inherit threads
    rows = []
    for name in args.only:
        for row in SCENARIOS[name](args.scale, random.Random(args.seed)):
            rows.append(dict(scenario=name, **row))
            print(' '.join(f'{key}={value}' for key, value in rows[-1].items()), flush=True)
        if args.json:  # what is finished is there, whatever becomes of the rest
            write_report(args.json, rows, seed=args.seed, scale=args.scale)
    failed = [row for row in rows if row['subject'] != 'MMEngine' and row['lost']]
    if failed:
        raise VisionError('VIS-CKPT-322', f'{len(failed)} of {len(rows)} rows lost something: '
                          + ', '.join(f'{row["scenario"]} of {row["subject"]}' for row in failed),
                          why='a fault here, or a file system that does not keep the order of '
                          'writing and renaming', do='put the work_dir on a local disk')
    return 0


# --- a process is killed while it writes a checkpoint under a name that exists


def kills(scale: float, generator: random.Random) -> Iterable[dict]:
    for subject, protocol in (('checkpoint', OURS), ('MMEngine', STOCK)):
        with tempfile.TemporaryDirectory() as folder:
            yield dict(subject=subject, **kill_often(Path(folder), max(1, round(200 * scale)),
                                                     *protocol, generator))


def kill_often(folder: Path, num_kills: int, save: Callable, read: Callable,
               generator: random.Random, num_values: int = 5_000_000) -> dict[str, int]:
    """``torn``: kills that met a file half written, which is what the rest is worth. ``lost``:
    kills after which the last finished checkpoint was neither there nor replaced by a newer one.
    """
    save(folder, 1, num_values)
    start = time.perf_counter()
    save(folder, 2, num_values)
    duration = time.perf_counter() - start
    counts = dict(megabytes=num_values * 4 // 10**6, tried=0, torn=0, lost=0, unreadable=0)
    number = 2
    for _ in range(num_kills):
        finished = one_kill(folder, number, save, num_values,
                            generator.uniform(0, MAX_WAIT * duration))
        counts['tried'] += 1
        found = read(folder, num_values)
        counts['torn'] += bool(remove_unfinished(folder)) or found is None
        counts['unreadable'] += found is None
        counts['lost'] += found is None or found < finished
        number = found or finished
        if found is None:
            save(folder, number, num_values)
    return counts


def one_kill(folder: Path, number: int, save: Callable, num_values: int,
             wait_seconds: float) -> int:
    """The number of the last checkpoint that the child said was finished, before it died."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        while True:
            os.write(writer, b'.')  # the first one: the child is there
            number += 1
            save(folder, number, num_values)
    os.close(writer)
    os.read(reader, 1)
    time.sleep(wait_seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reader, 'rb') as pipe:
        return number + len(pipe.read())


def content_of(number: int, num_values: int) -> dict:
    return dict(state_dict=dict(weight=torch.full((num_values,), float(number))), optimizer={},
                meta=dict(iter=number))


def number_in(content: dict, num_values: int) -> int | None:
    weight, number = content['state_dict']['weight'], content['meta']['iter']
    return number if len(weight) == num_values and weight.eq(number).all() else None


def save_ours(folder: Path, number: int, num_values: int) -> None:
    save_checkpoint(content_of(number, num_values), folder / 'iter_1.pth', iter=number)


def read_ours(folder: Path, num_values: int) -> int | None:
    try:
        path = newest_valid(folder, lambda text: None)
        return path and number_in(load_checkpoint(path), num_values)
    except VisionError:
        return None


def save_stock(folder: Path, number: int, num_values: int) -> None:
    """As its runner and its checkpoint hook do."""
    stock_save(content_of(number, num_values), str(folder / 'iter_1.pth'))
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_1.pth'))


def read_stock(folder: Path, num_values: int) -> int | None:
    try:
        return number_in(load_stock(find_latest_checkpoint(str(folder))), num_values)
    except Exception:  # whatever it says about a damaged file
        return None


def load_stock(path: Path | str) -> dict:
    with redirect_stdout(None):  # it prints each path
        return stock_load(str(path), 'cpu')


OURS, STOCK = (save_ours, read_ours), (save_stock, read_stock)


# --- the disk is full in the middle of a file


def full_disk(scale: float, generator: random.Random) -> Iterable[dict]:
    """A limit on the size of files stands for the disk: writes fail from some byte on."""
    for subject, (save, read) in (('checkpoint', OURS), ('MMEngine', STOCK)):
        counts = dict(tried=0, lost=0)
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(max(2, round(20 * scale))):
                save(Path(folder), 1, 100_000)
                child = os.fork()
                if not child:
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    limit = generator.randrange(4096, 390_000)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                    try:
                        save(Path(folder), 2, 100_000)
                    except (OSError, RuntimeError, VisionError):
                        os._exit(0)
                    os._exit(1)  # it fitted after all
                generator.random()  # the child drew from a copy
                assert os.waitpid(child, 0)[1] == 0
                counts['tried'] += 1
                counts['lost'] += read(Path(folder), 100_000) != 1
        yield dict(subject=subject, **counts)


# --- files that are cut, and files with one bit flipped


def cuts(scale: float, generator: random.Random) -> Iterable[dict]:
    """At each 1/64, and at each record of a zip archive."""
    def damaged(whole: bytes) -> Iterable[bytes]:
        edges = {found.start() for found in re.finditer(rb'PK[\1\3\5\6][\2\4\5\6\7]', whole)}
        for end in sorted({len(whole) * i // 64 for i in range(64)} | edges - {len(whole)}):
            yield whole[:end]

    yield from look_at_damage(damaged)


def flips(scale: float, generator: random.Random) -> Iterable[dict]:
    def damaged(whole: bytes) -> Iterable[bytes]:
        for _ in range(max(20, round(1000 * scale))):
            place, bit = generator.randrange(len(whole)), generator.randrange(8)
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            yield bytes(changed)

    yield from look_at_damage(damaged)


def look_at_damage(damaged: Callable[[bytes], Iterable[bytes]]) -> Iterable[dict]:
    """``lost``: damaged files that were read as if whole, or met anything but our error."""
    for subject, (write, read) in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in write(Path(folder))]
            read(files[0])
            counts = dict(tried=0, lost=0)
            for file in filter(Path.is_file, files):
                whole = file.read_bytes()
                cases = list(damaged(whole))
                for case, result in zip(cases, results(file, cases, partial(read, files[0])),
                                        strict=True):
                    counts['tried'] += 1
                    # MMEngine refuses with any error; we refuse with ours.
                    is_found = result == 'VisionError' or (subject == 'MMEngine' and result)
                    counts['lost'] += case != whole and not is_found
                file.write_bytes(whole)
        yield dict(subject=subject, **counts)


def results(file: Path, cases: list[bytes], read: Callable[[], Any]) -> list[str]:
    """What reading ``file`` with each content raises, '' if nothing. In a child: a damaged file
    may end the process that reads it."""
    answers: list[str] = []
    while len(answers) < len(cases):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            with os.fdopen(writer, 'wb') as pipe, open(os.devnull, 'w') as nowhere:
                os.dup2(nowhere.fileno(), 2)
                for case in cases[len(answers):]:
                    file.write_bytes(case)
                    pickle.dump(raised_by(read), pipe)
                    pipe.flush()
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, 'rb') as pipe:
            while True:
                try:
                    answers.append(pickle.load(pipe))
                except EOFError:
                    break
        if os.waitpid(child, 0)[1]:
            answers.append('the process ended')
    return answers


def raised_by(function: Callable[[], Any]) -> str:
    try:
        function()
    except Exception as error:
        return type(error).__name__
    return ''


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f'layer{i}.weight': torch.randn(40, 40, generator=generator) for i in range(4)}


def write_checkpoint(folder: Path) -> list[str]:
    save_checkpoint(dict(state_dict=tensors(), meta=dict(iter=3)), folder / 'x.pth', iter=3)
    return ['x.pth', manifest_path(Path('x.pth')).name]


def write_folder(folder: Path) -> list[str]:
    """As several ranks do, here one: whole tensors, a shard, and a part of the rank itself."""
    child = os.fork()
    if not child:
        dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=0, world_size=1)
        mesh = init_device_mesh('cpu', (1,))
        shards = {name: distribute_tensor(value, mesh, [Shard(0)])
                  for name, value in tensors().items()}
        save_folder(dict(state_dict=shards, meta=dict(iter=3)), folder / 'x.pth',
                    parts=dict(rows=dict(rows=[torch.ones(9)])), iter=3)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    return ['x.pth', *(f'x.pth/{path.name}' for path in sorted((folder / 'x.pth').iterdir()))]


def write_stock(folder: Path) -> list[str]:
    stock_save(dict(state_dict=tensors(), meta=dict(iter=3)), str(folder / 'x.pth'))
    return ['x.pth']


def write_safetensors(folder: Path) -> list[str]:
    save_weights(tensors(), folder / 'x.safetensors', classes=('disc', 'star'))
    return ['x.safetensors']


def write_gallery(folder: Path) -> list[str]:
    from vision.faces.core.gallery import Gallery
    rows = np.random.default_rng(0).normal(size=(30, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = np.array([f'person {i % 7}' for i in range(30)])
    Gallery(rows, names, names, 'a' * 64).save(folder / 'x.npz')
    return ['x.npz']


def read_gallery(path: Path) -> None:
    from vision.faces.core.gallery import load_gallery
    load_gallery(path)


def write_result(folder: Path) -> list[str]:
    write_report(folder / 'x.json', [dict(method='a', map50=i / 7) for i in range(30)], seed=0)
    return ['x.json']


KINDS: dict[str, tuple[Callable, Callable]] = {
    'checkpoint': (write_checkpoint, load_checkpoint),
    'checkpoint of ranks': (write_folder, load_checkpoint),
    'safetensors': (write_safetensors, load_checkpoint),
    'gallery': (write_gallery, read_gallery),
    'JSON report': (write_result, lambda path: read_report(path, code='VIS-CKPT-303', maker='-')),
    'MMEngine': (write_stock, load_stock),
}


# --- runs that are interrupted at any moment, and resumed


@DATASETS.register_module()
class ChaosPoints(BaseDataset):
    """Numbers with noise that is drawn for each sample when it is loaded."""

    METAINFO = dict(classes=('a',))

    def load_data_list(self) -> list[dict]:
        return [dict(number=i) for i in range(50)]

    def prepare_data(self, idx: int) -> dict:
        x = torch.full((8,), idx / 50) + torch.randn(8) + random.gauss(0, 1) + np.random.normal()
        return dict(inputs=x, data_samples=float(idx % 3))


@MODELS.register_module()
class ChaosModel(BaseModel):
    """A small network with BatchNorm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3),
                                 nn.Linear(32, 1))

    def forward(self, inputs, data_samples=None, mode: str = 'loss') -> dict:
        x, target = torch.stack(list(inputs)), torch.tensor(data_samples)
        return dict(loss=(self.net(x)[:, 0] - target.to(x)).square().mean())


@HOOKS.register_module()
class TellSteps(Hook):
    """Says that a step was made, and makes it long enough to be hit."""

    priority = 'VERY_LOW'

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.pipe:
            os.write(self.pipe, b'.')
        time.sleep(0.002)


def runs(scale: float, generator: random.Random) -> Iterable[dict]:
    """50 random moments for SIGKILL, 50 for SIGTERM and Ctrl-C; a fifth for MMEngine's runner.

    ``lost``: resumed runs that ended with other weights; for SIGTERM and Ctrl-C also those that
    did not end in 30 s, or whose finished steps were not saved.
    """
    import matplotlib.backends.backend_agg  # noqa: F401  children need not import it again
    import mmengine.runner.runner
    torch.optim.Adam([nn.Parameter(torch.zeros(1))])  # imports a second's worth too
    mmengine.runner.runner.collect_env = dict  # two seconds of asking compilers, at every start
    for subject, cls, share in (('run', ExactRunner, 1), ('MMEngine', Runner, 0.2)):
        with tempfile.TemporaryDirectory() as folder:
            straight = Path(folder) / 'straight'
            os.waitpid(in_child(cls, straight), 0)
            for number, num_hits in NUM_HITS.items():
                counts = dict(tried=0, lost=0, other_weights=0, steps_lost=0, late=0)
                for i in range(max(1, round(num_hits * share * scale))):
                    hit(cls, Path(folder) / f'{number}-{i}', straight, number,
                        generator.randrange(1, NUM_STEPS), generator.uniform(0, 0.01), counts)
                yield dict(subject=subject, signal=number.name, **counts)


def hit(cls: type, work_dir: Path, straight: Path, number: int, step: int, wait_seconds: float,
        counts: dict[str, int]) -> None:
    """A signal so long after this step: while the next one runs, or a checkpoint is written."""
    reader, writer = os.pipe()
    child = in_child(cls, work_dir, pipe=writer)
    os.close(writer)
    num_made = sum(len(os.read(reader, 1)) for _ in range(step))
    assert num_made == step, 'the run ended by itself'
    time.sleep(wait_seconds)
    os.kill(child, number)
    start = time.perf_counter()
    os.waitpid(child, 0)
    is_late = time.perf_counter() - start > 30
    with os.fdopen(reader, 'rb') as pipe:
        num_made += len(pipe.read())
    num_saved = max((int(found[1]) for path in work_dir.glob('*.pth')
                     if (found := re.search(r'iter_(\d+)', path.name))), default=0)
    os.waitpid(in_child(cls, work_dir, resume=True), 0)
    try:
        is_other = weights(work_dir) != weights(straight)
    except (OSError, ValueError, RuntimeError):
        is_other = True
    is_unsaved = number != signal.SIGKILL and num_saved < num_made
    counts['tried'] += 1
    counts['other_weights'] += is_other
    counts['steps_lost'] += max(0, num_made - num_saved)
    counts['late'] += is_late
    counts['lost'] += is_other or is_late or is_unsaved
    shutil.rmtree(work_dir, ignore_errors=True)


def in_child(cls: type, work_dir: Path, *, resume: bool = False, pipe: int = 0) -> int:
    """Number of a process that trains."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        cls.from_cfg(run_config(work_dir, resume, pipe)).train()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def run_config(work_dir: Path, resume: bool, pipe: int) -> Config:
    return Config(dict(
        # The scope decides whose hooks the names mean; ours comes to the same in each.
        default_scope='mmengine', work_dir=str(work_dir), model=dict(type='vision.ChaosModel'),
        train_dataloader=dict(batch_size=5, num_workers=0,
                              dataset=dict(type='vision.ChaosPoints'),
                              sampler=dict(type='DefaultSampler', shuffle=True)),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=NUM_STEPS, val_interval=1000),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.01)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False,
                                           interval=INTERVAL)),
        custom_hooks=[dict(type='vision.TellSteps', pipe=pipe)], randomness=dict(seed=0),
        resume=resume, log_level='ERROR', experiment_name=work_dir.name))


def weights(work_dir: Path) -> list:
    state = load_checkpoint(work_dir / f'iter_{NUM_STEPS}.pth')['state_dict']
    return [(name, value.tolist()) for name, value in sorted(state.items())]


# --- a live stream that drops


def stream_drops(scale: float, generator: random.Random) -> Iterable[dict]:
    """The stream's own test, again and again: a server that closes and stalls at least seven
    times; each time threads and open files are counted."""
    counts = dict(tried=0, lost=0)
    for _ in range(max(1, round(15 * scale))):
        result = subprocess.run(
            [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider',
             'tests/stream/test_io_live.py', '-k', 'closes_and_stalls'], cwd=ROOT,
            env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True, text=True)
        counts['tried'] += 7 * ('1 passed' in result.stdout)
        counts['lost'] += '1 passed' not in result.stdout
    yield dict(subject='stream', **counts)


# A scenario takes (scale, generator) and gives rows with ``subject``, ``tried`` and ``lost``.
SCENARIOS: dict[str, Callable[[float, random.Random], Iterable[dict]]] = dict(
    cuts=cuts, flips=flips, full_disk=full_disk, kills=kills, stream_drops=stream_drops, runs=runs)


if __name__ == '__main__':
    run_cli(main)
