"""Strategies on small graphs: collectives and bytes counted by hand."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from vision.common.core.errors import VisionError
from vision.simulator.core.compile import Settings, compile_strategy, local_graph
from vision.simulator.core.engine import run
from vision.simulator.core.graph import FORWARD, INPUT_GRAD, WEIGHT_GRAD, larger_batch
from vision.simulator.core.issue_order import peak_in_issue_order
from vision.simulator.core.program import COMPUTE, D2H, FEATURE, GRADIENT, H2D
from vision.simulator.core.rewrite import with_recompute, with_tensors
from vision.simulator.core.strategy import StrategyTree
from vision.simulator.core.tensor_parallel import split_features
from vision.simulator.core.transformers import Decoder

sys.path.insert(0, str(Path(__file__).parent))
from decoder_graphs import decoder_graph
from hand_graphs import HIDDEN, INNER, ROWS, Asked, mlp_layers
from unfolding import unfolded

WEIGHTS = 4 * (2 * 2 * HIDDEN * INNER + 2 * HIDDEN)  # bytes of two layers
LAYER = WEIGHTS // 2
FEATURES = 4 * ROWS * HIDDEN


def compiled(tree, settings=None, graph=None):
    asked = Asked()
    return compile_strategy(graph or mlp_layers(), tree, asked, settings or Settings()), asked


def sums(asked):
    return Counter({kind: sum(size for each, size, _ in asked.sent if each == kind)
                    for kind, _, _ in asked.sent})


def test_one_rank_sends_nothing_and_computes_all():
    program, asked = compiled(StrategyTree(1))
    assert asked.sent == [] and asked.flops >= mlp_layers().flops()
    assert {node.stream for node in program.nodes} == {COMPUTE}


def test_data_parallel_reduces_every_gradient_once_in_buckets():
    tree = StrategyTree(4).split('', 'batch', 4)
    program, asked = compiled(tree)
    assert asked.sent == [('all_reduce', WEIGHTS, 4)]  # all below the first bucket's 1 MB
    settings = Settings(first_bucket_bytes=1000, bucket_bytes=2000)
    program, asked = compiled(tree, settings)
    weight = 4 * HIDDEN * INNER
    # down.1 closes the first (1024 B), up.1 + norm.1 + down.0 the second, the rest the third.
    assert [size for _, size, _ in asked.sent] == [weight, 2 * weight + 32, weight + 32]
    reduces = [at for at, node in enumerate(program.nodes) if node.stream == GRADIENT]
    compute = [at for at, node in enumerate(program.nodes) if node.stream == COMPUTE]
    assert reduces[0] < compute[-2]  # issued while the backward pass goes on
    assert set(program.nodes[compute[-1]].after) >= {reduces[-1]}  # the optimizer waits


def test_gradients_of_several_microbatches_are_reduced_once():
    _, asked = compiled(StrategyTree(2).split('', 'batch', 2), Settings(num_microbatches=3))
    assert asked.sent == [('all_reduce', WEIGHTS, 2)]


@pytest.mark.parametrize('zero, expected', [
    (1, dict(all_reduce=WEIGHTS, all_gather=WEIGHTS)),
    (2, dict(reduce_scatter=WEIGHTS, all_gather=WEIGHTS))])
def test_zero_1_and_2(zero, expected):
    tree = StrategyTree(4).split('', 'batch', 4).shard('', zero=zero)
    program, asked = compiled(tree)
    assert sums(asked) == expected
    assert program.buffers['optimizer'].num_bytes == 2 * WEIGHTS // 4
    gradients = [each for name, each in program.buffers.items() if 'gradient shard' in name]
    assert [each.num_bytes for each in gradients] == ([] if zero == 1 else [WEIGHTS // 4])


def test_zero_3_gathers_each_unit_forward_and_backward_and_reduces_it_once():
    tree = StrategyTree(4).split('', 'batch', 4).shard('', zero=3).shard('layers.*', zero=3)
    program, asked = compiled(tree)
    assert Counter(asked.sent) == {('all_gather', LAYER, 4): 4, ('reduce_scatter', LAYER, 4): 2}
    names = [node.name for node in program.nodes if node.kind in ('all_gather', 'F', 'B', 'I',
                                                                  'reduce_scatter', 'copy_out')]
    first = {name: names.index(name) for name in names}
    assert first['gather layers.0'] < first['copy out layers.0'] < first['F layers.0.norm']
    # Backward, the gather of the layer before is issued ahead of this layer's compute.
    last = len(names) - 1 - names[::-1].index('gather layers.0')
    assert last < first['B layers.1.down'] < first['reduce layers.1']
    shards = [each.num_bytes for name, each in program.buffers.items() if 'shard of' in name
              and each.category == 'parameters']
    assert shards == [LAYER // 4] * 2


def test_what_is_gathered_may_have_a_dtype_of_its_own():
    tree = StrategyTree(4).split('', 'batch', 4).shard('', zero=3)
    program, asked = compiled(tree, Settings(gathered_bytes=2))
    assert sums(asked) == dict(all_gather=WEIGHTS // 2, reduce_scatter=WEIGHTS)
    sizes = {name: each.num_bytes for name, each in program.buffers.items()}
    assert sizes['shard of the model'] == WEIGHTS // 4
    assert sizes['parameters 1 of the model.0'] == WEIGHTS // 2


def test_parameters_that_do_not_divide_are_padded():
    tree = StrategyTree(3).split('', 'batch', 3).shard('', zero=3)
    _, asked = compiled(tree)
    padded = 4 * 2 * (33 * HIDDEN + 9 * INNER + 9)
    assert {size for _, size, _ in asked.sent} == {padded}


def test_a_pair_of_layers_reduces_once_each_way():
    tree = StrategyTree(4).split('layers.*.up', 'out', 4).split('layers.*.down', 'in', 4)
    program, asked = compiled(tree)
    assert asked.sent == [('all_reduce', FEATURES, 4)] * 4  # two layers, forward and backward
    assert {node.stream for node in program.nodes if node.kind == 'all_reduce'} == {FEATURE}
    graph = mlp_layers()
    local = split_features(with_tensors(graph), tree.spread(graph))
    products = [op for op in graph.ops if op.kind == 'gemm']
    parts = [op for op in local.ops if op.kind == 'gemm']
    assert all(part.flops == whole.flops / 4 == 2.0 * part.m * part.n * part.k
               and part.bytes_moved == 4 * (part.m * part.n + part.n * part.k + part.m * part.k)
               for part, whole in zip(parts, products, strict=True))
    assert local.parameters_bytes == (WEIGHTS - 64) // 4 + 64  # norms are whole
    acts = [op for op in local.ops_of('layers.0.act', FORWARD)]
    assert acts[0].saved_bytes == 4 * ROWS * INNER // 4


def test_layers_as_a_region_cost_the_same_as_the_pair():
    whole = StrategyTree(2).split('layers.*.up', 'heads', 2)
    graph = mlp_layers()
    local = split_features(with_tensors(graph), whole.spread(graph))
    kinds = Counter((op.name, op.phase) for op in local.ops if op.kind == 'collective')
    assert kinds == {('all_reduce', FORWARD): 2, ('all_reduce', INPUT_GRAD): 2}


def test_parts_without_a_partner_are_gathered():
    tree = StrategyTree(2).split('layers.0.down', 'out', 2)
    _, asked = compiled(tree)
    assert sorted(asked.sent) == [('all_gather', FEATURES, 2),
                                  ('all_reduce', 4 * ROWS * INNER, 2)]


def test_sequence_parallel_gathers_and_scatters_instead():
    tree = StrategyTree(2).split('', 'sequence', 2)
    tree.split('layers.*.up', 'out', 2).split('layers.*.down', 'in', 2)
    _, asked = compiled(tree)
    assert Counter(kind for kind, _, _ in asked.sent) == dict(all_gather=4, reduce_scatter=4)
    assert {size for _, size, _ in asked.sent} == {FEATURES}
    graph = mlp_layers()
    local = split_features(with_tensors(graph), tree.spread(graph))
    norm, = local.ops_of('layers.0.norm', FORWARD)
    assert norm.saved_bytes == FEATURES // 2


def test_recompute_runs_the_forward_again_and_holds_less():
    graph = larger_batch(mlp_layers(4), 10)
    lean = Settings(optimizer='sgd', optimizer_form='fused')
    plain, _ = compiled(StrategyTree(1), lean, graph)
    program, asked = compiled(StrategyTree(1).recompute('layers.*'), lean, graph)
    again = [node for node in program.nodes if node.kind == 'recompute']
    assert len(again) >= 4
    first = next(at for at, node in enumerate(program.nodes) if node.kind == 'recompute')
    assert program.nodes[first].name.startswith('recompute layers.3')
    # At the beginning of the backward pass four layers kept three of their four outputs, and one
    # layer does now.
    kept = 4 * ROWS * (HIDDEN + 2 * INNER)
    saved = peak_in_issue_order(plain)[0] - peak_in_issue_order(program)[0]
    assert saved == pytest.approx(10 * 3 * kept, abs=LAYER)  # gradients are at other places
    changed = with_recompute(with_tensors(graph), [['layers.0']])
    extra = changed.flops() - graph.flops()
    assert extra == 10 * 2.0 * ROWS * HIDDEN * INNER  # all but the layer's last operator


def test_every_tensor_ends_once_whatever_is_rewritten():
    for verb in ('recompute', 'offload'):
        tree = StrategyTree(1)
        getattr(tree, verb)('layers.*')
        graph = local_graph(mlp_layers(3), tree.spread(mlp_layers(3)), Asked())
        begun = Counter(key for op in graph.ops for key in op.begins)
        ended = Counter(key for op in graph.ops for key in op.ends)
        gradients = {key for key, each in graph.tensors.items() if each.category == 'gradients'}
        assert set(begun.values()) == {1} == set(ended.values())
        assert set(begun) - set(ended) == gradients and set(ended) <= set(begun)


def test_offload_goes_out_and_comes_back_one_layer_ahead():
    program, asked = compiled(StrategyTree(1).offload('layers.*'), graph=mlp_layers(3))
    out = [node for node in program.nodes if node.stream == D2H]
    back = [node for node in program.nodes if node.stream == H2D]
    assert len(out) == len(back) == 3 and sorted(asked.copied)[0] > 0
    assert [node.name for node in back] == [f'h2d layers.{n}' for n in (2, 1, 0)]
    names = [node.name for node in program.nodes]
    assert names.index('h2d layers.1') < max(
        at for at, name in enumerate(names) if ' layers.2' in name)
    first = next(node for node in program.nodes if node.name == 'B layers.1.down')
    assert names.index('h2d layers.1') in first.after
    run(program)


def test_a_copy_back_is_waited_for_by_its_own_layer():
    """layers.10 is not inside of layers.1."""
    program, _ = compiled(StrategyTree(1).offload('layers.*'), graph=mlp_layers(11))
    names = [node.name for node in program.nodes]
    for n in (1, 10):
        first = next(node for node in program.nodes if node.name == f'B layers.{n}.down')
        assert names.index(f'h2d layers.{n}') in first.after


def test_sums_inside_of_a_region_are_made_again_too():
    """Of two layers in one region the first one's output is summed a second time."""
    tree = StrategyTree(2).split('layers.*.up', 'out', 2).split('layers.*.down', 'in', 2)
    _, asked = compiled(tree.recompute(''))
    assert asked.sent == [('all_reduce', FEATURES, 2)] * 5


