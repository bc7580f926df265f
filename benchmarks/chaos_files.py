"""What happens to files: a process is killed while it writes one, the disk is full, bits change.

Scenarios of ``chaos.py``, which runs them; each does the same to what MMEngine writes. A process
is hit by SIGKILL while it writes a checkpoint under a name that exists already; the disk is full
in the middle of a file; files of each kind that we write are cut, and single bits flipped.
"""

from __future__ import annotations

import os
import pickle
import random
import re
import resource
import signal
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
from mmengine.runner import find_latest_checkpoint
from mmengine.runner import save_checkpoint as stock_save
from mmengine.runner.checkpoint import _load_checkpoint as stock_load
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from vision.common.core.errors import VisionError
from vision.common.core.files import remove_unfinished
from vision.common.core.report import read_report, write_report
from vision.common.mm.checkpoints import newest_valid
from vision.common.nn.checkpoint import (
    load_checkpoint,
    manifest_path,
    save_checkpoint,
    save_weights,
)
from vision.common.nn.checkpoint_folder import save_folder

MAX_WAIT = 1.6  # times the duration of one save: some kills fall into the second one


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
    from vision.faces.core.gallery.gallery import Gallery
    rows = np.random.default_rng(0).normal(size=(30, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = np.array([f'person {i % 7}' for i in range(30)])
    Gallery(rows, names, names, 'a' * 64).save(folder / 'x.npz')
    return ['x.npz']


def read_gallery(path: Path) -> None:
    from vision.faces.core.gallery.gallery import load_gallery
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
