"""Modules split in different ways one behind the other: collectives counted by hand, and laws."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from vision.pipeline.core.schedules import make_table
from vision.pipeline.core.transfers import with_transfers
from vision.simulator.core.compile import Settings, compile_strategy, local_graph
from vision.simulator.core.graph import FORWARD, INPUT_GRAD, WEIGHT_GRAD
from vision.simulator.core.mixed import split_mixed
from vision.simulator.core.program import FEATURE, GRADIENT
from vision.simulator.core.rewrite import with_tensors
from vision.simulator.core.stages import compile_stages, stage_costs
from vision.simulator.core.strategy import StrategyTree
from vision.simulator.core.tensor_parallel import split_features

sys.path.insert(0, str(Path(__file__).parent))
from hand_graphs import HIDDEN, INNER, ROWS, Asked, mlp_layers

# Of one of four parts of the batch.
FEATURES, WIDE = 4 * ROWS * HIDDEN, 4 * ROWS * INNER
LAYER = 4 * (2 * HIDDEN * INNER + HIDDEN)


def by_features(tree, name):
    """A layer with the whole batch on each of four ranks, and a quarter of its inner features."""
    tree.split(name, 'batch', 1)
    return tree.split(f'{name}.up', 'out', 4).split(f'{name}.down', 'in', 4)


def four():
    return StrategyTree(4).split('', 'batch', 4)


def only_down():
    return four().split('layers.0.down', 'batch', 1).split('layers.0.down', 'out', 4)


def changes(tree):
    """(kind, bytes, ranks, forward or backward) of collectives between the features' layouts."""
    graph = local_graph(mlp_layers(), tree.spread(mlp_layers()), Asked())
    return [(op.name, op.bytes_moved, op.ranks, op.phase) for op in graph.ops
            if op.kind == 'collective']


ALL = (0, 1, 2, 3)


def test_parts_of_the_batch_before_parts_of_features():
    """The whole batch is gathered for the layer; backward, the gradient of what was gathered is
    a sum over four, of which each rank then has its samples. The output is summed."""
    assert changes(by_features(four(), 'layers.1')) == [
        ('all_gather', 4 * FEATURES, ALL, FORWARD), ('all_reduce', 4 * FEATURES, ALL, FORWARD),
        ('all_reduce', 4 * FEATURES, ALL, INPUT_GRAD)]


def test_parts_of_features_before_parts_of_the_batch():
    """Partial sums become samples by a reduce-scatter, and their gradients are gathered."""
    assert changes(by_features(four(), 'layers.0')) == [
        ('reduce_scatter', 4 * FEATURES, ALL, FORWARD),
        ('all_gather', 4 * FEATURES, ALL, INPUT_GRAD),
        ('all_reduce', 4 * FEATURES, ALL, INPUT_GRAD)]


def test_one_layer_split_by_features_among_layers_split_by_the_batch():
    """Proteus's expert strategy for convolutional networks, whose classifier is split by outputs.
    Features become samples, and back, by an all-to-all of what a rank has."""
    assert changes(only_down()) == [
        ('all_gather', 4 * WIDE, ALL, FORWARD), ('all_to_all', FEATURES, ALL, FORWARD),
        ('all_to_all', FEATURES, ALL, INPUT_GRAD), ('reduce_scatter', 4 * WIDE, ALL, INPUT_GRAD)]


def test_what_was_gathered_is_kept_for_the_gradient_of_the_weights():
    program = compile_strategy(mlp_layers(), only_down(), Asked())
    gather = next(node for node in program.nodes if node.kind == 'all_gather')
    name, = gather.begins
    assert program.buffers[name].num_bytes == 4 * WIDE and gather.stream == FEATURE
    assert program.buffers[name].category == 'activations'
    end, = (node for node in program.nodes if name in node.ends)
    assert 'layers.0.down' in end.name and end.kind in 'BW'
    assert gather in [program.nodes[at] for at in next(
        node for node in program.nodes if node.name == 'F layers.0.down').after]


def test_gradients_are_reduced_by_the_ranks_that_have_other_samples():
    asked = Asked()
    program = compile_strategy(mlp_layers(), only_down(), asked)
    reduces = [node for node in program.nodes if node.stream == GRADIENT]
    # Every matrix but the one that is split, once.
    assert [node.seconds for node in reduces] == [2 * LAYER - 4 * HIDDEN * INNER]
    tree = StrategyTree(4).split('', 'batch', 4).split('layers.1', 'batch', 2)
    tree.split('layers.1.up', 'out', 2).split('layers.1.down', 'in', 2)
    asked = Asked()
    program = compile_strategy(mlp_layers(), tree, asked, Settings())
    half = LAYER // 2 + 2 * HIDDEN  # its norm is whole
    assert [each for each in asked.sent if each[1] in (LAYER, half)] == [
        ('all_reduce', half, 2), ('all_reduce', LAYER, 4)]


