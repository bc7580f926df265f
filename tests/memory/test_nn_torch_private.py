"""What the room uses of torch without its promise does what the room needs."""

import weakref

import pytest
import torch

from vision.memory.nn.torch_private import (
    TorchDispatchMode,
    below_autograd,
    count_holders,
    graph_task,
    is_compiling,
    plain_kernels,
    tensor_on,
    unseen,
)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_storage_is_one_object_that_goes_with_its_last_tensor():
    tensor = torch.ones(100)
    gone = []
    ref = weakref.ref(tensor.untyped_storage(), gone.append)
    assert tensor.untyped_storage() is ref() and not gone
    view = tensor[3:]
    del tensor
    assert view.untyped_storage() is ref() and not gone
    del view
    assert gone == [ref] and ref() is None


def test_holders_are_counted_without_the_object_that_asks():
    tensor = torch.ones(100)
    storage = tensor.untyped_storage()
    assert count_holders(storage) == 1
    view, alias = tensor[2:], tensor.detach()
    assert count_holders(storage) == 3
    del view, tensor
    assert count_holders(storage) == 1 and alias.numel() == 100


def test_an_emptied_alias_frees_memory_and_keeps_the_version():
    tensor = torch.ones(100)
    alias, storage = tensor.detach(), tensor.untyped_storage()
    alias.data = torch.empty(0)
    assert count_holders(storage) == 1
    tensor.add_(1)
    assert alias._version == tensor._version == 1
    alias.data = tensor_on(storage, (torch.float32, (10, 2), (2, 1), 5))
    assert alias.shape == (10, 2) and alias.data_ptr() == tensor.data_ptr() + 20


def test_a_graph_task_has_a_number_inside_backward_alone():
    tensor, seen = torch.ones(3, requires_grad=True), []
    tensor.register_hook(lambda gradient: seen.append(graph_task()))
    assert graph_task() == -1
    (tensor * 2).sum().backward()
    assert seen[0] >= 0 and graph_task() == -1


def test_unseen_operators_pass_every_mode():
    with Seen() as mode:
        with unseen():
            torch.ones(3)
        with below_autograd():
            torch.ones(3)
    assert len(mode.names) == 1


def test_plain_kernels_have_no_graph_and_no_autocast():
    weight, x = torch.ones(4, 4, requires_grad=True), torch.ones(4, 4)
    with torch.autocast('cpu', torch.bfloat16):
        assert (x @ weight).dtype == torch.bfloat16
        with plain_kernels('cpu'):
            out = torch.ops.aten.mm.default(x, weight)
        assert torch.is_autocast_enabled('cpu')
    assert out.dtype == torch.float32 and not out.requires_grad


def test_a_compiled_frame_is_noticed():
    """An operator asks, as the recorder does, while dynamo may trace."""
    class Asks(TorchDispatchMode):
        @classmethod
        def _should_skip_dynamo(cls):
            return False

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(is_compiling())
            return func(*args, **(kwargs or {}))
    seen = []
    function = torch.compile(torch.nn.Linear(2, 2), backend='eager')
    with Asks():
        torch.ones(2)
        assert seen == [False]
        function(torch.ones(2, 2))
    assert seen[-1] is True


@pytest.mark.parametrize('name', ['native_batch_norm', '_native_batch_norm_legit',
                                  'cudnn_batch_norm', 'miopen_batch_norm',
                                  '_batch_norm_with_update'])
def test_running_statistics_stand_where_we_clone_them(name):
    schema = getattr(torch.ops.aten, name).default._schema
    assert [schema.arguments[place].name for place in (3, 4)] == ['running_mean', 'running_var']
