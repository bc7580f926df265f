"""All measurements of a machine that a cluster file holds, in this process and between ranks."""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.multiprocessing as mp

from vision.common.core.errors import VisionError
from vision.simulator.core.pricing import DTYPE_NAMES
from vision.simulator.nn import measure

TF32 = 'tf32'  # no type of a tensor: how a GPU multiplies float32


def alone(device: str, dtypes: list[str], budget: measure.Budget) -> dict:
    """Of one rank: ``gemm`` by name of a dtype, ``memory`` and ``host``, as ``cluster_text`` reads
    them.

    Args:
        dtypes: names of torch's, or ``TF32`` on a GPU.
    """
    gemm = {}
    for name in dtypes:
        with _tensor_cores(name == TF32):
            gemm[DTYPE_NAMES.get(name, name)] = measure.gemms(
                device, torch.float32 if name == TF32 else getattr(torch, name), budget)
    return dict(gemm=gemm, memory=measure.elementwise(device, torch.float32, budget),
                host=measure.host_seconds(device, budget))


@contextmanager
def _tensor_cores(is_tf32: bool) -> Iterator[None]:
    """Products of float32 on a GPU round their inputs to TF32 inside, or do not."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = is_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def between_ranks(ranks: int, device: str, budget: measure.Budget) -> dict:
    """``collectives`` between so many processes, and the ``slowdown`` of compute beside them.

    Raises:
        VisionError: VIS-RUN-1753, a rank failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            mp.start_processes(_rank, (ranks, device, budget, folder), nprocs=ranks,
                               # Nothing has been computed yet; CUDA does not live through a fork.
                               start_method='spawn' if device == 'cuda' else 'fork')
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            raise VisionError('VIS-RUN-1753', f'a rank of {ranks} failed on {device}',
                              why=str(error).strip().splitlines()[-1],
                              do='use fewer ranks, or --ranks 1 to measure no collectives'
                              ) from error
        return json.loads((Path(folder) / 'measured.json').read_text())


def _rank(rank: int, ranks: int, device: str, budget: measure.Budget, folder: str) -> None:
    import torch.distributed as dist
    torch.set_num_threads(1)
    if device == 'cuda':
        torch.cuda.set_device(rank)
    dist.init_process_group('nccl' if device == 'cuda' else 'gloo', rank=rank, world_size=ranks,
                            init_method=f'file://{folder}/store',
                            timeout=datetime.timedelta(seconds=120))
    try:
        found = dict(collectives=measure.collectives(device, budget),
                     slowdown=measure.overlap_slowdown(device, budget))
        if rank == 0:
            (Path(folder) / 'measured.json').write_text(json.dumps(found))
    finally:
        dist.destroy_process_group()
