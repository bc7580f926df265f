"""Stores of class rows: made, with new rows, and read out for export."""

from __future__ import annotations

import zlib

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vision.common.core.errors import VisionError
from vision.faces.nn.store.device_store import ClassStore
from vision.faces.nn.store.host_store import HostStore
from vision.faces.nn.store.lazy_optim import build_optimizer
from vision.faces.nn.store.ranks import check_ranks, row_range

BACKENDS = ('device', 'host', 'sharded')
SEED_BLOCK = 4096  # rows drawn from one random stream
INIT_STD = 0.01  # as Partial FC begins


def build_store(num_classes: int, dim: int, *, backend: str = 'device',
                optimizer: dict | None = None, seed: int = 0, dtype: torch.dtype = torch.float32,
                device: torch.device | str = 'cpu', group: dist.ProcessGroup | None = None,
                rows_per_class: int = 1, is_filled: bool = True) -> ClassStore:
    """Store with new rows, which depend on the seed and the class only, not on the ranks.

    Args:
        num_classes: rows of all ranks, C times ``rows_per_class``.
        backend: where rows are kept: 'device' (``device``), 'host' (host memory, used on
            ``device``), 'sharded' ('device', and over all processes if there are several and
            ``group`` is not given).
        optimizer: ``type`` (sgd, adamw, row_adagrad) and its options.
        group: processes that share the rows, each a contiguous range; None: all rows are here.
        rows_per_class: sub-centres; ranges are cut between classes only.
        is_filled: False: rows are not drawn, and take no host memory yet; ``load_ranges`` is next.

    Raises:
        VisionError: VIS-CONFIG-1021, VIS-CONFIG-1027 to VIS-CONFIG-1029, an option; VIS-DIST-1024,
            on every rank, when ranks came with different values.
    """
    if backend not in BACKENDS or dtype not in (torch.float32, torch.float64):
        raise VisionError('VIS-CONFIG-1021', f'a store with backend={backend!r}, dtype={dtype}',
                          where='store', why='in half precision small updates would vanish'
                          if backend in BACKENDS else '',
                          do=f'backend is one of {", ".join(BACKENDS)}, dtype float32 or float64')
    if backend == 'sharded' and group is None and dist.is_initialized():
        group = dist.group.WORLD
    made = build_optimizer(**(optimizer or {}))
    rank, world = 0, 1
    if group is not None:
        rank, world = dist.get_rank(group), dist.get_world_size(group)
        check_ranks(group, device, num_classes=num_classes, dim=dim, seed=seed,
                    rows_per_class=rows_per_class, dtype=torch.finfo(dtype).bits,
                    optimizer=zlib.crc32(repr((made.name, made.options)).encode()))
    assert num_classes % rows_per_class == 0
    start, end = (rows_per_class * edge
                  for edge in row_range(num_classes // rows_per_class, rank, world))
    place = 'cpu' if backend == 'host' else device
    rows = initial_rows(start, end, dim, seed).to(place, dtype) if is_filled else \
        torch.empty(end - start, dim, dtype=dtype, device=place)
    if backend == 'host':
        return HostStore(rows, made, num_classes=num_classes, row_start=start, group=group,
                         device=device)
    return ClassStore(rows, made, num_classes=num_classes, row_start=start, group=group)


def class_rows(states: list[dict]) -> Tensor:
    """(C, d) rows of the states of all ranks, with what they had missed made up: for export.

    Raises:
        VisionError: VIS-CKPT-1023, they do not fit together.
    """
    first = states[0]
    rows = torch.empty(first['num_classes'], first['dim'], dtype=first['rows'].dtype)
    store = ClassStore(rows, build_optimizer(**first['optimizer']),
                       num_classes=first['num_classes'])
    store.load_ranges(states)
    return store.snapshot(rows.dtype)


def initial_rows(start: int, end: int, dim: int, seed: int) -> Tensor:
    """(end - start, d) float32 normal rows; a row depends on the seed and its class only."""
    result = torch.empty(end - start, dim)
    for block in range(start // SEED_BLOCK, -(-end // SEED_BLOCK)):
        # torch's generators keep 32 bits of a seed: two of many blocks could be equal.
        stream = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, block))))
        first = block * SEED_BLOCK
        drawn = stream.standard_normal((min(SEED_BLOCK, end - first), dim), dtype=np.float32)
        low = max(start, first)
        result[low - start:first + len(drawn) - start] = torch.from_numpy(drawn[low - first:])
    return result.mul_(INIT_STD)
