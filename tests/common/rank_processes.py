"""Starts the processes of a run as torchrun would, and waits for them."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Rank:
    process: subprocess.Popen
    output: Path
    ended_s: float = 0.0  # after the start

    @property
    def text(self) -> str:
        return self.output.read_text(errors='replace')


def start_ranks(arguments: list[str], num_ranks: int, **environment: str) -> list[Rank]:
    """Processes of ``python ARGUMENTS`` with the environment that torchrun gives."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp())
    ranks = []
    for rank in range(num_ranks):
        output = folder / f'{rank}.txt'
        ranks.append(Rank(subprocess.Popen(
            [sys.executable, *arguments], stdout=output.open('w'), stderr=subprocess.STDOUT,
            env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1',
                 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'RANK': str(rank),
                 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(num_ranks), **environment}), output))
    return ranks


def wait_for_ranks(ranks: list[Rank], timeout: float, *, is_expected: bool = True) -> list[int]:
    """Exit codes; those still running after the time-out are killed and have -9."""
    start = time.monotonic()
    while any(rank.process.poll() is None for rank in ranks) and \
            time.monotonic() - start < timeout:
        for rank in ranks:
            if rank.process.poll() is not None and not rank.ended_s:
                rank.ended_s = time.monotonic() - start
        time.sleep(0.05)
    for rank in ranks:
        rank.ended_s = rank.ended_s or time.monotonic() - start
        rank.process.kill()
        rank.process.wait()
    codes = [rank.process.returncode for rank in ranks]
    if is_expected:
        assert not any(codes), '\n'.join(rank.text[-3000:] for rank in ranks)
    return codes
