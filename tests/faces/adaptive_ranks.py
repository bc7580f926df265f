"""Selectors over rows of 1, 2 and 4 gloo processes, and a build that fails on one.

Run as: adaptive_ranks.py NUM FOLDER. The first 1, 2 and 4 of four processes do the same.
"""

import datetime
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from rank_processes import fork_ranks
from rows import TensorStore, batch_near, clustered_rows
from slow_oracle import SlowOracle

from vision.common.core.errors import VisionError
from vision.faces.nn.select.build import build_selector
from vision.faces.nn.store.ranks import row_range

NUM_ROWS, STEPS = 6000, 22
ORACLES = (dict(scale=24.0), dict(scale=200.0), dict(is_cosine=False))


def main(rank, num, folder):
    dist.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank,
                            world_size=num, timeout=datetime.timedelta(seconds=60))
    groups = {world: dist.new_group(list(range(world))) for world in (1, 2, 4)}
    found = {}
    for world, group in groups.items():
        if rank < world:
            found[world] = run(rank, world, group)
            found[f'device{world}'] = chosen_on_device(rank, world, group)
    if rank < 2:
        found['mass'] = mass_of_candidates(rank, groups[2])
        found['oracles'] = [chosen_by_oracles(rank, groups[2], **options) for options in ORACLES]
        found['failed'] = failing_build(rank, groups[2])
    Path(folder, f'{rank}.json').write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def some_rows():
    rows = clustered_rows(NUM_ROWS, noise=0.5)
    return rows[torch.randperm(NUM_ROWS, generator=torch.Generator().manual_seed(3))]


def store_of(rank, world, group):
    return TensorStore(some_rows(), *row_range(NUM_ROWS, rank, world), group=group)


def run(rank, world, group):
    """Log of the controller."""
    selector = build_selector(
        'ivf', store_of(rank, world, group), num_active=100, num_lists=8, nprobe=8, scale=32.0,
        overfetch=4.0, upkeep=dict(interval=50, swap_lag=1),
        adaptive=dict(monitor_every=2, mass_range=(0.02, 0.145), nprobe_range=(8, 9)))
    rows = some_rows()
    for step in range(STEPS):
        features, labels = batch_near(rows, num=64, seed=step // 2)
        chosen = selector.select(features, labels, step).rows
        selector.after_update(chosen, step)
    selector.upkeep.finish()
    return selector.controller.log


def chosen_on_device(rank, world, group):
    """Rows of all ranks' numbering."""
    store = store_of(rank, world, group)
    selector = build_selector('device', store, num_active=600, num_lists=8, nprobe=8, scale=32.0)
    features, labels = batch_near(some_rows(), num=64)
    return (selector.select(features, labels, 0).rows + store.row_start).tolist()


def mass_of_candidates(rank, group):
    """Of every row of this rank."""
    features, _ = batch_near(some_rows(), num=16)
    selector = build_selector('oracle', store_of(rank, 2, group), num_active=300, scale=24.0)
    everything = torch.arange(selector.num_local)
    logits = selector.logits(selector.queries(features), everything)
    return selector.log_mass(logits, logits[:, :0]).exp().tolist()


def chosen_by_oracles(rank, group, **options):
    """By the slow one, and by that which is used: without a draw their rows are equal."""
    store = store_of(rank, 2, group)
    features, labels = batch_near(some_rows(), num=64)
    common = dict(num_active=600, random_frac=0.0, **options)
    return [selector.select(features, labels, 0).rows.tolist() for selector in (
        SlowOracle(store, **common), build_selector('oracle', store, **common))]


def failing_build(rank, group):
    """Rank 1 has a row that is not finite; what each rank says, and when."""
    store = store_of(rank, 2, group)
    selector = build_selector('ivf', store, num_active=100, num_lists=8, upkeep=dict(
        interval=4, swap_lag=2, is_async=True))
    for step in range(9):
        features, labels = batch_near(some_rows(), num=16, seed=step)
        try:
            selector.select(features, labels, step)
            if step == 3 and rank == 1:
                store.weights[5] = torch.nan
            selector.after_update(torch.arange(3), step)
        except VisionError as error:
            return [step, error.code, error.where]
    return None


if __name__ == '__main__':
    torch.set_num_threads(1)
    fork_ranks(main)
