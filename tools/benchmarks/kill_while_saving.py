"""Kill a process again and again while it writes checkpoints, and load what it leaves.

Row R1 of the promise: after any kill there is a whole checkpoint, and it is the newest one that
was finished. Each round a child goes on from the newest valid checkpoint and saves one after the
other; after a random time it gets SIGKILL. The parent then finds the newest valid file as
``--resume`` does, reads it, and compares every value. Linux; the child is a fork.

  python tools/benchmarks/kill_while_saving.py --kills 200 --megabytes 50 --json OUT.json
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import torch

from vision.common.core.errors import VisionError, run_cli
from vision.common.core.files import remove_unfinished
from vision.common.core.report import write_report
from vision.common.mm.checkpoints import newest_valid
from vision.common.nn.checkpoint import load_checkpoint, remove_checkpoint, save_checkpoint

NUM_KEPT = 2
MAX_WAIT = 1.6  # times the duration of one save: some kills fall into the second one


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=200)
    parser.add_argument('--megabytes', type=float, default=50, help='size of a checkpoint')
    parser.add_argument('--seed', type=int, default=0, help='of the waiting times')
    parser.add_argument('--json', type=Path, help='write the counts here')
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        counts = kill_often(Path(folder), args.kills, int(args.megabytes * 250_000),
                            random.Random(args.seed))
    print(' '.join(f'{name}={value}' for name, value in counts.items()))
    if args.json:
        write_report(args.json, [dict(counts, megabytes=args.megabytes)], seed=args.seed)
    if counts['unreadable'] or counts['lost']:
        raise VisionError('VIS-CKPT-322', f'{counts["unreadable"]} of {args.kills} kills left no '
                          f'readable folder, {counts["lost"]} lost a finished checkpoint',
                          why='this file system does not keep the order of writing and renaming',
                          do='put the work_dir on a local disk')
    return 0


def kill_often(folder: Path, num_kills: int, num_values: int,
               generator: random.Random) -> dict[str, int]:
    """``torn``: kills that met a file half written, which is what the rest is worth."""
    start = time.perf_counter()
    save(folder, 1, num_values)
    duration = time.perf_counter() - start
    counts = dict(kills=0, torn=0, unreadable=0, lost=0)
    for _ in range(num_kills):
        finished = one_kill(folder, num_values, generator.uniform(0, MAX_WAIT * duration))
        counts['kills'] += 1
        counts['torn'] += bool(remove_unfinished(folder))
        found = read(folder, num_values)
        counts['unreadable'] += found is None
        counts['lost'] += found is not None and found < finished
    counts['saved'] = read(folder, num_values) or 0
    return counts


def one_kill(folder: Path, num_values: int, wait_seconds: float) -> int:
    """The number of the last checkpoint that the child said was finished, before it died."""
    reader, writer = os.pipe()
    number = read(folder, num_values) or 0
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


def save(folder: Path, number: int, num_values: int) -> None:
    """As the checkpoint hook: the new one first, then away with the oldest."""
    content = dict(state_dict=dict(weight=torch.full((num_values,), float(number))))
    save_checkpoint(content, folder / f'iter_{number}.pth', iter=number)
    remove_checkpoint(folder / f'iter_{number - NUM_KEPT}.pth')


def read(folder: Path, num_values: int) -> int | None:
    """The number of the newest valid checkpoint; None when there is none or its values differ."""
    path = newest_valid(folder, lambda text: None)
    if path is None:
        return None
    weight = load_checkpoint(path)['state_dict']['weight']
    number = int(path.stem.removeprefix('iter_'))
    return number if weight.eq(number).all() and len(weight) == num_values else None


if __name__ == '__main__':
    run_cli(main)
