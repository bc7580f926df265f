"""Kill, stop, hang or confuse one rank of several, many times, and see that all ranks end.

Ranks are forks that talk by gloo on this machine. Counted as lost is a fault after which a rank
still ran when the time-out and ten seconds had passed, or whose message did not name the rank
that was hit. Beside it the same without the watchdog, torch's own time-outs alone: there the
ranks end as well, and the message names nobody.

  python benchmarks/rank_faults.py --json docs/results/rank_faults.json --record
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import os
import random
import re
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.common.nn.watchdog import ends_together

TIMEOUT_S = 3.0  # of a collective
SPARE_S = 10.0  # within which all must have ended after it
NUM_STEPS, FAULT_STEPS = 40, (5, 30)
DEATHS, HANGS = ('kill', 'exit', 'raise'), ('sleep', 'swap', 'stop')


@dataclass
class Ended:
    """How a rank ended: ``code`` as of subprocess, None if it had to be killed."""

    code: int | None
    after_s: float
    text: str


def fork_ranks(work: Callable, num_ranks: int, *args, wait_s: float = 60.0,
               ends_rest: bool = False) -> list[Ended]:
    """Run ``work(*args)`` in so many forks of this process, with torchrun's environment.

    Their output is kept. Call it where no thread of torch has been started.

    Args:
        ends_rest: as torchrun does, send SIGTERM to the others when one has ended badly.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / f'{rank}.txt' for rank in range(num_ranks)]
        start, ended = time.monotonic(), {}
        processes = {_fork(work, args, rank, num_ranks, port, outputs[rank]): rank
                     for rank in range(num_ranks)}
        while len(ended) < num_ranks and time.monotonic() - start < wait_s:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process in processes:
                ended[processes[process]] = (os.waitstatus_to_exitcode(status),
                                             time.monotonic() - start)
                if ends_rest and status:
                    for other in [other for other, rank in processes.items()
                                  if rank not in ended]:
                        os.kill(other, signal.SIGTERM)
            elif all(is_stopped(process) for process, rank in processes.items()
                     if rank not in ended):
                break  # these never end by themselves
            else:
                time.sleep(0.01)
        for process, rank in processes.items():
            if rank not in ended:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                ended[rank] = None, time.monotonic() - start
        return [Ended(*ended[rank], outputs[rank].read_text(errors='replace'))
                for rank in range(num_ranks)]


def is_stopped(process: int) -> bool:
    return Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[0] == 'T'


def _fork(work: Callable, args: tuple, rank: int, world: int, port: int, output: Path) -> int:
    if process := os.fork():
        return process
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                          MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
        torch.set_num_threads(1)
        work(*args)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # torch's gloo now and then aborts while Python shuts down


def work_until(fault: str, rank: int, step: int, is_watched: bool,
               timeout_s: float = TIMEOUT_S) -> None:
    """Collectives, until one rank meets its fault at a step."""
    with ends_together(timeout_s) if is_watched else nullcontext():
        dist.init_process_group('gloo', timeout=datetime.timedelta(seconds=timeout_s))
        numbers = torch.ones(100)
        for number in range(NUM_STEPS):
            if number == step and dist.get_rank() == rank:
                meet(fault, numbers)
            dist.all_reduce(numbers)
            time.sleep(0.002)
        dist.barrier()


def meet(fault: str, numbers: torch.Tensor) -> None:
    if fault == 'kill':
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == 'stop':
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == 'exit':
        os._exit(3)
    elif fault == 'raise':
        raise ValueError('a sample that cannot be read')
    elif fault == 'sleep':
        time.sleep(1000)
    elif fault == 'lock':
        ctypes.PyDLL(None).sleep(1000)  # keeps Python's lock, as a dead lock of C++ code may
    elif fault == 'swap':
        dist.broadcast(numbers, dist.get_rank())


def is_named(fault: str, rank: int, ended: list[Ended]) -> bool:
    """Does a message say which rank it was, or for swapped collectives, which ones met?"""
    text = '\n'.join(end.text for end in ended)
    if fault == 'raise':
        return 'a sample that cannot be read' in ended[rank].text and \
            f'rank {rank}' in ''.join(end.text for end in ended if end is not ended[rank])
    if fault == 'sleep':
        return bool(re.search(rf'a rank hangs: rank {rank} is in meet', text))
    if fault == 'swap':
        return bool(re.search(rf'a rank hangs: .*broadcast of \(100,\) on rank {rank}', text))
    return bool(re.search(rf'rank {rank} of {len(ended)} (is gone|does not answer)', text))


def rank_faults(scale: float, generator: random.Random) -> Iterable[dict]:
    """Rows of ranks that die and of ranks that hang, with the watchdog and without."""
    for subject, num_deaths, num_hangs in (('watchdog', 50, 20), ('torch alone', 5, 5)):
        for kinds, number in ((DEATHS, num_deaths), (HANGS, num_hangs)):
            counts = dict(subject=subject, kind='hang' if kinds is HANGS else 'death', tried=0,
                          lost=0, not_ended=0, not_named=0, slowest_s=0.0)
            for trial in range(max(1, round(number * scale))):
                fault, world = kinds[trial % len(kinds)], generator.choice((2, 3, 4))
                rank, step = generator.randrange(world), generator.randint(*FAULT_STEPS)
                ended = fork_ranks(work_until, world, fault, rank, step, subject == 'watchdog',
                                   wait_s=TIMEOUT_S + SPARE_S)
                # A process that was stopped cannot end itself; torchrun kills it.
                has_ended = all(end.code is not None for other, end in enumerate(ended)
                                if (fault, other) != ('stop', rank))
                has_named = is_named(fault, rank, ended)
                counts['tried'] += 1
                counts['not_ended'] += not has_ended
                counts['not_named'] += not has_named
                counts['lost'] += not (has_ended and has_named)
                counts['slowest_s'] = round(max(counts['slowest_s'], *(
                    end.after_s for other, end in enumerate(ended)
                    if (fault, other) != ('stop', rank))), 1)
                if subject == 'watchdog' and not (has_ended and has_named):
                    print(f'{fault} of rank {rank} of {world} at step {step}:', *(
                        f'[{other}] {end.code} {end.text}' for other, end in enumerate(ended)),
                        sep='\n', file=sys.stderr)
            yield counts


def add_options(parser: argparse.ArgumentParser) -> None:
    """How often and where faults are made, and where the rows go."""
    parser.add_argument('--scale', type=float, default=1, help='times the number of tries '
                        '(default: 1)')
    parser.add_argument('--seed', type=int, default=0, help='of what is hit and when '
                        '(default: 0)')
    add_report_options(parser)


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    add_options(parser)
    args = parser.parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    rows = []
    for row in rank_faults(args.scale, random.Random(args.seed)):
        rows.append(row)
        print(' '.join(f'{key}={value}' for key, value in row.items()), flush=True)
    if args.json:
        write_report(args.json, rows, is_recorded=args.record, seed=args.seed,
                     scale=args.scale, timeout_s=TIMEOUT_S)
    if num_lost := sum(row['lost'] for row in rows if row['subject'] == 'watchdog'):
        raise VisionError('VIS-DIST-345', f'{num_lost} faults of a rank did not end all ranks in '
                          'time, or named nobody', why='a fault here, or a machine too busy for '
                          'the time-outs', do='look at the messages above')
    return 0


if __name__ == '__main__':
    run_cli(main)
