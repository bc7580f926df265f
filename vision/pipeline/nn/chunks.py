"""A model as a row of pieces: found, checked, counted, measured, and cut into chunks.

A piece is a submodule that owns its parameters and turns the tensors of the piece before into
those of the next. Pipelines pass nothing else along: a skip link or a function between two pieces
would be lost without a word, so both are looked for before a model is cut.
"""

from __future__ import annotations

import copy
import inspect
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vision.common.core.errors import VisionError
from vision.pipeline.nn.chain import Calls

Tensors = tuple[Tensor, ...]


class Piece(NamedTuple):
    """The least part of a model that a pipeline can put on a rank.

    Args:
        name: dotted name of the submodule whose parameters the piece owns.
        run: called with the module and the tensors of the piece before, gives a tensor or a tuple
            of them, as separate arguments of the next piece; None calls the module itself. It
            must reach no module but the one it is given: the others may be on another rank.
    """

    name: str
    run: Callable[..., Any] | None = None

    def __call__(self, module: nn.Module, inputs: Tensors) -> Tensors:
        outputs = module(*inputs) if self.run is None else self.run(module, *inputs)
        result = (outputs,) if isinstance(outputs, Tensor) else outputs
        if not (isinstance(result, tuple | list) and result
                and all(isinstance(each, Tensor) for each in result)):
            raise VisionError('VIS-CONFIG-1548', f'piece {self.name!r} gives '
                              f'{type(outputs).__name__}', where='pipeline pieces',
                              why='only tensors travel between ranks', do='let its run in '
                              'pipeline_stages() give a tensor or a tuple of tensors')
        return tuple(result)


@dataclass(frozen=True)
class PieceCost:
    """Of one piece and one micro-batch.

    Args:
        flops: of the forward pass, two for a multiply-add, as torch counts them.
        activation_bytes: kept from forward to backward, its outputs included and its inputs left
            out, so that a chunk keeps its inputs and the sum over its pieces.
        parameter_bytes: whole, not sharded.
        output_bytes: what travels to the next piece.
        forward_seconds, backward_seconds: None if nobody measured.
    """

    name: str
    flops: int
    activation_bytes: int
    parameter_bytes: int
    output_bytes: int
    forward_seconds: float | None = None
    backward_seconds: float | None = None

    @property
    def seconds(self) -> float | None:
        """Forward and backward."""
        if self.forward_seconds is None or self.backward_seconds is None:
            return None
        return self.forward_seconds + self.backward_seconds


def pieces_of(model: nn.Module, names: Sequence[str] | None = None) -> list[Piece]:
    """The pieces of a model in order of execution, each parameter in exactly one.

    Args:
        names: of submodules, called one after the other; None asks ``model.pipeline_stages()``,
            which gives names or (name, run) pairs.

    Raises:
        VisionError: VIS-CONFIG-1520, VIS-CONFIG-1547 nothing says what the pieces are,
            VIS-CONFIG-1521 no such module or named twice, VIS-CONFIG-1522 one inside another,
            VIS-CONFIG-1523 a parameter outside of all pieces, VIS-CONFIG-1525 one that two pieces
            share.
    """
    if names is None:
        ask = getattr(model, 'pipeline_stages', None)
        if ask is None:
            raise VisionError('VIS-CONFIG-1520', f'nothing says how to cut {type(model).__name__}',
                              where='pipeline pieces', do='list the names of its modules in order '
                              'of execution as stages of the strategy, or give the model a method '
                              'pipeline_stages()')
        names = ask()
    if isinstance(names, str) or not names:
        raise VisionError('VIS-CONFIG-1547', f'stages={names!r} is no list of names',
                          where='pipeline pieces', do="write e.g. stages=['stem', 'body.0', "
                          "'body.1', 'head']")
    pieces = [Piece(entry) if isinstance(entry, str) else Piece(*entry) for entry in names]
    _check_names(model, pieces)
    _check_parameters(model, pieces)
    return pieces


def _check_names(model: nn.Module, pieces: Sequence[Piece]) -> None:
    known, seen = dict(model.named_modules(remove_duplicate=False)), set()
    for name, _ in pieces:
        if not name or name not in known or name in seen:
            stem = name.rpartition('.')[0]
            beside = [each.removeprefix(f'{stem}.') for each in known
                      if each and each.rpartition('.')[0] == stem]
            raise VisionError(
                'VIS-CONFIG-1521', f'piece {name!r} is named twice' if name in seen else
                f'{type(model).__name__} has no module {name!r}', where='pipeline pieces',
                why=f'{stem or "the model"} has {", ".join(beside[:8]) or "no such part"}',
                do='name each module once, as model.named_modules() does')
        seen.add(name)
    for name in sorted(seen):
        outer = next((each for each in seen if name.startswith(f'{each}.')), None)
        if outer:
            raise VisionError('VIS-CONFIG-1522', f'piece {name!r} lies inside piece {outer!r}',
                              where='pipeline pieces', why='its parameters would be on two ranks',
                              do='name the outer one, or all of its parts instead of it')


