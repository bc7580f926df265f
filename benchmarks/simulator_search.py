"""How long the search of decoders takes, and whether what it drops could have won.

Each figure is of a fresh process, imports not counted, since schedules are kept in memory.

  what            'search': a world searched twice, with bounds and exhaustively; is_same says
                  whether both found the same strategy. 'step': one step of one strategy.
  seconds         of the search with bounds, or the median of a step's processes.
  exhaustive_s    of the judge; None where it was left out.
  num_possible    strategies that divide the world; num_dropped of them by a bound, num_played fit
                  and were simulated. Until a first one is known to fit nothing is dropped by time.
  best_s          predicted seconds of the winner's step, or of the step.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vision.simulator.core.analytic import Strategy, predict
from vision.simulator.core.cluster import Cluster, read_cluster
from vision.simulator.core.pricing import Prices
from vision.simulator.core.search import search
from vision.simulator.core.transformers import Decoder
from vision.simulator.mm.decoders import describe, read_decoder

ROOT = Path(__file__).resolve().parents[1]
LAYERS_8 = 'layers=8,hidden=1024,heads=16,vocab=32000'
REPEATS = 5
BUDGET_S = 600.0  # of a search, so that it is complete


@dataclass(frozen=True)
class World:
    """A search: a decoder's text, tokens of a sequence, devices, global batch; GiB of a device, so
    that some worlds are short of memory."""

    decoder: str
    sequence: int
    num_gpus: int
    global_batch: int
    memory_gib: int = 80
    is_judged: bool = True


WORLDS = (World(LAYERS_8, 1024, 8, 32), World(LAYERS_8, 1024, 8, 32, memory_gib=4),
          World('llama3-8b', 2048, 8, 16), World('llama3-8b', 2048, 16, 32),
          World('llama3-8b', 8192, 32, 64), World('llama3-8b', 8192, 64, 128),
          World('llama3-8b', 8192, 512, 1024, is_judged=False))
# Of the 8B on 512 devices: sharded, the shortest; with a pipeline, whose table is played.
STEPS = (Strategy(data=512, num_microbatches=2, zero=3),
         Strategy(data=32, tensor=2, pipeline=8, num_microbatches=32, zero=1,
                  is_sequence_parallel=True, recompute='full'),
         Strategy(data=64, tensor=2, pipeline=4, chunks=4, num_microbatches=16, zero=1,
                  is_sequence_parallel=True, recompute='full'))


def time_search() -> list[dict[str, Any]]:
    rows = []
    for world in WORLDS:
        own = _alone(_searched, world, False)
        judge = _alone(_searched, world, True) if world.is_judged else {}
        best = own.pop('best')
        rows.append(dict(
            what='search', decoder=world.decoder, sequence=world.sequence,
            num_gpus=world.num_gpus, global_batch=world.global_batch,
            memory_gib=world.memory_gib, **own, best=describe(best),
            exhaustive_s=judge.get('seconds'),
            is_same=judge['best'] == best if judge else None))
    for strategy in STEPS:
        timed = [_alone(_stepped, strategy) for _ in range(REPEATS)]
        rows.append(dict(what='step', decoder='llama3-8b', sequence=8192,
                         num_gpus=strategy.world_size, global_batch=strategy.global_batch,
                         seconds=round(statistics.median(each for each, _ in timed), 5),
                         most_s=round(max(each for each, _ in timed), 5), best_s=timed[0][1],
                         best=describe(strategy)))
    return [{name: each for name, each in row.items() if each is not None} for row in rows]


def show_search(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        text = f'{row["what"]:6} {row["decoder"]:12.12} {row["num_gpus"]:4} GPUs: ' \
            f'{row["seconds"]:.4g} s'
        if 'num_possible' in row:
            text += f', {row["num_played"]} of {row["num_possible"]} simulated'
        if 'exhaustive_s' in row:
            text += f'; exhaustive {row["exhaustive_s"]:.4g} s, ' \
                f'{"the same" if row["is_same"] else "ANOTHER"} winner'
        print(f'{text}; best {row["best_s"]:.4g} s: {row["best"]}')


def _alone(function, *arguments):
    """The function's result in a process of its own."""
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def _prices(num_gpus: int, memory_gib: int = 80) -> Prices:
    cluster: Cluster = read_cluster(ROOT / 'configs' / 'clusters' / 'h100.yaml')
    device = replace(cluster.device, memory_bytes=memory_gib * 2**30)
    return Prices(replace(cluster, num_nodes=-(-num_gpus // cluster.gpus_per_node),
                          device=device))


def _searched(world: World, is_exhaustive: bool) -> dict[str, Any]:
    decoder: Decoder = read_decoder(world.decoder, world.sequence)
    prices = _prices(world.num_gpus, world.memory_gib)
    began = time.perf_counter()
    found = search(decoder, world.num_gpus, world.global_batch, prices, budget_s=BUDGET_S,
                   is_exhaustive=is_exhaustive)
    seconds = time.perf_counter() - began
    assert found.is_complete, world
    return dict(seconds=round(seconds, 4), num_possible=found.num_possible,
                num_dropped=found.num_dropped, num_played=found.num_played,
                best_s=found.prediction.seconds, best=found.best)


def _stepped(strategy: Strategy) -> tuple[float, float]:
    decoder, prices = read_decoder('llama3-8b'), _prices(strategy.world_size)
    began = time.perf_counter()
    prediction = predict(decoder, strategy, prices)
    return time.perf_counter() - began, prediction.seconds
