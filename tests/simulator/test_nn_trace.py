"""Operators of a pass without data: counts worked by hand, lifetimes under torch's tracker."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from vision.common.core.errors import VisionError
from vision.pipeline.core.schedules import make_table
from vision.pipeline.core.tasks import Costs
from vision.pipeline.core.transfers import with_transfers
from vision.simulator.core.compile import Settings
from vision.simulator.core.graph import larger_batch
from vision.simulator.core.rewrite import with_recompute
from vision.simulator.core.stages import compile_stages, stage_costs
from vision.simulator.core.strategy import StrategyTree
from vision.simulator.nn.trace import trace

sys.path.insert(0, str(Path(__file__).parent))
from hand_graphs import Asked

F, I, W = 'forward', 'input_grad', 'weight_grad'  # noqa: E741


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.fc2(self.fc1(x).relu())


def flops_of(graph, name):
    return tuple(sum(op.flops for op in graph.ops_of(name, phase)) for phase in (F, I, W))


def on_meta(make):
    with torch.device('meta'):
        return make()


def test_flops_by_hand_forward_and_both_parts_of_the_backward_apart():
    graph = trace(on_meta(Small), torch.empty(2, 3, 6, 6), how='fake')
    conv = 2 * 2 * 36 * 8 * 27
    assert flops_of(graph, 'conv') == (conv, 0, conv)  # the image needs no gradient
    assert flops_of(graph, 'fc1') == (2 * 2 * 8 * 16,) * 3
    assert flops_of(graph, 'fc2') == (2 * 2 * 16 * 4,) * 3
    products = {op.phase: (op.m, op.n, op.k) for op in graph.ops_of('fc1') if op.kind == 'gemm'}
    assert products == {F: (2, 16, 8), I: (2, 8, 16), W: (16, 8, 2)}
    relu, = (op for op in graph.ops if op.name == 'aten.threshold_backward' and
             op.output_bytes == 2 * 8 * 36 * 4)
    assert relu.phase == I  # although nothing behind it but the first layer's weight follows
    assert [each.name for each in graph.modules if each.name][:2] == ['conv', 'norm']
    assert graph.module('norm').buffer_bytes == 2 * 8 * 4 + 8 and graph.batch_size == 2


@pytest.mark.parametrize('make, shape', [
    (Small, (2, 3, 8, 8)),
    (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(
        16, 2, 32, dropout=0.0, batch_first=True), 2, enable_nested_tensor=False), (2, 5, 16))])
def test_flops_are_those_of_torchs_counter(make, shape):
    graph = trace(on_meta(make), torch.empty(shape), how='fake')
    with FlopCounterMode(display=False) as counter:
        make()(torch.randn(shape)).sum().backward()
    attention = sum(op.flops for op in graph.ops if op.kind == 'attention')
    assert graph.flops() - attention == counter.get_total_flops() > 0
    if shape == (2, 5, 16):  # torch's counter does not know the processor's fused attention
        assert attention == 2 * (2 + 5) * 2 * 2 * 2 * 5 * 5 * 8


def test_every_parameter_is_completed_once_and_its_gradient_is_as_large():
    graph = trace(on_meta(Small), torch.empty(2, 3, 8, 8))
    names = [name for op in graph.ops for name in op.completes]
    assert sorted(names) == sorted(name for name, _ in Small().named_parameters())
    sizes = {each.parameter: each.num_bytes for each in graph.tensors.values() if each.parameter}
    assert sizes == {each.name: each.num_bytes for each in graph.parameters}


def test_what_is_saved_is_what_autograd_saves():
    model, shape, saved = Small(), (2, 3, 8, 8), {}
    graph = trace(model, torch.empty(shape))

    def pack(tensor):
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    inputs = torch.randn(shape)
    outside = {each.untyped_storage()._cdata for each in (
        inputs, *model.parameters(), *model.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(inputs).sum()
    expected = sum(each.untyped_storage().nbytes() for key, each in saved.items()
                   if key not in outside)
    assert loss.requires_grad
    # The loss itself is held by the caller.
    assert sum(op.saved_bytes for op in graph.ops) - loss.nbytes == expected


def test_the_module_stays_as_it_was():
    model = Small().eval()
    before = {name: (id(each), each.clone()) for name, each in (
        *model.named_parameters(), *model.named_buffers())}
    trace(model, torch.randn(2, 3, 8, 8), how='fake')
    trace(model, torch.randn(2, 3, 8, 8), how='real')
    for name, each in (*model.named_parameters(), *model.named_buffers()):
        assert id(each) == before[name][0] and torch.equal(each, before[name][1])
    assert not model.training and not model._forward_hooks
    assert all(each.grad is None for each in model.parameters())


def test_tied_weights_are_one_parameter_and_frozen_ones_have_no_gradient():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 10, bias=False))
    model[2].weight = model[0].weight
    model[1].requires_grad_(False)
    graph = trace(model, torch.zeros(2, 3, dtype=torch.int64))
    assert [each.name for each in graph.parameters if each.is_trained] == ['0.weight']
    assert not graph.ops_of('1', W) and graph.ops_of('1', I)
    assert [op.name for op in graph.ops_of('2', W)] == ['aten.mm']
    assert [name for op in graph.ops for name in op.completes] == ['0.weight']
    assert {each.name: each.shared_with for each in graph.parameters} == {
        '0.weight': ('2',), '1.weight': (), '1.bias': ()}


def test_a_tied_head_in_another_stage_is_stored_there_and_its_gradient_sent():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 10, bias=False))
    model[2].weight = model[0].weight
    graph = trace(model, torch.zeros(2, 3, dtype=torch.int64))
    tree = StrategyTree(2).map('0', (0,)).map('1', (0,)).map('2', (1,))
    table = with_transfers(make_table('1f1b', 2, 1, 2), Costs.uniform(2))
    program = compile_stages(graph, tree, table, Asked(), Settings(optimizer='sgd'))
    tie, = (node for node in program.nodes if node.kind == 'all_reduce')
    assert tie.ranks == (0, 1) and tie.seconds == 4 * 10 * 4
    static = {each.rank: each.num_bytes for name, each in program.buffers.items()
              if name.startswith('static')}
    assert static == {0: 2 * 4 * (40 + 20), 1: 2 * 4 * 40}


def test_what_is_made_again_stays_as_long_as_gradients_of_weights_need_it():
    """The activation's output feeds the second layer's weights; its input the activation alone."""
    graph = trace(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 6)), torch.zeros(2, 4))
    stages = stage_costs(with_recompute(graph, [('0', '1', '2')]), ['0', '1', '2'], [(0, 3)], (0,),
                         Asked(), Settings())
    wide = 4 * 2 * 8
    assert (stages.remade, stages.remade_inputs, stages.remade_weights) == (
        (2 * wide,), (wide,), (wide,))


def test_a_module_with_two_names_is_found_under_both():
    layer = nn.Linear(4, 4, bias=False)
    graph = trace(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(2, 4))
    weight, = graph.parameters
    assert (weight.name, weight.shared_with) == ('0.weight', ('2',))


def test_recomputed_forward_is_told_apart_in_the_backward_pass():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.head = nn.Sequential(nn.Linear(4, 4), nn.GELU()), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(checkpoint(self.block, x, use_reentrant=False))

    graph = trace(on_meta(Again), torch.empty(3, 4))
    assert len([op for op in graph.ops_of('block', F) if op.kind == 'gemm']) == 2


@torch.library.custom_op('simulator_tests::doubled', mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


doubled.register_autograd(lambda context, gradient: gradient * 2)


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return doubled(self.fc(x))


class DependsOnData(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y[y.sum(1) > -1e9].mean()


def test_an_operator_that_says_nothing_is_run_priced_by_bytes_and_listed():
    graph = trace(Custom(), torch.randn(2, 4))
    op, = (op for op in graph.ops if op.name == 'simulator_tests.doubled')
    assert op.bytes_moved == 2 * 2 * 4 * 4 and graph.unpriced() == {op.name: 1}
    assert 'run once for real' in graph.notes[0]


def test_shapes_that_depend_on_data_run_for_real_or_are_refused():
    graph = trace(DependsOnData(4, 4), torch.randn(2, 4))
    assert graph.notes and graph.flops(F) == 2 * 2 * 4 * 4
    with pytest.raises(VisionError, match='VIS-RUN-1611.*does not run without data'):
        trace(on_meta(lambda: DependsOnData(4, 4)), torch.randn(2, 4))


def test_nothing_to_train_is_refused():
    with pytest.raises(VisionError, match='VIS-CONFIG-1610'):
        trace(nn.Linear(2, 2).requires_grad_(False), torch.zeros(1, 2))
    graph = trace(nn.Linear(2, 2).requires_grad_(False), torch.zeros(1, 2), train=False)
    assert graph.flops() == graph.flops(F) == 8


def test_autocast_computes_in_the_smaller_dtype():
    graph = trace(on_meta(Small), torch.empty(2, 3, 8, 8), autocast='bfloat16')
    assert {op.dtype for op in graph.ops if op.kind in ('gemm', 'conv')} == {'bfloat16'}


def test_equal_layers_share_a_number():
    blocks = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 5))
    graph = trace(blocks, torch.empty(2, 4))
    assert graph.module('1').like == graph.module('2').like != graph.module('3').like


def test_a_grown_batch_is_what_a_larger_one_traces():
    small, large = (trace(on_meta(Small), torch.empty(batch, 3, 16, 16)) for batch in (8, 32))
    grown = larger_batch(small, 4)
    assert grown.flops() == large.flops() and grown.batch_size == 32
    moved = [sum(op.bytes_moved for op in graph.ops) for graph in (grown, large)]
    assert moved[0] == pytest.approx(moved[1], rel=0.01)
    sizes = [sum(each.num_bytes for each in graph.tensors.values()) for graph in (grown, large)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
    assert [(op.m, op.n, op.k) for op in grown.ops] == [(op.m, op.n, op.k) for op in large.ops]