def _check_parameters(model: nn.Module, pieces: Sequence[Piece]) -> None:
    owners: dict[int, tuple[str, str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = next((piece.name for piece in pieces if name.startswith(f'{piece.name}.')), None)
        if owner is None:
            raise VisionError('VIS-CONFIG-1523', f'parameter {name!r} is in no piece',
                              where='pipeline pieces', why='no rank would train it',
                              do='name the module that holds it; one that hangs at a larger '
                              'module goes into a small module of its own')
        other, other_name = owners.setdefault(id(parameter), (owner, name))
        if other != owner:
            raise VisionError('VIS-CONFIG-1525', f'pieces {other!r} and {owner!r} share a '
                              'parameter', where=f'{other_name} and {name}', why='on two ranks '
                              'its copies would drift apart', do='tie them inside one piece, or '
                              'untie them')


def count_pieces(model: nn.Module, pieces: Sequence[Piece],
                 inputs: Tensor | Tensors) -> list[PieceCost]:
    """What each piece costs for one micro-batch, without computing anything: a copy of the model
    without data goes through its forward pass. The model stays as it is.

    Args:
        inputs: of the model, one micro-batch, preprocessed; only shapes and dtypes are read.

    Raises:
        VisionError: VIS-CONFIG-1524 the pieces one after the other are not the model,
            VIS-CONFIG-1526 a piece cannot go on with what the one before gave, VIS-CONFIG-1527 the
            pieces end in other shapes.
    """
    inputs = tuple(torch.empty_like(each, device='meta') for each in _as_tuple(inputs))
    with unchanged(nn.Module()):
        return _count(_without_data(model), pieces, inputs)


def measure_pieces(model: nn.Module, pieces: Sequence[Piece], inputs: Tensor | Tensors, *,
                   repeats: int = 3) -> list[PieceCost]:
    """``count_pieces`` on real tensors, with seconds: medians of ``repeats`` after one more to
    warm up.

    Buffers, gradients and random numbers are afterwards as before.

    Args:
        inputs: of the model, (B, ...) each, as large as a micro-batch; on the device to measure.
    """
    inputs = _as_tuple(inputs)
    with unchanged(model, inputs[0].device):
        costs = _count(model, pieces, inputs)
        runs = [_time(model, pieces, inputs) for _ in range(1 + repeats)][1:]
    medians = [[statistics.median(values) for values in zip(*each, strict=True)]
               for each in zip(*runs, strict=True)]
    return [PieceCost(cost.name, cost.flops, cost.activation_bytes, cost.parameter_bytes,
                      cost.output_bytes, *seconds)
            for cost, seconds in zip(costs, medians, strict=True)]


class Chunk(nn.Module):
    """The pieces of one stage of a pipeline, one after the other.

    Its modules are the model's own: they are trained, moved and sharded in both. Switch between
    training and evaluation with the model's ``train()``, which may keep parts of it frozen.
    """

    def __init__(self, model: nn.Module, pieces: Sequence[Piece]) -> None:
        super().__init__()
        assert pieces, 'a chunk without pieces'
        self.pieces = tuple(pieces)
        self.parts = nn.ModuleList(model.get_submodule(piece.name) for piece in pieces)

    def forward(self, *inputs: Tensor) -> Tensor | Tensors:
        """What the piece before this stage gave, (B, ...) each -> what the last piece gives: a
        tensor, or a tuple of several."""
        for piece, module in zip(self.pieces, self.parts, strict=True):
            inputs = piece(module, inputs)
        return inputs if len(inputs) > 1 else inputs[0]


class Absent(nn.Module):
    """In the place of a piece that is on another rank."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *inputs: Any, **options: Any) -> None:
        """Refused: a rank runs its own pieces alone.

        Raises:
            AssertionError: always.
        """
        raise AssertionError(f'{self.name} is on another rank of the pipeline')


def keep_pieces(model: nn.Module, kept: Sequence[Piece], all_pieces: Sequence[Piece]) -> None:
    """Put ``Absent`` in the place of all pieces but ``kept``: what stays has the names that it
    has in the whole model, in ``named_parameters``, ``state_dict`` and ``named_modules``."""
    names = {piece.name for piece in kept}
    assert names <= {piece.name for piece in all_pieces}, names
    for name in (piece.name for piece in all_pieces):
        if name not in names:
            parent, _, own = name.rpartition('.')
            setattr(model.get_submodule(parent), own, Absent(name))


@contextmanager
def unchanged(model: nn.Module, device: torch.device | None = None) -> Iterator[None]:
    """Afterwards the model's buffers and the random numbers are as before."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = [device] if device is not None and device.type == 'cuda' else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def _as_tuple(tensors: Tensor | Sequence[Tensor]) -> Tensors:
    return (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)


def _without_data(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are on the meta device; no data is ever copied."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device='meta'),
                                           requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device='meta')
    return copy.deepcopy(model, memo)


def _count(model: nn.Module, pieces: Sequence[Piece], inputs: Tensors) -> list[PieceCost]:
    whole = _checked(model, pieces, inputs)
    constants = {id(each.untyped_storage()): each.untyped_storage()
                 for each in (*model.parameters(), *model.buffers())}
    costs, current = [], inputs
    for index, piece in enumerate(pieces):
        module = model.get_submodule(piece.name)
        leaves = tuple(each.detach().requires_grad_(each.requires_grad) for each in current)
        outside = constants | {id(each.untyped_storage()): each.untyped_storage()
                               for each in leaves}
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Tensor, kept: dict = kept) -> Tensor:
            storage = tensor.untyped_storage()
            kept[id(storage)] = storage
            return tensor

        with FlopCounterMode(display=False) as counter, \
                torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            current = _run(pieces, index, module, leaves)
        for output in current:
            keep(output)
        costs.append(PieceCost(
            piece.name, counter.get_total_flops(),
            sum(storage.nbytes() for key, storage in kept.items() if key not in outside),
            sum(each.nbytes for each in module.parameters()),
            sum(each.nbytes for each in current)))
    _check_end(pieces, current, whole)
    return costs


def _checked(model: nn.Module, pieces: Sequence[Piece], inputs: Tensors) -> Any:
    """The output of the whole model; bare names must be all of it."""
    watch = Calls(model, [piece.name for piece in pieces])
    has_mode = 'mode' in inspect.signature(model.forward).parameters  # MMEngine's models
    # Without gradients: on real tensors the activations of the whole model would stay.
    with watch, torch.no_grad(), _explained(
            f'{type(model).__name__} cannot be run on {inputs[0].device} tensors'):
        whole = model(*inputs, mode='tensor') if has_mode else model(*inputs)
    if not any(piece.run for piece in pieces):
        watch.check(inputs, whole)
    return whole


def _run(pieces: Sequence[Piece], index: int, module: nn.Module, inputs: Tensors) -> Tensors:
    before = f'what {pieces[index - 1].name!r} gives' if index else 'the inputs of the model'
    shapes = ', '.join(str(tuple(each.shape)) for each in inputs)
    with _explained(f'piece {pieces[index].name!r} cannot go on with {before}: {shapes}'):
        return pieces[index](module, inputs)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, TypeError) as error:
        raise VisionError('VIS-CONFIG-1526', what, where='pipeline pieces', why=str(error),
                          do='each piece takes what the one before gives and leaves it unchanged '
                          '(inplace=False at its begin), or pipeline_stages() says how it is run; '
                          'a model that must see real data is measured, not counted') from error


