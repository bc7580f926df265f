"""What a machine does, measured: matrix products and element-wise operators by size, collectives
between its ranks by size, and how much slower compute is beside them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from vision.common.nn.torch_private import all_gather_single

# Sides of square products, numbers of an element-wise operator and bytes of a collective.
GEMM_SIDES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
ELEMENTS = (2**14, 2**16, 2**18, 2**20, 2**22, 2**24, 2**26)
MESSAGE_BYTES = (2**10, 2**13, 2**16, 2**18, 2**20, 2**22, 2**24)
COLLECTIVES = ('all_reduce', 'all_gather')
_LEAST_RUNS = 3


@dataclass(frozen=True)
class Budget:
    """Seconds for each size; sizes that one run of would exceed ``largest_s`` are left out."""

    per_size_s: float = 0.3
    largest_s: float = 0.5


def seconds_of(run: Callable[[], object], device: str, budget: Budget) -> float:
    """Median of runs, after one to warm up; each is waited for."""
    sync = torch.cuda.synchronize if device == 'cuda' else (lambda: None)
    run()
    sync()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < _LEAST_RUNS or time.perf_counter() - began < budget.per_size_s:
        start = time.perf_counter()
        run()
        sync()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def gemms(device: str, dtype: torch.dtype, budget: Budget,
          sides: Sequence[int] = GEMM_SIDES) -> list[tuple[float, float]]:
    """(FLOPs, FLOP/s) of square products."""
    points = []
    for side in sides:
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        seconds = seconds_of(lambda a=a, b=b: a @ b, device, budget)
        points.append((2.0 * side**3, 2.0 * side**3 / seconds))
        if 8 * seconds > budget.largest_s:  # the next side is twice as long, or more
            break
    return points


def elementwise(device: str, dtype: torch.dtype, budget: Budget,
                elements: Sequence[int] = ELEMENTS) -> list[tuple[float, float]]:
    """(bytes moved, bytes/s) of an addition into a third tensor: two reads, one write."""
    points = []
    for count in elements:
        a, b, out = (torch.ones(count, device=device, dtype=dtype) for _ in range(3))
        seconds = seconds_of(lambda a=a, b=b, out=out: torch.add(a, b, out=out), device, budget)
        moved = 3.0 * count * a.element_size()
        points.append((moved, moved / seconds))
        if 8 * seconds > budget.largest_s:
            break
    return points


def host_seconds(device: str, budget: Budget) -> float:
    """To issue one operator: of a long row of additions of one number, waited for at the end."""
    value = torch.ones(1, device=device)

    def row() -> None:
        for _ in range(200):
            value.add_(1.0)
    return seconds_of(row, device, budget) / 200


def collectives(device: str, budget: Budget, sizes: Sequence[int] = MESSAGE_BYTES
                ) -> dict[str, list[tuple[float, float]]]:
    """(bytes of the whole tensor, seconds) by collective, of the slowest rank. All ranks of the
    initialised group call this; each gets the same numbers."""
    world = dist.get_world_size()
    tables: dict[str, list[tuple[float, float]]] = {name: [] for name in COLLECTIVES}
    for size in sizes:
        count = max(world, size // 4 // world * world)
        whole = torch.ones(count, device=device)
        part = torch.ones(count // world, device=device)
        runs = dict(all_reduce=lambda whole=whole: dist.all_reduce(whole),
                    all_gather=lambda whole=whole, part=part: all_gather_single(
                        whole, part))
        for name, run in runs.items():
            tables[name].append((4.0 * count, _together(run, device, budget)))
    return tables


def overlap_slowdown(device: str, budget: Budget) -> float:
    """How much longer a product takes with an all-reduce beside it than alone, relative to the
    time that the two overlap. Of the slowest rank."""
    side = 256 if device == 'cpu' else 4096
    a = torch.randn(side, side, device=device)
    message = torch.ones(2**20 if device == 'cpu' else 2**26, device=device)

    def compute() -> None:
        for _ in range(20):
            a @ a

    def both() -> None:
        work = dist.all_reduce(message, async_op=True)
        compute()
        work.wait()
    alone = _together(compute, device, budget)
    beside = _together(both, device, budget)
    comm = _together(lambda: dist.all_reduce(message), device, budget)
    # Were there no slow-down, both would take as long as the longer one.
    overlapped = min(alone, comm)
    return max(0.0, (beside - max(alone, comm)) / overlapped)


def _together(run: Callable[[], object], device: str, budget: Budget) -> float:
    """Median over runs of the slowest rank's time. The number of runs is rank 0's."""
    sync = torch.cuda.synchronize if device == 'cuda' else (lambda: None)
    run()
    sync()
    start = time.perf_counter()
    run()
    sync()
    one = torch.tensor([time.perf_counter() - start], device=device)
    dist.broadcast(one, 0)
    num_runs = max(_LEAST_RUNS, min(200, int(budget.per_size_s / max(one.item(), 1e-6))))
    times = []
    for _ in range(num_runs):
        dist.barrier()
        start = time.perf_counter()
        run()
        sync()
        times.append(time.perf_counter() - start)
    slowest = torch.tensor(times, dtype=torch.float64, device=device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return statistics.median(slowest.tolist())
