"""A model's operators, their costs and their memory, from one forward and backward pass over
tensors without data.

Nothing is computed and no parameter is allocated, so a model built on the meta device will do.
Two kinds of models need numbers: those whose shapes depend on them (a detector that matches
boxes), and those that call operators which say nothing of their results' shapes. They are run once
for real, on the processor, with the batch that was given; make it small and use
``core.graph.larger_batch``.

Operators are those of a processor. What differs on a GPU: attention with dropout is written out
here, so its scores are counted as memory, and calls past torch's dispatcher (mmcv's compiled
operators) are seen by the memory that they get, not by their arithmetic.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vision.common.core.errors import VisionError
from vision.simulator.core.graph import Module, ModuleGraph, Op, Parameter, with_likes
from vision.simulator.nn.operators import tensors_in
from vision.simulator.nn.recorder import Recorder
from vision.simulator.nn.torch_private import FakeTensorMode


def trace(module: nn.Module, inputs: Any, *, loss: Callable[[Any], Tensor] | None = None,
          train: bool = True, autocast: str | None = None, how: str = 'auto') -> ModuleGraph:
    """Operators by module: forward, gradients of inputs and gradients of parameters apart.

    The module stays as it is. An operator of the backward pass belongs to the weights if all that
    it makes ends in gradients of parameters without passing another layer; a convolution's
    backward is one entry for each half. What is kept for backward is what lives when it begins.

    Args:
        inputs: arguments of the module: a tensor, a tuple, or a dict of keywords; one micro-batch.
        loss: scalar of the module's output; None sums all floating point tensors of the output.
        train: with a backward pass, and the module in training mode; False: forward alone.
        autocast: 'bfloat16' or 'float16' as under ``torch.autocast``.
        how: 'fake' without data, 'real' with numbers, 'auto' the first and if it fails the second.

    Raises:
        VisionError: VIS-CONFIG-1610, VIS-CONFIG-1612 nothing is trained, VIS-RUN-1611,
            VIS-RUN-1613 it does not run.
    """
    assert how in ('auto', 'fake', 'real'), how
    if train and not any(each.requires_grad for each in module.parameters()):
        raise VisionError('VIS-CONFIG-1610', f'no parameter of {type(module).__name__} is trained',
                          where='trace', why='there is no backward pass to predict',
                          do='set requires_grad of what trains, or trace with train=False')
    failure: Exception | None = None
    if how != 'real':
        try:
            return _trace_fake(module, inputs, loss, train, autocast)
        except Exception as error:  # of any library's operator; told below if nothing else helps
            failure = error
    without_data = [name for name, each in (*module.named_parameters(), *module.named_buffers())
                    if each.is_meta]
    if how == 'fake' or without_data:
        raise VisionError(
            'VIS-RUN-1611', f'{type(module).__name__} does not run without data: '
            f'{type(failure).__name__ if failure else "asked to run for real"}', where='trace',
            why=f'{str(failure).splitlines()[0] if failure and str(failure) else "no data"}'
            + (f'; {without_data[0]} is on the meta device' if without_data else ''),
            do='give it real parameters and a small batch, so that it can run once') from failure
    try:
        return _trace_real(module, inputs, loss, train, autocast, failure)
    except Exception as error:
        raise VisionError('VIS-RUN-1613', f'{type(module).__name__} does not run: '
                          f'{type(error).__name__}', where='trace', why=str(error)[:300],
                          do='call it once by hand with the same inputs') from error


def _trace_fake(module: nn.Module, inputs: Any, loss: Callable | None, train: bool,
                autocast: str | None) -> ModuleGraph:
    # Constants that a module holds beside parameters and buffers may enter as they are.
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(tensor: Tensor) -> Tensor:
        with mode:
            made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype,
                                       device='cpu')
        return made.requires_grad_(tensor.requires_grad and tensor.is_leaf)

    with _replaced(module, fake), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return _run(module, _mapped(inputs, fake), mode, loss, train, autocast, ())


def _trace_real(module: nn.Module, inputs: Any, loss: Callable | None, train: bool,
                autocast: str | None, failure: Exception | None) -> ModuleGraph:
    # A copy: running statistics and gradients of the caller's stay as they are.
    twin = copy.deepcopy(module).cpu()
    inputs = _mapped(inputs, lambda each: torch.zeros_like(each, device='cpu')
                     if each.is_meta else each.detach().cpu())
    reason = f': {type(failure).__name__} without data' if failure else ''
    with torch.random.fork_rng():
        return _run(twin, inputs, nullcontext(), loss, train, autocast,
                    (f'run once for real{reason}',))


def _run(module: nn.Module, inputs: Any, mode: Any, loss: Callable | None, train: bool,
         autocast: str | None, notes: tuple[str, ...]) -> ModuleGraph:
    owners: dict[Tensor, tuple[str, str]] = {}
    for name, child in module.named_modules():
        for local, parameter in child.named_parameters(recurse=False):
            owners.setdefault(parameter, (name, f'{name}.{local}' if name else local))
            parameter.grad = None
    args, kwargs = _arguments(inputs)
    given = tensors_in((args, kwargs))
    recorder = Recorder(owners, [*module.buffers(), *given])
    calls: dict[str, tuple[int, tuple[int, ...]]] = {}
    with ExitStack() as stack:
        stack.enter_context(_followed(module, recorder, owners, calls))
        stack.enter_context(mode)
        stack.enter_context(recorder)
        if autocast:
            stack.enter_context(torch.autocast('cpu', getattr(torch, autocast)))
        if not train:
            stack.enter_context(torch.no_grad())
        stack.enter_context(_in_mode(module, train))
        outputs = module(*args, **kwargs)
        value = (loss or _sum_of)(outputs) if train else None
        del outputs  # a training step lets go of them, a loss keeps what it needs
        num_forward, kept = len(recorder.seen), set()
        if value is not None:
            kept = recorder.alive()
            recorder.is_backward = True
            with torch.autocast('cpu', enabled=False):
                value.backward()
        gradients = {recorder.number_of(parameter.grad): name
                     for parameter, (_, name) in owners.items() if parameter.grad is not None}
    ops, tensors = recorder.result(num_forward, kept, gradients)
    return with_likes(ModuleGraph(
        _modules(module, owners, calls, ops), tuple(ops), tensors,
        input_bytes=sum(each.numel() * each.element_size() for each in given),
        batch_size=given[0].shape[0] if given and given[0].dim() else 0, notes=notes))


def _arguments(inputs: Any) -> tuple[tuple, dict]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(each, change) for key, each in value.items()}
    if isinstance(value, (tuple, list)) and not hasattr(value, '_fields'):
        return type(value)(_mapped(each, change) for each in value)
    return value


def _sum_of(outputs: Any) -> Tensor:
    parts = [each.sum() for each in tensors_in(outputs)
             if each.is_floating_point() and each.requires_grad]
    if not parts:
        raise VisionError('VIS-CONFIG-1612', 'no output depends on a parameter that is trained',
                          where='trace', do='give trace() a loss of the outputs, or train=False')
    return sum(parts[1:], parts[0])


@contextmanager
def _replaced(module: nn.Module, fake: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Parameters and buffers without data, the real ones back afterwards; shared ones shared."""
    twins: dict[int, Tensor] = {}
    before: list[tuple[nn.Module, str, Tensor]] = []

    def twin_of(tensor: Tensor) -> Tensor:
        if id(tensor) not in twins:
            twins[id(tensor)] = nn.Parameter(fake(tensor.detach()), tensor.requires_grad) \
                if isinstance(tensor, nn.Parameter) else fake(tensor)
        return twins[id(tensor)]

    try:
        for child in module.modules():
            for pairs in (child.named_parameters, child.named_buffers):
                for name, tensor in list(pairs(recurse=False, remove_duplicate=False)):
                    before.append((child, name, tensor))
                    setattr(child, name, twin_of(tensor))
        yield
    finally:
        for child, name, tensor in before:
            setattr(child, name, tensor)


