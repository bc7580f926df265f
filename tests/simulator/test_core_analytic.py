from dataclasses import replace
from pathlib import Path

import pytest

from vision.common.core.errors import VisionError
from vision.pipeline.core.schedules import make_table
from vision.pipeline.core.simulate import simulate
from vision.pipeline.core.tasks import Costs
from vision.simulator.core.analytic import Strategy, makespan, predict, stage_layers
from vision.simulator.core.cluster import read_cluster
from vision.simulator.core.pricing import Prices
from vision.simulator.core.transformers import Decoder

CLUSTERS = Path(__file__).resolve().parents[2] / 'configs' / 'clusters'
SMALL = Decoder(24, 2048, 16, 1024, 50304)


def step(decoder=SMALL, *, nodes=1, preset='a100-dgx', change=None, **strategy):
    cluster = replace(read_cluster(CLUSTERS / f'{preset}.yaml'), num_nodes=nodes)
    if change:
        cluster = change(cluster)
    return predict(decoder, Strategy(**strategy), Prices(cluster))


def test_parts_sum_up():
    prediction = step(data=2, pipeline=4, num_microbatches=8)
    assert sum(prediction.parts.values()) == prediction.seconds
    assert sum(prediction.memory.values()) == prediction.peak_bytes
    assert prediction.parts['pipeline bubble'] > 0 < prediction.parts['gradients']
    assert 'assumed' in prediction.notes


def test_twice_the_micro_batches_take_twice_the_time_but_for_the_step():
    one, two = (step(num_microbatches=count).parts['busiest stage'] for count in (4, 8))
    assert two == pytest.approx(2 * one)


def test_full_recomputation_costs_a_third_and_saves_most():
    plain, again = (step(recompute=each, micro_batch=8) for each in ('none', 'full'))
    ratio = again.parts['busiest stage'] / plain.parts['busiest stage']
    assert 1.25 < ratio < 1.36
    assert again.memory['activations'] < plain.memory['activations'] / 10


def test_sharded_states_are_divided():
    whole = step(data=8)
    for zero, kinds in ((1, 'optimizer'), (2, 'optimizer gradients'),
                        (3, 'optimizer gradients weights')):
        sharded = step(data=8, zero=zero)
        for kind in ('optimizer', 'gradients', 'weights'):
            factor = 8 if kind in kinds.split() else 1
            assert sharded.memory[kind] == pytest.approx(whole.memory[kind] / factor)


def test_a_pipeline_gathers_once_a_step():
    few, many = (step(nodes=8, data=16, pipeline=4, zero=3, num_microbatches=count)
                 for count in (8, 16))
    assert few.parts['parameters'] == many.parts['parameters'] > 0
    assert few.memory['gathered'] > 4 * step(data=8, zero=3).memory['gathered'] / 4
    assert step(data=8, zero=3).parts['parameters'] == 0  # beside its layers


def test_slow_adapters_are_felt_between_nodes_only():
    def slow(cluster):
        inter = replace(cluster.links['inter'], rate=1e9)
        return replace(cluster, links={**cluster.links, 'inter': inter})

    for nodes, data in ((1, 8), (4, 32)):
        fast = step(nodes=nodes, data=data).seconds
        assert (step(nodes=nodes, data=data, change=slow).seconds > 1.05 * fast) == (nodes > 1)


def test_gradients_beside_the_backward_cost_less():
    shown, hidden = (step(nodes=4, data=32, micro_batch=8, is_overlapped=each)
                     for each in (False, True))
    assert hidden.parts['gradients'] < 0.4 * shown.parts['gradients']


def test_context_parallel_shares_the_sequence():
    long = replace(SMALL, sequence=16384)
    one, four = step(long), step(long, context=4)
    assert four.memory['activations'] == pytest.approx(one.memory['activations'] / 4)
    assert one.parts['busiest stage'] / 4 < four.parts['busiest stage'] \
        < one.parts['busiest stage'] / 3


@pytest.mark.parametrize('chunks, count', [(1, 40), (1, 43), (3, 40), (2, 24)])
def test_folded_steps_are_those_of_the_whole_table(chunks, count):
    """Uneven stages: the last is longer, as with logits."""
    ranks = 4
    forward = tuple(1.0 + 0.5 * (stage == ranks * chunks - 1) for stage in range(ranks * chunks))
    backward = tuple(2 * each for each in forward)
    name = 'interleaved-1f1b' if chunks > 1 else '1f1b'
    costs = Costs(forward, backward, (0.0,) * len(forward), latency=0.125)
    expected = simulate(make_table(name, ranks, chunks, count), costs).makespan
    assert makespan('1f1b', ranks, chunks, count, forward, backward, 0.125) \
        == pytest.approx(expected, rel=1e-9)


def test_layers_that_do_not_divide_stay_off_the_ends():
    assert stage_layers(60, 16) == (3, *[4] * 12, 3, 3, 3)
    assert sum(stage_layers(126, 16)) == 126 and stage_layers(8, 4) == (2, 2, 2, 2)


@pytest.mark.parametrize('fault', [dict(tensor=3), dict(pipeline=64), dict(recompute='some'),
                                   dict(zero=4), dict(micro_batch=0)])
def test_strategies_that_do_not_divide_are_refused(fault):
    with pytest.raises(VisionError, match='VIS-CONFIG-1644'):
        step(**fault)


def test_a_step_of_512_devices_is_quick():
    """Folded, so that the number of micro-batches does not matter. The time is measured by
    benchmarks, here only that the table stays short."""
    llama = Decoder(32, 4096, 32, 8192, 128256, kv_heads=8, ffn=14336, is_gated=True)
    prediction = step(llama, nodes=64, data=32, tensor=2, pipeline=8, num_microbatches=1024,
                      recompute='full')
    assert prediction.fits and prediction.seconds > 0
