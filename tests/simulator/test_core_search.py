import ast
import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from vision.common.core.errors import VisionError
from vision.simulator.core.analytic import Strategy, predict
from vision.simulator.core.cluster import read_cluster
from vision.simulator.core.pricing import Prices
from vision.simulator.core.search import (
    Space,
    config_text,
    explore,
    least_bytes,
    least_seconds,
    pareto,
    search,
    strategies,
)
from vision.simulator.core.transformers import Decoder

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / 'configs' / 'clusters'
SMALL = Decoder(8, 1024, 16, 1024, 32000)
LARGE = Decoder(32, 4096, 32, 2048, 32000, is_gated=True, ffn=11008)


def prices(nodes=1, memory_gib=80):
    cluster = replace(read_cluster(CLUSTERS / 'a100-dgx.yaml'), num_nodes=nodes)
    device = replace(cluster.device, memory_bytes=memory_gib * 2**30)
    return Prices(replace(cluster, device=device))


@pytest.mark.parametrize('decoder, world, batch, memory', [
    (SMALL, 8, 32, 80), (SMALL, 8, 32, 4), (LARGE, 8, 16, 80), (LARGE, 16, 32, 40)])
def test_what_was_dropped_could_not_have_won(decoder, world, batch, memory):
    found, judge = (search(decoder, world, batch, prices(max(1, world // 8), memory),
                           is_exhaustive=each, budget_s=600) for each in (False, True))
    assert found.prediction.seconds == judge.prediction.seconds and found.best == judge.best
    assert found.num_dropped > 0 == judge.num_dropped and found.is_complete
    assert found.num_possible == judge.num_possible


def test_bounds_are_below_predictions():
    own = prices()
    for strategy in itertools.islice(strategies(LARGE, 8, 32, Space(), 8), 0, None, 7):
        prediction = predict(LARGE, strategy, own)
        assert least_seconds(LARGE, strategy, own) <= prediction.seconds, strategy
        assert least_bytes(LARGE, strategy) <= prediction.peak_bytes, strategy


def test_strategies_divide_and_differ():
    found = list(strategies(LARGE, 16, 24, Space(), 8))
    assert len(found) == len(set(found)) > 100
    for each in found:
        assert each.world_size == 16 and each.global_batch == 24 and each.tensor <= 8


def test_the_front_has_no_one_beaten():
    front = search(LARGE, 8, 16, prices(), budget_s=600, is_exhaustive=True).front
    for (_, a), (_, b) in itertools.pairwise(front):
        assert a.seconds <= b.seconds and a.peak_bytes > b.peak_bytes
    assert pareto((), lambda each: each) == ()
    costs = [(3, 1), (1, 9), (2, 4), (2, 5), (3, 4)]
    assert [pair for pair, _ in pareto([(each, each) for each in costs], lambda each: each)] == [
        (1, 9), (2, 4), (3, 1)]


def test_a_tour_plays_one_at_least_and_tells_what_was_left():
    def play(number):
        return None if number == 3 else number
    tour = explore([3, 5, 4, 9], play, budget_s=60.0, seconds_of=float,
                   is_hopeless=lambda number, best: best is not None and number > best)
    assert tour.played == [(5, 5), (4, 4)] and tour.num_dropped == 1 and tour.is_complete
    short = explore([3, 5, 4], play, budget_s=-1.0, seconds_of=float)
    assert not short.played and short.left == [5, 4] and not short.is_complete


def test_a_short_budget_says_so():
    with pytest.raises(VisionError, match='the time budget ended first'):
        search(LARGE, 8, 16, prices(memory_gib=22), budget_s=-1.0)


def test_nothing_fits_names_the_nearest():
    with pytest.raises(VisionError, match=r'VIS-CONFIG-1646.*\n.*all were tried; least needs'):
        search(LARGE, 8, 16, prices(memory_gib=1), budget_s=600)


def test_nothing_divides():
    with pytest.raises(VisionError, match='VIS-CONFIG-1645'):
        search(replace(SMALL, heads=1, layers=1), 7, 5, prices(), space=Space(max_tensor=1))


@pytest.mark.parametrize('strategy, lines, missing', [
    (Strategy(data=8, zero=3), 'FSDP2Strategy', ''), (Strategy(data=8), 'DDPStrategy', ''),
    (Strategy(data=2, pipeline=4, chunks=2, num_microbatches=8), "schedule='interleaved-1f1b'",
     ''),
    (Strategy(tensor=8), '', 'layers are not split'),
    (Strategy(data=8, recompute='full'), 'DDPStrategy', 'memory budget')])
def test_text_of_the_winner(strategy, lines, missing):
    text, cannot = config_text(strategy)
    assert lines in text and missing in cannot and bool(cannot) == bool(missing)
    if text:
        config = {}
        exec(text, config)
        if strategy.pipeline > 1:
            assert config['strategy'].pop('type') == 'ZeroPPStrategy'
            assert set(config['strategy']) <= keywords('ZeroPPStrategy')


def keywords(name):
    """That a class of vision/pipeline/mm/strategy.py takes, read and not imported: torch and
    MMEngine would be loaded for it."""
    tree = ast.parse((ROOT / 'vision/pipeline/mm/strategy.py').read_text())
    init = next(each for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name
                for each in node.body if getattr(each, 'name', '') == '__init__')
    return {each.arg for each in init.args.kwonlyargs}


def test_text_accumulates_what_the_strategy_does():
    text, _ = config_text(Strategy(data=8, micro_batch=2, num_microbatches=4))
    assert 'batch_size=2' in text and 'accumulative_counts=4' in text
