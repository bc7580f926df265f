"""Part 'schedules' of simulator.py: predicted before they run, then run on four forks."""

from __future__ import annotations

import hashlib
import json
import random
import statistics
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pipeline_executed import SCHEDULES, Pipeline, Sleeping, everyone, makespan, table_of
from rank_faults import fork_ranks
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vision.pipeline.core.tasks import Action, Costs, Table
from vision.pipeline.nn.profile import measured_costs
from vision.pipeline.nn.runtime import PipelineRuntime
from vision.simulator.core.engine import run
from vision.simulator.core.from_actions import from_actions

NUM_RANKS, NUM_STAGES, NUM_ROUNDS, NUM_CALIBRATIONS = 4, 8, 5, 11
CALIBRATED = '1f1b'
SEEDS = (1, 2)  # of the costs; the calibration sees the first alone
LATENCY_S = 4e-4  # only for the order of transfers in a table; predictions have none
TIE = 0.005  # predictions closer than that have no order


class Uneven(Sleeping):
    """Each action takes what the costs say."""

    costs: Costs

    def __call__(self, action: Action) -> AbstractContextManager[None]:
        self.task_s = self.costs.time_of(action) / (1 + (action.kind == 'B'))
        return super().__call__(action)


def uneven_costs(seed: int) -> Costs:
    """20 to 60 ms for F; I and W differ from it by up to a third."""
    rng = random.Random(seed)
    forward = [rng.uniform(0.02, 0.06) for _ in range(NUM_STAGES)]
    backward = [[time * rng.uniform(0.67, 1.33) for time in forward] for _ in range(2)]
    return Costs(tuple(forward), *map(tuple, backward), latency=LATENCY_S,
                 activation_bytes=(1,) * NUM_STAGES)