def test_the_folded_program_takes_as_long_as_all_its_ranks():
    tree = StrategyTree(4).split('', 'batch', 2).split('layers.*.up', 'out', 2)
    tree.split('layers.*.down', 'in', 2)
    graph = mlp_layers()
    spread = tree.spread(graph)
    folded = compile_strategy(graph, tree, Asked())
    whole = unfolded(folded, spread.dp, spread.tp)
    assert folded.replicas == 4 and whole.num_ranks == 4
    one, four = run(folded), run(whole)
    assert one.makespan == four.makespan
    assert {four.peak(rank).num_bytes for rank in range(4)} == {one.peak(0).num_bytes}
    groups = {node.ranks for node in whole.nodes}
    assert groups == {(0,), (1,), (2,), (3,), (0, 1), (2, 3), (0, 2), (1, 3)}


def test_children_inherit_and_later_rules_win():
    tree = StrategyTree(8).split('', 'batch', 4).split('layers.0', 'heads', 2)
    tree.recompute('layers.*').offload('layers.1')
    layouts = tree.spread(mlp_layers()).layouts
    assert layouts['layers.0.up'].parts == 2 and layouts['layers.1.up'].parts == 1
    assert layouts['layers.0.act'].is_recomputed and not layouts['layers.0.act'].is_offloaded
    assert layouts['layers.1.act'].is_offloaded and not layouts['layers.1.act'].is_recomputed
    assert {each.batch for each in layouts.values()} == {4}


