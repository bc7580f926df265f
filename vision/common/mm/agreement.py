"""Several processes act as one: the first decides for all, and a fault of one is a fault of all.

A rank that raised alone, or went another way, would leave the others in a collective for ever.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from mmengine.dist import (
    all_gather_object,
    broadcast_object_list,
    get_rank,
    get_world_size,
    init_dist,
)

from vision.common.core.errors import VisionError
from vision.common.nn.watchdog import TIMEOUT_S

Answer = TypeVar('Answer')
# NCCL ends a process whose collective takes longer, without a word of which rank is the cause:
# the watchdog, which says it, has to come first.
LATER_S = 60.0


def join_ranks(launcher: str, backend: str = 'nccl', timeout: float = TIMEOUT_S,
               **options: Any) -> None:
    """Make the process group, as MMEngine does; it asks for CUDA in every process, here processes
    also run on CPUs.

    Args:
        timeout: of a collective, in seconds.

    Raises:
        VisionError: VIS-DIST-318, a launcher that only works with GPUs.
    """
    if torch.cuda.is_available():
        init_dist(launcher, backend, timeout=timeout + LATER_S, **options)
        return
    if launcher != 'pytorch':
        raise VisionError('VIS-DIST-318', f'--launcher {launcher} found no GPU',
                          why='only torchrun starts processes on CPUs',
                          do='bash tools/dist_train.sh CONFIG NUM_PROCESSES')
    torch.distributed.init_process_group('gloo', timeout=datetime.timedelta(seconds=timeout))


def decided_by_first(decide: Callable[[], Answer]) -> Answer:
    """What ``decide`` gives on rank 0, on every rank; so is what it raises there.

    The answer is pickled.
    """
    if get_world_size() == 1:
        return decide()
    box: list = [None, None]
    error = None
    if get_rank() == 0:
        try:
            box[0] = decide()
        except Exception as caught:
            error, box[1] = caught, _told(0, caught)
    broadcast_object_list(box)
    if box[1] is not None:
        raise error or box[1]
    return box[0]


@contextmanager
def one_for_all() -> Iterator[None]:
    """What one rank raises inside, every rank raises at the end. All must come here, and nothing
    inside may wait for other ranks.

    Raises:
        VisionError: of the first rank that has one; VIS-DIST-328 where it was another exception.
    """
    error = None
    try:
        yield
    except Exception as caught:
        if get_world_size() == 1:
            raise
        error = caught
    if get_world_size() == 1:
        return
    told = next(filter(None, all_gather_object(error and _told(get_rank(), error))), None)
    if told is not None:
        raise error or told


def _told(rank: int, error: Exception) -> VisionError:
    """The error as the other ranks see it."""
    if isinstance(error, VisionError):
        return error
    return VisionError('VIS-DIST-328', f'rank {rank} failed: {type(error).__name__}: {error}',
                       where=f'rank {rank}', why='no rank goes on without the others',
                       do='see the traceback of this rank')
