"""What would give a wrong gradient is found, named, or refused; what fails leaves nothing."""

import gc
import re
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))
from memory_nets import NETS, ResNet, differences, train

from vision.common.core.errors import VisionError
from vision.memory.nn import nodes
from vision.memory.nn.manager import MemoryBudget

LIBRARY = torch.library.Library('memory_tests', 'DEF')
LIBRARY.define('scaled(Tensor x) -> Tensor')
LIBRARY.define('hungry(Tensor x) -> Tensor')
LIBRARY.define('once(Tensor x) -> Tensor')
LIBRARY.define('seeded(Tensor x) -> (Tensor, Tensor)')


@torch.library.impl(LIBRARY, 'scaled', 'CPU')
def _scaled(x):
    """Another result each time, which nothing in its schema says."""
    _scaled.number = getattr(_scaled, 'number', 0) + 1
    return x * (1 + _scaled.number)


@torch.library.impl(LIBRARY, 'hungry', 'CPU')
def _hungry(x):
    if _hungry.refusals > 0:
        _hungry.refusals -= 1
        raise torch.OutOfMemoryError('out of memory')
    return x * 2


@torch.library.impl(LIBRARY, 'seeded', 'CPU')
def _seeded(x):
    """As CUDA's attention, which also returns its generator's state."""
    return x * 2, torch.tensor([1, 2], dtype=torch.uint64)


@torch.library.impl(LIBRARY, 'once', 'CPU')
def _once(x):
    _once.number += 1
    if _once.number % 2 == 0:
        raise RuntimeError('its state is used up')
    return x * 3


def managed(lines=None, **options) -> MemoryBudget:
    log = None if lines is None else lines.append
    return MemoryBudget(**(dict(min_bytes=1024, log=log) | options))


def chain_of(first, second, size=(256, 256)):
    """tanh of ``second`` of products with a weight, of ``first``: everything is saved."""
    weight = torch.ones(size, requires_grad=True)
    x = torch.full(size, 0.5)
    out = first(x * weight)
    for _ in range(4):
        out = second((out * weight).tanh())
    return out, weight


def write_unseen(tensor):
    """As an operator that is bound without a schema: no version moves, no call is recorded."""
    tensor.detach().numpy()[:] += 1
    return tensor


@pytest.mark.parametrize('options', [dict(ratio=0.4), dict(ratio=0.4, mode='reactive'),
                                     dict(bytes=1_000_000)], ids=str)
def test_an_operator_that_gives_something_else_is_named_and_never_run_twice(options):
    lines, x = [], torch.full((256, 256), 0.5)
    manager = managed(lines, actions='recompute', **options)

    def step(scaled):
        weight = torch.ones(256, 256, requires_grad=True)
        out = scaled(x) * weight
        for _ in range(5):
            out = (out * weight).tanh()
        out.sum().backward()
        return weight.grad
    _scaled.number = 0
    for _ in range(3):
        factor = 2 + _scaled.number
        with manager:
            found = step(torch.ops.memory_tests.scaled)
        assert torch.equal(found, step(lambda x, factor=factor: x * factor))
    assert manager._refused == {'memory_tests.scaled'}
    assert sum('memory_tests.scaled gave other bytes' in line for line in lines) == 1
    assert manager.report().drops['drop'] > 0  # others still are


def test_an_operator_that_cannot_run_a_second_time_is_left_alone():
    """Its trial in the first step fails; the training goes on without another."""
    lines, x = [], torch.full((256, 256), 0.5)
    manager = managed(lines, ratio=0.5, actions='recompute')
    for _ in range(3):
        _once.number = 0
        weight = torch.ones(256, 256, requires_grad=True)
        with manager:
            out = torch.ops.memory_tests.once(x) * weight
            for _ in range(5):
                out = (out * weight).tanh()
            out.sum().backward()
    assert manager._refused == {'memory_tests.once'} and _once.number == 1
    assert manager.report().drops['drop'] > 0