def schedules(predicted: Path | None = None, num_rounds: int = NUM_ROUNDS
              ) -> list[dict[str, Any]]:
    """A row for each schedule and set of costs; columns as in the docstring of simulator.py.

    Args:
        predicted: file to which predictions are written before anything but the calibration runs.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        predicted = predicted or Path(folder) / 'predicted.json'
        ended = fork_ranks(play, NUM_RANKS, folder, predicted, num_rounds, wait_s=1800)
        assert all(end.code == 0 for end in ended), '\n'.join(end.text for end in ended)
        rows = json.loads((Path(folder) / 'rows.json').read_text())
    return rows


def swapped(rows: list[dict[str, Any]]) -> list[str]:
    """Pairs of schedules of the same costs that are measured in the other order than predicted,
    further apart than ties are."""
    return [f'{a["method"]} before {b["method"]}' for a in rows for b in rows
            if a['setting'] == b['setting']
            and a['predicted_s'] < b['predicted_s'] * (1 - TIE)
            and a['measured_s'] > b['measured_s']]


@dataclass
class Case:
    """A schedule with costs, on all ranks or, sharded, on two of them twice."""

    setting: str
    method: str
    table: Table
    costs: Costs
    is_sharded: bool = False


def all_cases() -> list[Case]:
    cases = []
    for name, num_chunks, num_sharded_chunks, unit in SCHEDULES:
        for seed in SEEDS:
            for is_sharded in (False, True)[:1 + (seed == SEEDS[-1])]:
                num_ranks, chunks = (NUM_RANKS, num_chunks) if not is_sharded else \
                    (NUM_RANKS // 2, num_sharded_chunks)
                costs = uneven_costs(seed).merged(num_ranks * chunks)
                table = table_of(name, num_ranks, chunks, unit, is_sharded, costs)
                cases.append(Case(f'costs {seed}' + ', sharded' * is_sharded,
                                  name if unit is None else f'zeropp U={unit}', table, costs,
                                  is_sharded))
    return sorted(cases, key=lambda case: case.setting)


def play(folder: str, predicted: Path, num_rounds: int) -> None:
    """Of each rank; rank 0 writes the predictions, then the rows."""
    dist.init_process_group('gloo')
    mesh = init_device_mesh('cpu', (2, 2), mesh_dim_names=('dp', 'pp'))
    known = calibrate(mesh)
    cases = all_cases()
    rows = [dict(setting=case.setting, method=case.method, chunks=case.table.num_chunks,
                 predicted_s=round(predict(case.table, case.costs, **known), 5),
                 ideal_s=round(predict(case.table, case.costs), 5)) for case in cases]
    if dist.get_rank() == 0:
        predicted.write_text(json.dumps(dict(calibrated_on=f'{CALIBRATED}, costs {SEEDS[0]}',
                                             **known, rows=rows), indent=1) + '\n')
    dist.barrier()
    digest = hashlib.sha256(predicted.read_bytes()).hexdigest()
    pipelines = [prepared(case, mesh) for case in cases]
    times: list[list[float]] = [[] for _ in cases]
    for _ in range(num_rounds):
        for pipeline, found in zip(pipelines, times, strict=True):
            found.append(one_step(pipeline))
    for row, found in zip(rows, times, strict=True):
        measured = statistics.median(found)
        row.update(measured_s=round(measured, 5), least_s=round(min(found), 5),
                   most_s=round(max(found), 5), error=round(row['predicted_s'] / measured - 1, 5),
                   ideal_error=round(row['ideal_s'] / measured - 1, 5),
                   predictions_sha256=digest,
                   **{key: round(value, 6) for key, value in known.items()})
    if dist.get_rank() == 0:
        (Path(folder) / 'rows.json').write_text(json.dumps(rows))


def prepared(case: Case, mesh: DeviceMesh) -> Pipeline:
    """Shapes are learned, and each action takes its time from now on."""
    pipeline = Pipeline(case.table, mesh.get_group('pp'), mesh['dp']) if case.is_sharded else \
        Pipeline(case.table, dist.group.WORLD)
    pipeline.runtime.step(pipeline.batch(0))
    pipeline.runtime.spans.__class__ = Uneven
    pipeline.runtime.spans.costs = case.costs
    return pipeline


def one_step(pipeline: Pipeline) -> float:
    dist.barrier()
    pipeline.runtime.step(pipeline.batch(0))
    return makespan(pipeline.runtime.spans)


def predict(table: Table, costs: Costs, *, overhead_s: float = 0.0, gather_s: float = 0.0,
            reduce_s: float = 0.0) -> float:
    """Messages take no time of their own: it is part of the overhead of the actions."""
    known = replace(costs, latency=0.0, gather=(gather_s,) * table.num_stages,
                    reduce=(reduce_s,) * table.num_stages)
    return run(from_actions(table, known, overhead_s=overhead_s)).makespan


def calibrate(mesh: DeviceMesh) -> dict[str, float]:
    """What ``predict`` takes: the overhead of an action from steps of one schedule, the times of
    collectives by themselves."""
    plain, sharded = (next(case for case in all_cases() if case.method == CALIBRATED
                           and case.is_sharded == is_sharded) for is_sharded in (False, True))
    pipeline = prepared(plain, mesh)
    measured = everyone(statistics.median(
        one_step(pipeline) for _ in range(NUM_CALIBRATIONS)))[0]
    pair = measured_costs(prepared_and_run(sharded, mesh), group=mesh.get_group('pp'),
                          dp_group=mesh.get_group('dp'))
    known = dict(gather_s=statistics.median(pair.gather),
                 reduce_s=statistics.median(pair.reduce))
    return everyone(dict(overhead_s=fitted_overhead(plain.table, plain.costs, measured),
                         **known))[0]


def fitted_overhead(table: Table, costs: Costs, measured_s: float) -> float:
    """With which the prediction is what was measured; 0 if that is shorter than the costs."""
    low, high = 0.0, max(costs.forward)
    for _ in range(40):  # the makespan grows with the overhead
        middle = (low + high) / 2
        is_short = predict(table, costs, overhead_s=middle) < measured_s
        low, high = (middle, high) if is_short else (low, middle)
    return low


def prepared_and_run(case: Case, mesh: DeviceMesh) -> PipelineRuntime:
    pipeline = prepared(case, mesh)
    one_step(pipeline)
    return pipeline.runtime