@contextmanager
def _in_mode(module: nn.Module, train: bool) -> Iterator[None]:
    """In training mode as its own ``train()`` sets it, which may keep parts frozen."""
    before = [(child, child.training) for child in module.modules()]
    module.train(train)
    try:
        yield
    finally:
        for child, was in before:
            child.training = was


@contextmanager
def _followed(module: nn.Module, recorder: Recorder, owners: Mapping[Tensor, tuple[str, str]],
              calls: dict[str, tuple[int, tuple[int, ...]]]) -> Iterator[None]:
    """The recorder knows which module runs, and which gradients are complete."""
    handles = []

    def enter(name: str) -> Callable:
        return lambda *_: recorder.stack.append(name)

    def leave(name: str) -> Callable:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            recorder.stack.pop()
            if tensors := tensors_in(output):
                calls[name] = (sum(each.numel() * each.element_size() for each in tensors),
                               tuple(tensors[0].shape))
        return hook

    for name, child in module.named_modules():
        handles += [child.register_forward_pre_hook(enter(name)),
                    # Called always: a checkpoint leaves its forward by an exception when it has
                    # made again what it needs.
                    child.register_forward_hook(leave(name), always_call=True)]
    for parameter, (_, name) in owners.items():
        if parameter.requires_grad:
            handles.append(parameter.register_post_accumulate_grad_hook(
                lambda _, name=name: recorder.put_down(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _modules(module: nn.Module, owners: Mapping[Tensor, tuple[str, str]],
             calls: Mapping[str, tuple[int, tuple[int, ...]]],
             ops: list[Op]) -> tuple[Module, ...]:
    """In order of first use, those that were never called last."""
    users: dict[Tensor, list[str]] = {}
    for name, child in module.named_modules(remove_duplicate=False):
        for parameter in child.parameters(recurse=False):
            users.setdefault(parameter, []).append(name)
    held: dict[str, list[Parameter]] = {}
    for parameter, (owner, name) in owners.items():
        held.setdefault(owner, []).append(Parameter(
            name, tuple(parameter.shape), parameter.element_size(), parameter.requires_grad,
            tuple(each for each in users[parameter] if each != owner)))
    first: dict[str, int] = {}
    for index, op in enumerate(ops):
        parts = op.module.split('.') if op.module else []
        for depth in range(len(parts) + 1):
            first.setdefault('.'.join(parts[:depth]), index)
    made = []
    for name, child in module.named_modules():
        output_bytes, shape = calls.get(name, (0, ()))
        buffers = sum(each.numel() * each.element_size()
                      for _, each in child.named_buffers(recurse=False))
        made.append(Module(name, type(child).__name__, tuple(held.get(name, ())), buffers,
                           output_bytes, shape))
    return tuple(sorted(made, key=lambda each: first.get(each.name, len(ops))))
