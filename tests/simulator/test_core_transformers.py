import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vision.common.core.errors import VisionError
from vision.simulator.core.graph import INPUT_GRAD, WEIGHT_GRAD
from vision.simulator.core.transformers import (
    Decoder,
    Part,
    backward_of,
    head_forward,
    kept_bytes,
    layer_forward,
)

sys.path.insert(0, str(Path(__file__).parent))
from decoder_graphs import decoder_graph

GPT3 = Decoder(96, 12288, 96, 2048, 51200, attention='plain', dropout=True, dtype='float16')
LLAMA = Decoder(32, 4096, 32, 8192, 128256, kv_heads=8, ffn=14336, is_gated=True, is_tied=False,
                has_positions=False)


def test_parameters_of_known_models():
    assert GPT3.num_parameters == pytest.approx(174.6e9, rel=0.002)
    assert LLAMA.num_parameters == 8_030_261_248  # of the published checkpoint
    gpt2 = Decoder(12, 768, 12, 1024, 50257)
    assert gpt2.num_parameters == 124_439_808  # as well


def test_flops_of_a_layer_are_those_of_the_paper():
    """Narayanan et al. 2021: 24 B s h^2 (1 + s / 6h) for a forward without logits."""
    ops = layer_forward(GPT3, Part(2))
    h, s = GPT3.hidden, GPT3.sequence
    expected = 24 * 2 * s * h * h * (1 + s / (6 * h))
    assert sum(op.flops for op in ops) == pytest.approx(expected)
    assert sum(op.flops for op in backward_of(ops)) == pytest.approx(2 * expected)


def test_model_flops_are_those_of_the_paper():
    """96 B s l h^2 (1 + s / 6h + V / 16lh), of which a quarter is the second forward."""
    h, s, layers, vocabulary = 12288, 2048, 96, 51200
    paper = 96 * s * layers * h * h * (1 + s / (6 * h) + vocabulary / (16 * layers * h))
    assert GPT3.model_flops(s) * 4 / 3 == pytest.approx(paper, rel=1e-3)


@pytest.mark.parametrize('decoder', [GPT3, LLAMA])
def test_tensor_parallel_parts_sum_up_to_the_layer(decoder):
    whole = sum(op.flops for op in layer_forward(decoder, Part(1)))
    assert 8 * sum(op.flops for op in layer_forward(decoder, Part(1, 8))) == pytest.approx(whole)
    outer = [op for op in layer_forward(decoder, Part(1, 8, True)) if op.kind == 'norm']
    plain = [op for op in layer_forward(decoder, Part(1, 8)) if op.kind == 'norm']
    assert sum(op.bytes_moved for op in plain) == 8 * sum(op.bytes_moved for op in outer)


def test_kept_bytes_are_those_of_the_paper():
    """Korthikanti et al. 2022, table 2: s b h (34 + 5 a s / h), 34 with selective recomputation,
    over t with sequence parallel, 2 with full."""
    s, b, h, a = 2048, 1, 12288, 96
    unit = s * b * h
    whole, split = Part(b), Part(b, 8, True)
    expected = unit * (34 + 5 * a * s / h)
    assert kept_bytes(GPT3, whole, 'none') == pytest.approx(expected, rel=0.03)
    assert kept_bytes(GPT3, whole, 'selective') == pytest.approx(34 * unit, rel=0.06)
    assert kept_bytes(GPT3, split, 'selective') == pytest.approx(34 * unit / 8, rel=0.06)
    assert kept_bytes(GPT3, whole, 'full') == 2 * unit


def test_less_is_kept_the_more_is_computed_again():
    for decoder in (GPT3, LLAMA):
        kept = [kept_bytes(decoder, Part(1), each) for each in ('full', 'half', 'selective',
                                                               'none')]
        assert kept == sorted(kept)


def test_backward_shapes_of_a_product():
    forward = [op for op in layer_forward(LLAMA, Part(1)) if op.name == 'fc2']
    inputs, weights = backward_of(forward)
    assert (inputs.phase, inputs.m, inputs.n, inputs.k) == (INPUT_GRAD, 8192, 14336, 4096)
    assert (weights.phase, weights.m, weights.n, weights.k) == (WEIGHT_GRAD, 4096, 14336, 8192)


def test_eight_bit_products_pay_for_their_casts():
    eight = Decoder(1, 4096, 32, 2048, 1000, gemm_dtype='float8_e4m3fn')
    sixteen = Decoder(1, 4096, 32, 2048, 1000)
    names = [op.name for op in layer_forward(eight, Part(1))]
    assert names.count('cast') == 8 and 'cast' not in [
        op.name for op in layer_forward(sixteen, Part(1))]
    assert 'cast' not in [op.name for op in head_forward(eight, Part(1))]


def test_graph_has_each_weight_once():
    decoder = Decoder(3, 64, 4, 16, 100, is_gated=True, is_tied=False, has_positions=False)
    graph = decoder_graph(decoder, 2)
    norms = 3 * 2 * 64 + 64
    assert sum(each.num_elements for each in graph.parameters) == decoder.num_parameters - norms
    modules = graph.by_name
    assert all(op.module in modules for op in graph.ops)
    part = sum(op.flops for op in layer_forward(decoder, Part(2)))
    inside = sum(op.flops for op in graph.ops_of('layers.1', 'forward'))
    assert inside == pytest.approx(part)
    assert graph.flops(INPUT_GRAD, WEIGHT_GRAD) >= 2 * graph.flops('forward')


@pytest.mark.parametrize('sizes, code', [((0, 64, 4, 16, 100), 1643), ((1, 65, 4, 16, 100), 1649)])
def test_impossible_sizes_are_refused(sizes, code):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}'):
        Decoder(*sizes)


def test_heads_of_keys_divide_the_heads():
    with pytest.raises(VisionError, match='VIS-CONFIG-1649'):
        Decoder(1, 64, 4, 16, 100, kv_heads=3)


@pytest.mark.parametrize('decoder', [GPT3, LLAMA, replace(GPT3, attention='fused'),
                                     replace(LLAMA, is_compiled=True),
                                     replace(LLAMA, attention='plain')])
@pytest.mark.parametrize('part', [Part(1), Part(2, 8), Part(2, 8, True)])
def test_a_layer_saves_what_is_counted_as_kept(decoder, part):
    forward = layer_forward(decoder, part)
    saved = sum(op.saved_bytes for op in forward)
    assert saved == pytest.approx(kept_bytes(decoder, part, 'none'))
    products = {op.name: op for op in forward if op.kind == 'gemm'}
    assert products['proj'].saved_bytes == products['fc2'].saved_bytes == 0  # the sum is kept
    assert all(op.saved_bytes == 0 for op in backward_of(forward))


def test_gradients_are_as_large_as_what_was_read():
    inputs, weights = backward_of([op for op in layer_forward(LLAMA, Part(1))
                                   if op.name == 'fc2'])
    assert inputs.output_bytes == 2 * 8192 * 14336
    assert weights.output_bytes == 2 * 4096 * 14336
    left, right = backward_of([op for op in layer_forward(GPT3, Part(1))
                               if op.name == 'context'])
    assert left.output_bytes == 2 * 96 * 2048 * 2048 and right.output_bytes == 2 * 2048 * 12288
