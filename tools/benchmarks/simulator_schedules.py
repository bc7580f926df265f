"""Part 'schedules' of simulator.py: predicted before they run, then run on four forks.

Each compute action of the uneven stages sleeps until its time is over; ranks talk by gloo, under
the runtime of vision.pipeline. Known to the prediction are the times of the actions, half of a
round trip between two idle ranks, and one overhead for each compute action, chosen so that the
simulated 1F1B is as long as the measured one.
"""

from __future__ import annotations

import hashlib
import json
import random
import statistics
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pipeline_executed import SCHEDULES, Pipeline, Sleeping, everyone, makespan, table_of
from rank_faults import fork_ranks

from vision.pipeline.core.tasks import Action, Costs, Table
from vision.pipeline.nn.profile import measured_costs
from vision.simulator.core.engine import run
from vision.simulator.core.from_actions import from_actions

NUM_RANKS, NUM_STAGES, NUM_ROUNDS, NUM_CALIBRATIONS = 4, 8, 7, 7
CALIBRATED = '1f1b'
SEEDS = (1, 2)  # of the costs; the second is not even looked at by the calibration
LATENCY_S = 4e-4  # only for the order of transfers in a table; predictions take the measured one
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
    for row in rows:
        row['error'] = round(row['predicted_s'] / row['measured_s'] - 1, 5)
        row['error_without_overhead'] = round(row['ideal_s'] / row['measured_s'] - 1, 5)
    return rows


def swapped(rows: list[dict[str, Any]]) -> list[str]:
    """Pairs of schedules of the same costs that are measured in the other order than predicted,
    further apart than ties are."""
    return [f'{a["method"]} before {b["method"]}' for a in rows for b in rows
            if a['setting'] == b['setting']
            and a['predicted_s'] < b['predicted_s'] * (1 - TIE)
            and a['measured_s'] > b['measured_s']]


def play(folder: str, predicted: Path, num_rounds: int) -> None:
    """Of each rank; rank 0 writes the predictions, then the rows."""
    dist.init_process_group('gloo')
    all_costs = {seed: uneven_costs(seed) for seed in SEEDS}
    overhead_s, latency_s = calibrate(all_costs[SEEDS[0]])
    cases = []
    for seed, costs in all_costs.items():
        for name, num_chunks, _, unit in SCHEDULES:
            own = costs.merged(NUM_RANKS * num_chunks)
            table = table_of(name, NUM_RANKS, num_chunks, unit, costs=own)
            cases.append((f'costs {seed}', name if unit is None else f'zeropp U={unit}', table,
                          own))
    rows = [dict(setting=setting, method=name, chunks=table.num_chunks,
                 predicted_s=round(predict(table, own, latency_s, overhead_s), 5),
                 ideal_s=round(predict(table, own, 0.0, 0.0), 5))
            for setting, name, table, own in cases]
    if dist.get_rank() == 0:
        predicted.write_text(json.dumps(dict(
            overhead_s=overhead_s, latency_s=latency_s, calibrated_on=f'{CALIBRATED}, '
            f'costs {SEEDS[0]}', rows=rows), indent=1) + '\n')
    dist.barrier()
    digest = hashlib.sha256(predicted.read_bytes()).hexdigest()
    pipelines = [prepared(table, own) for *_, table, own in cases]
    times: list[list[float]] = [[] for _ in pipelines]
    for _ in range(num_rounds):
        for pipeline, found in zip(pipelines, times, strict=True):
            found.append(one_step(pipeline))
    for row, found in zip(rows, times, strict=True):
        row.update(measured_s=round(statistics.median(found), 5), least_s=round(min(found), 5),
                   most_s=round(max(found), 5), overhead_s=round(overhead_s, 6),
                   latency_s=round(latency_s, 6), predictions_sha256=digest)
    if dist.get_rank() == 0:
        (Path(folder) / 'rows.json').write_text(json.dumps(rows))


def prepared(table: Table, costs: Costs) -> Pipeline:
    """Shapes are learned, and each action takes its time from now on."""
    pipeline = Pipeline(table, dist.group.WORLD)
    pipeline.runtime.step(pipeline.batch(0))
    pipeline.runtime.spans.__class__ = Uneven
    pipeline.runtime.spans.costs = costs
    return pipeline


def one_step(pipeline: Pipeline) -> float:
    dist.barrier()
    pipeline.runtime.step(pipeline.batch(0))
    return makespan(pipeline.runtime.spans)


def predict(table: Table, costs: Costs, latency_s: float, overhead_s: float) -> float:
    known = Costs(costs.forward, costs.backward_input, costs.backward_weight, latency=latency_s)
    return run(from_actions(table, known, overhead_s=overhead_s)).makespan


def calibrate(costs: Costs) -> tuple[float, float]:
    """Overhead of an action and latency of a message, from steps of one schedule alone."""
    own = costs.merged(NUM_RANKS)
    pipeline = prepared(table_of(CALIBRATED, NUM_RANKS, 1, None, costs=own), own)
    measured = statistics.median(one_step(pipeline) for _ in range(NUM_CALIBRATIONS))
    latency_s = measured_costs(pipeline.runtime, group=dist.group.WORLD).latency
    low, high = 0.0, max(own.forward)
    for _ in range(40):  # the makespan grows with the overhead
        middle = (low + high) / 2
        is_short = predict(pipeline.table, own, latency_s, middle) < measured
        low, high = (middle, high) if is_short else (low, middle)
    return everyone(low)[0], latency_s