@pytest.mark.parametrize('make, code, text', [
    (lambda: StrategyTree(8).split('', 'batch', 3), 1620, 'need 3 ranks, there are 8'),
    (lambda: StrategyTree().split('layers.0.up', 'out', 3), 1623, '3 parts of 32 features'),
    (lambda: StrategyTree().split('layers.0.norm', 'out', 2), 1621, 'LayerNorm'),
    (lambda: StrategyTree().split('layers.0', 'depth', 2), 1621, 'no such dimension'),
    (lambda: StrategyTree().split('', 'batch', 2).split('layers.0', 'batch', 3), 1624,
     'modules in 2 parts and others in 3'),
    (lambda: StrategyTree().split('', 'batch', 4).split('layers.0', 'batch', 2).shard('', zero=1),
     1621, 'differ in their parts'),
    (lambda: StrategyTree().split('', 'sequence', 2).split('layers.0', 'batch', 2), 1621,
     'differ in their parts'),
    (lambda: StrategyTree().shard('', zero=2), 1621, 'share'),
    (lambda: StrategyTree().recompute('layers.7'), 1622, "no module 'layers.7'"),
    (lambda: StrategyTree(4).split('', 'batch', 2).map('layers.0', (0, 1)).map(
        'layers.1', (1, 2)), 1621, 'two stages'),
])
def test_what_does_not_go_together_is_refused(make, code, text):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}(.|\n)*{text}'):
        make().spread(mlp_layers())


