"""Run a function over many jobs in a few processes, results in order."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator


def ordered_map(function: Callable, jobs: Iterable, num_workers: int, *,
                chunk: int = 1) -> Iterator:
    """``map`` over processes; with one worker in this process.

    Processes are spawned, so ``function`` must be importable: a function of a module, or of the
    script that is being run.
    """
    if num_workers <= 1:
        yield from map(function, jobs)
        return
    with multiprocessing.get_context('spawn').Pool(num_workers) as pool:
        yield from pool.imap(function, jobs, chunksize=chunk)
