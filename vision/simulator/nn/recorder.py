"""Sees every operator of a forward and backward pass, and when the memory it made is gone."""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from vision.simulator.core.graph import (
    AGAIN,
    FORWARD,
    INPUT_GRAD,
    WEIGHT_GRAD,
    Op,
    TensorInfo,
)
from vision.simulator.nn.operators import (
    Sizes,
    bytes_moved,
    bytes_of,
    dtype_of,
    flops_of,
    is_scalar_query,
    kind_of,
    of_phase,
    sizes_of,
    tensors_in,
)
from vision.simulator.nn.torch_private import (
    TorchDispatchMode,
    backward_place,
    forward_place,
    shows_memory,
    storage_key,
    written_arguments,
)

# Where an operator of the backward pass ran: the number of an autograd node, or a leaf.
Place = int | str | None


@dataclass
class Seen:
    """An operator as it was seen. ``reads`` and ``writes`` are numbers of storages; ``masks`` of
    a convolution's backward says which gradients it makes."""

    op: Op
    is_backward: bool
    place: Place
    reads: set[int]
    writes: set[int]
    begins: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    completes: list[str] = field(default_factory=list)
    masks: tuple[bool, ...] = ()
    is_view: bool = False


class Recorder(TorchDispatchMode):
    """Sees operators while it is entered, as a dispatch mode of torch.

    Args:
        owners: (module name, parameter name) of each parameter, of any shape, that the pass will
            use.
        others: tensors of any shape that are there before it, such as buffers and the batch.

    Attributes:
        stack: names of the modules that run now, the innermost last.
        is_backward: the backward pass has begun.
    """

    def __init__(self, owners: Mapping[Tensor, tuple[str, str]],
                 others: list[Tensor]) -> None:
        super().__init__()
        self.seen: list[Seen] = []
        self.stack: list[str] = []
        self.is_backward = False
        self.sizes: dict[int, int] = {}
        self._owner_of = {id(tensor): owner for tensor, owner in owners.items()}
        self._numbers: dict[int, int] = {}
        self._watches: dict[int, weakref.ref] = {}
        # Autograd nodes by number: the module, and whether data other than parameters went in.
        self._module_of: dict[int, str] = {}
        self._is_of_data: dict[int, bool] = {}
        self._parameters = {self._number(each) for each in owners}
        self.outside = self._parameters | {self._number(each) for each in others}

    def _number(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = storage_key(storage)
        if key not in self._numbers:
            number = self._numbers[key] = len(self.sizes)
            self.sizes[number] = storage.nbytes()
            self._watches[number] = weakref.ref(storage, lambda _: self._gone(key, number))
        return self._numbers[key]

    def _gone(self, key: int, number: int) -> None:
        if self._numbers.get(key) == number:
            del self._numbers[key]
        self._watches.pop(number, None)
        if self.seen and number not in self.outside:
            self.seen[-1].ends.append(number)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if is_scalar_query(func):
            return func(*args, **kwargs)
        inputs = tensors_in((args, kwargs))
        reads = {self._number(each) for each in inputs}
        result = func(*args, **kwargs)
        outputs = tensors_in(result)
        place, module = self._where(reads)
        is_recomputed = self.is_backward and bool(self.stack)
        written = written_arguments(func, args, kwargs)
        known = set(self._watches)
        # Some views do not say that they are: _unsafe_view.
        is_view = shows_memory(func) or bool(outputs) and not written and all(
            self._number(each) in reads for each in outputs)
        writes = {self._number(each) for each in (*outputs, *written)}
        op = Op(str(func.overloadpacket), module, 'elementwise', 0.0, 0.0) if is_view else \
            self._op(func, (args, kwargs), result, module)
        if is_recomputed:
            op = replace(op, name=op.name + AGAIN)
        seen = Seen(op, self.is_backward and not is_recomputed, place, reads, writes,
                    is_view=is_view)
        seen.begins = sorted(writes - known)
        if func.overloadpacket.__name__ == 'convolution_backward':
            seen.masks = tuple(args[10])
        if not self.is_backward and reads and reads <= self._parameters:
            self._parameters |= set(seen.begins)
        self.seen.append(seen)
        return result

    def _where(self, reads: set[int]) -> tuple[Place, str]:
        """Autograd node or leaf, and module, of the operator that runs."""
        if not self.is_backward or self.stack:
            node, module = forward_place(), self.stack[-1] if self.stack else ''
            self._module_of.setdefault(node, module)
            self._is_of_data[node] = self._is_of_data.get(node, False) or not (
                reads and reads <= self._parameters)
            return None, module
        node, leaf = backward_place()
        if leaf is not None:
            module, name = self._owner_of.get(id(leaf), ('', ''))
            return f'leaf {name}', module
        if node is None:
            return None, self.seen[-1].op.module if self.seen else ''
        if node not in self._module_of:  # made behind the operator, as in-place views are
            nodes = sorted(self._module_of)
            at = bisect.bisect_left(nodes, node)
            self._module_of[node] = self._module_of[nodes[max(at - 1, 0)]] if nodes else ''
        return node, self._module_of[node]

    def _op(self, func: Any, call: tuple[tuple, dict], result: Any, module: str) -> Op:
        args, kwargs = call
        namespace, base = func.namespace, func.overloadpacket.__name__
        kind, inputs, outputs = kind_of(namespace, base), tensors_in(call), tensors_in(result)
        flops = flops_of(func, args, kwargs, result)
        own = {storage_key(each.untyped_storage()) for each in inputs}
        made = bytes_of([each for each in outputs
                         if storage_key(each.untyped_storage()) not in own])
        written = written_arguments(func, args, kwargs)
        m, n, k, batch = sizes_of(base, args, result)
        return Op(f'{namespace}.{base}', module, kind, flops or 0.0,
                  float(bytes_moved(base, args, kwargs, made, written)),
                  dtype_of(outputs or inputs), m=m, n=n, k=k, batch=batch,
                  output_bytes=made or bytes_of(written),
                  is_priced=flops is not None or kind != 'other')

    def put_down(self, name: str) -> None:
        """The gradient of this parameter is complete."""
        if self.seen:
            self.seen[-1].completes.append(name)

    def alive(self) -> set[int]:
        """Storages that the pass made and that live now."""
        return set(self._watches) - self.outside

    def number_of(self, tensor: Tensor) -> int:
        """Number of the storage that a tensor (any shape) shows; views have that of what they
        show."""
        return self._number(tensor)

    def result(self, num_forward: int, kept: set[int],
               gradients: Mapping[int, str]) -> tuple[list[Op], dict[int, TensorInfo]]:
        """Operators with their phases, and the tensors that they make.

        Args:
            num_forward: operators seen before the backward pass.
            kept: storages that were alive when it began.
            gradients: storage -> the parameter that it is the gradient of, at the end.
        """
        tensors: dict[int, TensorInfo] = {}
        for index, seen in enumerate(self.seen):
            for number in seen.begins:
                category = 'gradients' if number in gradients else 'activations' if (
                    number in kept or not seen.is_backward and index >= num_forward) \
                    else 'temporary'
                tensors[number] = TensorInfo(self.sizes[number], category,
                                             gradients.get(number, ''))
        for seen in self.seen:  # what came past the dispatcher (from_numpy) never began here
            seen.ends = [number for number in seen.ends if number in tensors]
        is_weight = self._weight_grads()
        ops: list[Op] = []
        waiting: list[int] = []
        for seen, of_weights in zip(self.seen, is_weight, strict=True):
            if seen.is_view and not seen.begins:
                # Nothing but a name; what was freed behind it was freed behind the one before.
                if ops:
                    ops[-1] = replace(ops[-1], ends=(*ops[-1].ends, *seen.ends),
                                      completes=(*ops[-1].completes, *seen.completes))
                else:
                    waiting += seen.ends
                continue
            saved = sum(self.sizes[number] for number in seen.begins if number in kept)
            op = replace(seen.op, begins=tuple(seen.begins), ends=(*waiting, *seen.ends),
                         reads=tuple(sorted(seen.reads & tensors.keys())),
                         writes=tuple(sorted(seen.writes & tensors.keys() - set(seen.begins))),
                         saved_bytes=saved, completes=tuple(seen.completes))
            waiting = []
            ops += _by_phase(op, seen, of_weights)
        return ops, tensors

    def _weight_grads(self) -> list[bool]:
        """Of each operator: does all that it makes become gradients of parameters, inside its own
        autograd node or through nodes that parameters alone went into?"""
        result = [False] * len(self.seen)
        users: dict[int, list[tuple[Place, bool, bool]]] = {}
        for index in reversed(range(len(self.seen))):
            seen = self.seen[index]
            if not seen.is_backward:
                continue
            of_parameters = isinstance(seen.place, str) or (
                seen.place is not None and not self._is_of_data.get(seen.place, True))
            if of_parameters:
                result[index] = True
            elif seen.place is not None and not seen.is_view:
                later = [use for number in seen.writes for use in users.get(number, ())]
                result[index] = bool(later) and all(
                    is_weight and (is_final or place == seen.place)
                    for place, is_weight, is_final in later)
            if not seen.is_view or of_parameters:
                for number in seen.reads:
                    # Two gradients of one parameter are added up between nodes.
                    is_final = of_parameters or seen.op.name == 'aten.add'
                    users.setdefault(number, []).append((seen.place, result[index], is_final))
        return result


def _by_phase(op: Op, seen: Seen, of_weights: bool) -> list[Op]:
    if not seen.is_backward:
        return [replace(op, phase=FORWARD)]
    if not seen.masks:
        return [replace(op, phase=WEIGHT_GRAD if of_weights else INPUT_GRAD)]
    to_input, to_weight = seen.masks[:2]
    forward = Sizes(op.m, op.n, op.k, op.batch)
    parts = [is_weight for is_weight, is_made in ((False, to_input), (True, to_weight)) if is_made]
    if not parts:
        return [replace(op, phase=WEIGHT_GRAD)]
    made = []
    for is_weight in parts:
        m, n, k, batch = of_phase(forward, is_weight=is_weight)
        # Each half reads the output's gradient again: two kernels, as all libraries have them.
        made.append(replace(op, phase=WEIGHT_GRAD if is_weight else INPUT_GRAD, m=m, n=n, k=k,
                            batch=batch, flops=op.flops / len(parts),
                            begins=op.begins if is_weight == parts[0] else (),
                            ends=op.ends if is_weight == parts[-1] else (),
                            completes=op.completes if is_weight == parts[-1] else (),
                            saved_bytes=0))
    return made