@pytest.mark.parametrize('options', [dict(ratio=0.4), dict(ratio=0.4, mode='reactive')], ids=str)
def test_a_write_that_nobody_sees_is_found_before_anything_is_dropped(options):
    """The product is written into behind autograd's back: the same again gives other bytes."""
    def run(manager):
        for _ in range(3):
            with manager or torch.enable_grad():
                out, weight = chain_of(lambda x: write_unseen(x.exp()), lambda x: x)
                out.sum().backward()
        return weight.grad
    lines = []
    manager = managed(lines, actions='recompute', **options)
    assert torch.equal(run(None), run(manager))
    assert [line for line in lines if 'aten.exp gave other bytes' in line]
    assert manager.report().drops['drop'] > 0


def test_memory_of_a_factory_that_is_filled_unseen_is_kept():
    """mmcv's operators get their output so."""
    def run(manager):
        for _ in range(3):
            weight = torch.ones(256, 256, requires_grad=True)
            with manager or torch.enable_grad():
                made = torch.empty(256, 256)
                made.numpy()[:] = 3.0
                out = made * weight
                del made
                for _ in range(5):
                    out = (out * weight).tanh()
                out.sum().backward()
        return weight.grad
    manager = managed(ratio=0.5, actions='recompute')
    assert torch.equal(run(None), run(manager))
    assert manager.report().drops['drop'] > 0 and not manager._refused


@pytest.mark.fault('R31')
def test_a_host_copy_that_is_lost_is_an_error_and_no_gradient():
    model = ResNet()
    manager = managed(ratio=0.4, actions='swap')
    x = torch.randn(8, 3, 32, 32)
    with manager:
        model(x).sum().backward()
    model.zero_grad()
    with pytest.raises(VisionError, match='VIS-RUN-1411'), manager:
        loss = model(x).sum()
        for arena in manager._transfer.arenas:
            arena.zero_()
        loss.backward()


@pytest.mark.fault('R31')
@pytest.mark.parametrize('host_bytes', [0, 4096, 300_000])
def test_when_host_memory_ends_values_are_computed_again(host_bytes):
    manager = managed(ratio=0.5, host_bytes=host_bytes)
    assert differences(train('resnet'), train('resnet', manager)) == []
    report = manager.report()
    assert report.host_peak_bytes <= host_bytes
    assert report.drops['drop'] > 0
    assert report.peak_bytes <= 1.05 * report.budget_bytes


@pytest.mark.parametrize('budget', [None, dict(ratio=1.0), dict(ratio=0.3),
                                    dict(ratio=0.3, mode='reactive')], ids=str)
@pytest.mark.parametrize('size', [64, 4096])
def test_a_saved_tensor_that_was_changed_raises_as_ever(budget, size):
    """Also of parameters, small ones, and those whose memory has left."""
    manager = None if budget is None else managed(**budget, min_bytes=1024)
    weight = torch.ones(size, requires_grad=True)

    def step(is_changed):
        first = (weight * 2).exp()
        out = first
        for _ in range(6):
            out = (out * 0.5).tanh()
        if is_changed:
            first.mul_(2)
        out.sum().backward()
    for _ in range(2):
        with manager or torch.enable_grad():
            step(False)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'), \
            manager or torch.enable_grad():
        step(True)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'), \
            manager or torch.enable_grad():
        loss = (weight * weight).sum()
        with torch.no_grad():
            weight.add_(1)
        loss.backward()


@pytest.mark.parametrize('number', [1, 2])
def test_an_operator_that_finds_no_memory_runs_again_after_room_was_made(number):
    lines = []
    manager = managed(lines, ratio=1.0, actions='recompute', mode='reactive')
    _hungry.refusals = 0

    def step():
        out, weight = chain_of(lambda x: x, lambda x: x)
        out = torch.ops.memory_tests.hungry(out.detach()) * weight
        out.sum().backward()
        return weight.grad
    for _ in range(2):
        with manager:
            expected = step()
    _hungry.refusals = number
    if number == 1:
        with manager:
            assert torch.equal(step(), expected)
        assert any('found no memory' in line and 'ran again' in line for line in lines)
    else:
        with pytest.raises(torch.OutOfMemoryError), manager:
            step()


@pytest.mark.parametrize(('actions', 'mode'), [
    ('recompute', 'planned'), ('recompute', 'reactive'), ('swap', 'planned')])