def test_gradients_of_weights_are_told_by_phase():
    program, _ = compiled(StrategyTree(1))
    kinds = {node.kind for node in program.nodes}
    assert kinds <= {'F', 'I', 'W', 'B', 'optimizer'} and {'F', 'optimizer'} <= kinds
    assert WEIGHT_GRAD in {op.phase for op in mlp_layers().ops}


def test_an_analytic_decoder_is_compiled_as_a_trace_is():
    """Two all-reduces a layer and direction (Megatron-LM), gathers of each unit twice."""
    decoder = Decoder(layers=2, hidden=64, heads=4, sequence=32, vocabulary=100)
    graph = decoder_graph(decoder, 1)
    tree = StrategyTree(8).split('', 'batch', 4).shard('', zero=3).shard('layers.*', zero=3)
    for first, last in (('qkv', 'proj'), ('fc1', 'fc2')):
        tree.split(f'layers.*.{first}', 'out', 2).split(f'layers.*.{last}', 'in', 2)
    _, asked = compiled(tree, graph=graph)
    features = 2 * 32 * 64
    assert Counter(each for each in asked.sent if each[0] == 'all_reduce') == {
        ('all_reduce', features, 2): 8}
    layer = 2 * 12 * 64 * 64 // 2
    assert asked.sent.count(('all_gather', layer, 4)) == 4
    assert asked.sent.count(('reduce_scatter', layer, 4)) == 2


@pytest.mark.parametrize('is_sequence', [False, True])
def test_tensor_parallel_splits_what_lies_between_a_pair(is_sequence):
    """One layer of a gated decoder over two ranks. Whole, of T tokens and 16 bits: input of the
    second norm and the layer's output, both norms' outputs; halved: q, k, v, the attention's
    output, gate, up, activation, product. A split sequence halves the first four too."""
    tokens, hidden, kv, inner = 32, 64, 32, 160
    decoder = Decoder(layers=2, hidden=hidden, heads=4, sequence=tokens, vocabulary=100,
                      kv_heads=2, ffn=inner, is_gated=True)
    graph = decoder_graph(decoder, 1)
    tree = StrategyTree(2)
    if is_sequence:
        tree.split('', 'sequence', 2)
    for outs, last in ((('qkv',), 'proj'), (('gate', 'up'), 'fc2')):
        for name in outs:
            tree.split(f'layers.*.{name}', 'out', 2)
        tree.split(f'layers.*.{last}', 'in', 2)
    outer = 2 * tokens * 4 * hidden
    between = 2 * tokens * (hidden + 2 * kv + hidden + 4 * inner)

    def kept(local):
        early = {key for op in local.ops if op.phase == FORWARD for key in op.ends}
        return sum(local.tensors[key].num_bytes for op in local.ops_of('layers.1', FORWARD)
                   for key in op.begins if key not in early)

    assert kept(with_tensors(graph)) == outer + between
    assert kept(local_graph(graph, tree.spread(graph), Asked())) == \
        outer // (2 if is_sequence else 1) + between // 2