def _time(model: nn.Module, pieces: Sequence[Piece],
          inputs: Tensors) -> list[tuple[float, float]]:
    """(forward, backward) seconds of each piece; no ``.grad`` is touched."""
    seconds, current, device = [], inputs, inputs[0].device
    for index, piece in enumerate(pieces):
        module = model.get_submodule(piece.name)
        leaves = tuple(each.detach().requires_grad_(each.requires_grad) for each in current)
        start = _now(device)
        current = _run(pieces, index, module, leaves)
        middle = _now(device)
        outputs = [each for each in current if each.requires_grad]
        if outputs:
            wanted = [each for each in (*leaves, *module.parameters()) if each.requires_grad]
            torch.autograd.grad(outputs, wanted, [torch.ones_like(each) for each in outputs],
                                allow_unused=True)
        seconds.append((middle - start, _now(device) - middle))
    return seconds


def _now(device: torch.device) -> float:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _check_end(pieces: Sequence[Piece], outputs: Tensors, whole: Any) -> None:
    """Pieces with a ``run`` of their own may do as they like, but end as the model does."""
    expected = whole if isinstance(whole, tuple | list) else (whole,)
    shown = [[(tuple(each.shape), each.dtype) if isinstance(each, Tensor) else type(each)
              for each in side] for side in (outputs, expected)]
    if shown[0] != shown[1]:
        raise VisionError('VIS-CONFIG-1527', f'the pieces end with {shown[0]}, the model with '
                          f'{shown[1]}', where=f'piece {pieces[-1].name!r}', do='let the run of '
                          'the last piece do what the model does after it, or mend the one that '
                          'loses a part')