def test_a_value_that_finds_no_memory_to_come_back_to_does_so_after_room_was_made(actions, mode):
    lines = []
    manager = managed(lines, ratio=0.6, actions=actions, mode=mode)
    back = manager._transfer.back

    def hungry_back(*args):
        if _hungry.refusals > 0:
            _hungry.refusals -= 1
            raise torch.OutOfMemoryError('out of memory')
        return back(*args)
    manager._transfer.back = hungry_back

    def step(refusals):
        _hungry.refusals = 0
        weight, x = torch.ones(256, 256, requires_grad=True), torch.full((256, 256), 0.5)
        out = x * weight
        for _ in range(12):
            out = (torch.ops.memory_tests.hungry(x) * (out * weight)).tanh()
        _hungry.refusals = refusals
        out.sum().backward()
        return weight.grad
    for _ in range(3):
        with manager:
            expected = step(0)
    with manager:
        assert torch.equal(step(1), expected)
    assert _hungry.refusals == 0
    assert any('found no memory' in line and 'ran again' in line for line in lines)


def test_an_operator_that_also_returns_a_generators_state_runs_again():
    manager = managed(ratio=1.0)
    weight = torch.ones(256, 256, requires_grad=True)
    with manager:
        out = torch.ops.memory_tests.seeded(weight.detach())[0] * weight
        out.sum().backward()
    call, = (call for call in manager.trace().calls if 'seeded' in call.name)
    assert call.replayable


def test_an_error_of_another_kind_is_not_tried_again():
    calls = []

    def fails(x):
        calls.append(1)
        raise RuntimeError('broken')
    with pytest.raises(RuntimeError, match='broken'), managed(ratio=1.0):
        torch.ones(4, requires_grad=True).register_hook(fails)
        fails(None)
    assert len(calls) == 1


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ArithmeticError('in backward')


@pytest.mark.parametrize('where', ['forward', 'backward'])
@pytest.mark.parametrize('options', [dict(ratio=0.4), dict(ratio=0.4, actions='swap'),
                                     dict(ratio=0.3, mode='reactive')], ids=str)
def test_an_error_leaves_nothing_behind(where, options):
    manager = managed(**options)
    build, shape = NETS['resnet']
    torch.manual_seed(0)
    model = build()
    x = torch.randn(shape)
    for _ in range(2):
        with manager:
            model(x).square().mean().backward()
    with pytest.raises(ArithmeticError), manager:
        loss = Broken.apply(model.blocks(model.stem(x))).mean()
        if where == 'forward':
            raise ArithmeticError('in forward')
        loss.backward()
    del loss
    gc.collect()
    assert manager._transfer.pool.used_bytes == 0
    assert not [found for found in gc.get_objects() if type(found) in (nodes.Node, nodes.Call)]
    torch.manual_seed(1)
    model.zero_grad()
    with manager:
        model(x).square().mean().backward()
    managed_gradients = [parameter.grad.clone() for parameter in model.parameters()]
    assert sum(manager.report().drops.values()) > 0
    torch.manual_seed(1)
    model.zero_grad()
    model(x).square().mean().backward()
    for one, other in zip(managed_gradients, model.parameters(), strict=True):
        assert torch.equal(one, other.grad)


@pytest.mark.parametrize('options', [dict(ratio=0.4), dict(ratio=0.4, actions='swap'),
                                     dict(ratio=0.4, mode='reactive')], ids=str)
def test_two_hundred_steps_leak_nothing(options):
    """Bytes of tensors that are alive after each step, and objects of ours."""
    manager = managed(**options)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.ReLU(inplace=True))
                            for _ in range(8)))
    x = torch.randn(64, 64)
    alive = []
    for number in range(200):
        with manager:
            model(x).square().mean().backward()
        if number % 50 == 10:
            gc.collect()
            storages = {found.untyped_storage()._cdata: found.untyped_storage().nbytes()
                        for found in gc.get_objects() if isinstance(found, torch.Tensor)}
            alive.append((sum(storages.values()), sum(
                type(found) in (nodes.Node, nodes.Call, nodes.Saved, nodes.Handle)
                for found in gc.get_objects())))
    assert len(set(alive)) == 1 and alive[0][1] == 0, alive
    assert manager._transfer.pool.used_bytes == 0
    assert sum(manager.report().drops.values()) > 0