@pytest.mark.parametrize('make, times', [
    (lambda: by_features(four(), 'layers.1'), 1), (only_down, 1),
    (lambda: four().split('layers.1', 'batch', 2), 1.5),  # twice the samples on a half of ranks
    (lambda: four().split('layers.1', 'batch', 1), 2.5)])
def test_ranks_do_all_of_the_work_together(make, times):
    """Four ranks with the whole model's FLOPs for four parts of the batch; where a layer has fewer
    parts than there are ranks, as often as it is done again."""
    graph = mlp_layers()
    local = local_graph(graph, make().spread(graph), Asked())
    products = [op for op in local.ops if op.kind == 'gemm']
    for phase in (FORWARD, INPUT_GRAD, WEIGHT_GRAD):
        assert 4 * local.flops(phase) == times * 4 * graph.flops(phase)
    assert all(op.flops == 2.0 * op.m * op.n * op.k for op in products)


@pytest.mark.parametrize('make', [lambda: by_features(four(), 'layers.1'),
                                  lambda: by_features(four(), 'layers.0'), only_down,
                                  lambda: only_down().recompute('layers.*'),
                                  lambda: only_down().offload('layers.*')])
def test_every_tensor_ends_once(make):
    graph = local_graph(mlp_layers(), make().spread(mlp_layers()), Asked())
    begun = Counter(key for op in graph.ops for key in op.begins)
    ended = Counter(key for op in graph.ops for key in op.ends)
    gradients = {key for key, each in graph.tensors.items() if each.category == 'gradients'}
    assert set(begun.values()) == {1} == set(ended.values())
    assert set(begun) - set(ended) == gradients and set(ended) <= set(begun)
    compile_strategy(mlp_layers(), make(), Asked())


def test_different_degrees_of_the_same_kind_are_compiled_too():
    """Two parts and then four: both close their sums among their own ranks."""
    tree = StrategyTree(4)
    for name, parts in (('layers.0', 2), ('layers.1', 4)):
        tree.split(f'{name}.up', 'out', parts).split(f'{name}.down', 'in', parts)
    assert changes(tree) == [
        ('all_reduce', FEATURES, (0, 1), FORWARD), ('all_reduce', FEATURES, ALL, FORWARD),
        ('all_reduce', FEATURES, ALL, INPUT_GRAD), ('all_reduce', FEATURES, (0, 1), INPUT_GRAD)]


@pytest.mark.parametrize('splits', [
    [('up', 'out'), ('down', 'in')], [('down', 'out')], [('up', 'in')], [('up', 'heads')],
    [('up', 'out')]])
def test_modules_that_do_not_differ_are_split_as_in_a_grid(splits):
    """Two roads to one truth: layouts one by one, and regions between whole features."""
    tree = StrategyTree(4).split('', 'batch', 2)
    for name, dim in splits:
        tree.split(f'layers.*.{name}', dim, 2)
    graph = with_tensors(mlp_layers())
    spread = tree.spread(graph)
    grid, chain = split_features(graph, spread), split_mixed(graph, spread, Asked().quote).graph
    assert chain.parameters == grid.parameters

    def told(local, is_collective):
        return [(op.name, op.phase, op.flops, op.bytes_moved) for op in local.ops
                if (op.kind == 'collective') == is_collective]

    assert told(chain, True) == told(grid, True)
    if splits != [('up', 'out')]:  # behind which the chain gathers a layer later
        assert told(chain, False) == told(grid, False)


def test_samples_of_some_ranks_become_features_of_others():
    """Ranks 0 and 1 have half of the samples each; 2 and 3 need all of them, from both: two
    messages from each, one after the other. Back, each gets its own samples."""
    names, graph, asked = [f'layers.{n}' for n in range(4)], mlp_layers(4), Asked()
    tree = StrategyTree(4).split('', 'batch', 2)
    for n, name in enumerate(names):
        tree.map(name, (2, 3) if n == 3 else (0, 1))
    tree.split('layers.3', 'batch', 1)
    tree.split('layers.3.up', 'out', 2).split('layers.3.down', 'in', 2)
    costs = stage_costs(graph, names, [(0, 3), (3, 4)], (0, 1), Asked(), Settings()).costs
    table = with_transfers(make_table('1f1b', 2, 1, 4), costs)
    program = compile_stages(graph, tree, table, asked, Settings())
    assert {node.latency for node in program.nodes if node.kind == 'send'} == {2.0 * FEATURES}
    reduces = [node for node in program.nodes if node.kind == 'all_reduce']
    assert [(node.ranks, node.seconds) for node in reduces] == [((0,), 3.0 * LAYER)]
    # The second stage has twice the samples; what it takes from the first is all of them.
    layer = 2 * (2 * FEATURES + 2 * WIDE // 2)
    assert program.buffers['activation of stage 1, 0'].num_bytes == layer + 2 * FEATURES
    assert program.replicas == 2
