"""Part 'executed' of pipeline.py: schedules that run on four forks of this process.

They talk by gloo. All schedules take turns in one run, round after round; each action sleeps until
its time is over, so that the waits are those of the schedule and not of two cores for four ranks.
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rank_faults import fork_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from vision.pipeline.core.gathers import with_gathers
from vision.pipeline.core.schedules import make_table
from vision.pipeline.core.simulate import simulate
from vision.pipeline.core.tasks import REDUCE_GRAD, UNSHARD, Action, Costs, Table
from vision.pipeline.core.transfers import with_transfers
from vision.pipeline.core.zeropp import zeropp
from vision.pipeline.nn.profile import measured_costs
from vision.pipeline.nn.runtime import PipelineRuntime, Spans
from vision.pipeline.nn.torch_private import TORCH_SCHEDULES, torch_table

NUM_RANKS, NUM_MICROBATCHES, WIDTH, SEED = 4, 8, 8, 0
NUM_ROUNDS, TASK_S = 7, 0.04  # of one action with two chunks on a rank; twice that with one
# Schedule, chunks of a rank, those of a rank where data is sharded, micro-batches of a unit.
SCHEDULES = (('gpipe', 1, 1, None), ('1f1b', 1, 1, None), ('interleaved-1f1b', 2, 4, None),
             ('breadth-first', 2, 4, None), ('interleaved-zero-bubble', 2, 4, None),
             ('zbv', 2, 2, None), ('dualpipev', 2, 2, None), ('zeropp', 2, 4, 4),
             ('zeropp', 2, 4, 8))
COLLECTIVES = ('all_gather_single', 'reduce_scatter_single')  # of FSDP2


class Sleeping(Spans):
    """Each action takes ``task_s``, however long its small chunk computed."""

    task_s = 0.0

    @contextmanager
    def __call__(self, action: Action) -> Iterator[None]:
        with super().__call__(action):
            end = time.perf_counter() + self.task_s * (1 + (action.kind == 'B'))
            yield
            time.sleep(max(0.0, end - time.perf_counter()))


def table_of(name: str, num_ranks: int, num_chunks: int, unit: int | None,
             is_sharded: bool = False, costs: Costs | None = None) -> Table:
    """Complete, for equal costs and the latency of this kind of machine, 0.4 ms of 40."""
    costs = costs or Costs.uniform(num_ranks * num_chunks, latency=0.01)
    if name == 'zeropp':
        table = zeropp(num_ranks, num_chunks, NUM_MICROBATCHES, unit, costs)
    else:
        make = torch_table if name in TORCH_SCHEDULES else make_table
        table = make(name, num_ranks, num_chunks, NUM_MICROBATCHES)
    return with_transfers(with_gathers(table) if is_sharded else table, costs)


def loss_of(output: Tensor, mb: int) -> Tensor:
    return output.square().mean() / NUM_MICROBATCHES


class Pipeline:
    """A table, its runtime on this rank, and the judge's stages."""

    def __init__(self, table: Table, group: dist.ProcessGroup, dp_mesh: Any = None) -> None:
        torch.manual_seed(SEED)
        self.table, self.dp_mesh = table, dp_mesh
        self.stages = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
                       for _ in range(table.num_stages)]
        chunks = {stage: copy.deepcopy(self.stages[stage])
                  for stage in table.stages_of(dist.get_rank(group))}
        for chunk in chunks.values() if dp_mesh else ():
            fully_shard(chunk, mesh=dp_mesh, reshard_after_forward=False)
        self.runtime = PipelineRuntime(chunks, table, group=group, device='cpu', loss_of=loss_of)

    def batch(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(SEED + index)
        return torch.randn(4 * NUM_MICROBATCHES, WIDTH, generator=generator)

    def gradient_error(self) -> float:
        """After one step, beside one process that takes the batches of all copies."""
        num_copies = self.dp_mesh.size() if self.dp_mesh else 1
        for index in range(num_copies):
            for mb, x in enumerate(self.batch(index).chunk(NUM_MICROBATCHES)):
                for stage in self.stages:
                    x = stage(x)
                loss_of(x, mb).backward()
        error = scale = 0.0
        for stage, chunk in self.runtime.chunks.items():
            for found, judge in zip(chunk.parameters(), self.stages[stage].parameters(),
                                    strict=True):
                wanted = judge.grad / num_copies
                own = found.grad.full_tensor() if isinstance(found.grad, DTensor) else found.grad
                error = max(error, (own - wanted).abs().max().item())
                scale = max(scale, wanted.abs().max().item())
        return error / scale


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    counts, before = dict.fromkeys(COLLECTIVES, 0), {}

    def counting(name: str):
        def call(*args, **kwargs):
            counts[name] += 1
            return before[name](*args, **kwargs)
        return call

    for name in COLLECTIVES:
        before[name] = getattr(dist, name)
        setattr(dist, name, counting(name))
    yield counts
    for name in COLLECTIVES:
        setattr(dist, name, before[name])


def everyone(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found


def executed() -> list[dict[str, Any]]:
    """A row for each schedule; columns as in the docstring of pipeline.py."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ended = fork_ranks(play, NUM_RANKS, folder, wait_s=900)
        assert all(end.code == 0 for end in ended), '\n'.join(end.text for end in ended)
        rows = json.loads((Path(folder) / 'rows.json').read_text())
    times = {row['method']: row['makespan_s'] for row in rows}
    for row in rows:
        row['to_1f1b'] = round(row['makespan_s'] / times['1f1b'], 4)
        row['to_breadth_first'] = round(row['makespan_s'] / times['breadth-first'], 4)
    return rows


def play(folder: str) -> None:
    """Of each rank; rank 0 writes the rows."""
    dist.init_process_group('gloo')
    mesh = init_device_mesh('cpu', (2, 2), mesh_dim_names=('dp', 'pp'))
    rows, pipelines = [], []
    for name, num_chunks, num_sharded_chunks, unit in SCHEDULES:
        plain = Pipeline(table_of(name, NUM_RANKS, num_chunks, unit), dist.group.WORLD)
        plain.runtime.step(plain.batch(0))
        rows.append(dict(
            setting=f'P={NUM_RANKS} V=2 M={NUM_MICROBATCHES}, {TASK_S * 1e3:.0f} ms an action',
            method=name if unit is None else f'zeropp U={unit}', chunks=num_chunks,
            gradient_error=max(everyone(plain.gradient_error())),
            in_flight=max(everyone(plain.runtime.spans.peak_in_flight)),
            **sharded_step(name, num_sharded_chunks, unit, mesh)))
        plain.runtime.spans.__class__ = Sleeping
        plain.runtime.spans.task_s = TASK_S * 2 / num_chunks
        pipelines.append(plain)
    makespans: list[list[float]] = [[] for _ in pipelines]
    for _ in range(NUM_ROUNDS):
        for pipeline, found in zip(pipelines, makespans, strict=True):
            dist.barrier()
            pipeline.runtime.step(pipeline.batch(0))
            found.append(makespan(pipeline.runtime.spans))
    for row, pipeline, found in zip(rows, pipelines, makespans, strict=True):
        costs = measured_costs(pipeline.runtime, group=dist.group.WORLD)
        measured, simulated = statistics.median(found), simulate(pipeline.table, costs).makespan
        row.update(makespan_s=round(measured, 4), least_s=round(min(found), 4),
                   most_s=round(max(found), 4), simulated_s=round(simulated, 4),
                   simulation_error=round(simulated / measured - 1, 4))
    if dist.get_rank() == 0:
        (Path(folder) / 'rows.json').write_text(json.dumps(rows))


def sharded_step(name: str, num_chunks: int, unit: int | None, mesh: Any) -> dict[str, Any]:
    """Two pipelines of two ranks; the second step is counted, shapes are learned in the first."""
    table = table_of(name, 2, num_chunks, unit, is_sharded=True)
    pipeline = Pipeline(table, mesh.get_group('pp'), mesh['dp'])
    batch = pipeline.batch(mesh.get_local_rank('dp'))
    pipeline.runtime.step(batch)
    error = max(everyone(pipeline.gradient_error()))
    with counted() as counts:
        pipeline.runtime.step(batch)
    kinds = [action.kind for action in table.rows[pipeline.runtime.rank]]
    real, planned = everyone(list(counts.values())), everyone(
        [kinds.count(UNSHARD), kinds.count(REDUCE_GRAD)])
    return dict(sharded_gradient_error=error, gathers=max(gathers for gathers, _ in real),
                reduces=max(reduces for _, reduces in real), is_as_planned=real == planned)


def makespan(spans: Spans) -> float:
    """All forks of a machine read one clock."""
    found = spans.seconds()
    ranks = everyone((spans.origin + found[0][1], spans.origin + found[-1][2]))
    return max(end for _, end in ranks) - min(start for start, _ in ranks)