def test_what_is_freed_is_freed_at_once():
    """Without the collector of garbage: a step's memory goes with the step."""
    manager = managed(ratio=0.4)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(6)))
    seen = []
    gc.disable()
    try:
        for _ in range(3):
            with manager:
                x = torch.randn(512, 64)
                out = x
                for layer in model:
                    out = layer(out).tanh()
                    seen.append(weakref.ref(out.untyped_storage()))
                out.sum().backward()
            del x, out
        assert not [ref for ref in seen if ref() is not None]
    finally:
        gc.enable()


def test_a_graph_that_outlives_its_step_still_gives_its_gradient():
    torch.manual_seed(0)
    model, x, lines = ResNet(), torch.randn(8, 3, 32, 32), []
    model.drop.p = 0.0
    model(x).square().mean().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    manager = managed(lines, ratio=0.4)
    with manager:
        model(x).square().mean().backward()
    model.zero_grad()
    with manager:
        loss = model(x).square().mean()
    loss.backward()
    for one, other in zip(expected, model.parameters(), strict=True):
        assert torch.equal(one, other.grad)
    assert any('outlives its step' in line for line in lines)


def test_a_kept_module_stays_and_a_boundary_is_not_crossed():
    torch.manual_seed(0)
    model = ResNet()
    x = torch.randn(8, 3, 32, 32)
    manager = managed(ratio=0.6, actions='recompute')
    manager.name(model)
    manager.keep(model.blocks[1])
    manager.boundary(model.blocks[3])
    for _ in range(3):
        with manager:
            model(x).square().mean().backward()
    trace, plan = manager.trace(), manager._scripts[0].plan
    dropped = {trace.values[index].where for index in plan.actions}
    assert dropped and not any(name.startswith('blocks.1') for name in dropped)
    assert any(name.startswith('blocks.3') for name in dropped)
    entering = [value for value in trace.values if value.where == 'blocks.2'][-1]
    assert not trace.calls[entering.call].replayable
    manager.close()
    assert not any(module._forward_pre_hooks or module._forward_hooks
                   for module in model.modules())


def test_a_compiled_model_is_refused():
    model = torch.compile(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), backend='eager')
    with pytest.raises(VisionError, match='VIS-CONFIG-1412'), managed(ratio=0.5):
        model(torch.randn(4, 8)).sum().backward()
    model = nn.Linear(8, 8)
    with managed(ratio=0.5):
        model(torch.randn(4, 8)).sum().backward()


def test_a_budget_below_one_operator_is_refused_with_what_would_do():
    with pytest.raises(VisionError, match='VIS-CONFIG-1411') as caught:
        for _ in range(2):
            with managed(bytes=300_000):
                chain_of(lambda x: x, lambda x: x)[0].sum().backward()
    assert re.search(r'raise the budget to \d', str(caught.value))


@pytest.mark.parametrize(('options', 'code'), [
    (dict(), 1410), (dict(gib=1, ratio=0.5), 1410), (dict(ratio=1.5), 1410),
    (dict(ratio=0.0), 1410), (dict(gib=float('nan')), 1410), (dict(ratio=True), 1410),
    (dict(ratio=0.5, actions='drop'), 1410), (dict(ratio=0.5, mode='fast'), 1410),
    (dict(ratio=0.5, verify='no'), 1410), (dict(ratio=0.5, host_bytes=-1), 1410),
    (dict(ratio=0.5, actions='swap', host_bytes=0), 1413)], ids=str)
def test_wrong_arguments_are_refused_at_once(options, code):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}'):
        MemoryBudget(**options)


def test_two_steps_at_once_are_refused():
    manager = managed(ratio=0.5)
    with pytest.raises(RuntimeError, match='already'), manager, manager:
        pass


def test_a_step_without_backward_is_no_step():
    """Validation inside, say: the ratio is still measured by the first real step."""
    manager = managed(ratio=0.4)
    model = ResNet()
    x = torch.randn(8, 3, 32, 32)
    with manager, torch.no_grad():
        functional.relu(model(x))
    assert manager.budget_bytes is None
    with manager:
        model(x).sum().backward()
    assert manager.budget_bytes > 0
