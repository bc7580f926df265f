"""The contract of what torch does not promise."""

import torch
from torch import nn

from vision.simulator.nn import torch_private as private


def test_an_operator_and_its_backward_know_the_same_place():
    forward, backward = [], []

    class Places(private.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.addmm.default:
                forward.append(private.forward_place())
            if func is torch.ops.aten.mm.default:
                backward.append(private.backward_place()[0])
            return func(*args, **(kwargs or {}))

    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    with Places():
        model(torch.ones(1, 2)).sum().backward()
    assert sorted(set(backward)) == forward and len(backward) == 3


def test_a_leaf_is_named_while_its_gradient_is_put_down():
    seen = []

    class Leaves(private.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(private.backward_place()[1])
            return func(*args, **(kwargs or {}))

    leaf = torch.ones(2, requires_grad=True)
    with Leaves():
        (leaf * 2).sum().backward()
    assert any(each is leaf for each in seen)


def test_views_and_writes_are_read_from_schemas():
    aten = torch.ops.aten
    x = torch.ones(2)
    assert private.shows_memory(aten.t.default) and not private.shows_memory(aten.add.Tensor)
    assert not private.shows_memory(aten.add_.Tensor)
    assert private.written_arguments(aten.add_.Tensor, (x, x), {})[0] is x
    assert private.written_arguments(aten.add.out, (x, x), dict(out=x))[0] is x
    assert private.storage_key(x.untyped_storage()) == private.storage_key(x[1:].untyped_storage())
