"""One step under watch: a dispatch mode that records it, hooks that hold what autograd saves."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vision.common.core.errors import VisionError
from vision.memory.core import graph
from vision.memory.nn.nodes import WRITTEN, Call, Handle, Leaf, Node, Saved, Slot
from vision.memory.nn.operators import PLAIN_DTYPES, Operator, flat_tensors
from vision.memory.nn.torch_private import (
    TorchDispatchMode,
    geometry,
    graph_task,
    is_compiling,
    unseen,
)
from vision.memory.nn.tracker import LiveBytes, Watch, storage_of

COMPILED = VisionError(
    'VIS-CONFIG-1412', 'a compiled model runs under an activation budget of ours',
    why='an active recorder makes the compiler fall back to eager without a word, so that neither '
    'would do what it promises', do='leave torch.compile out, or leave the budget out and set '
    "the compiler's own: torch._functorch.config.activation_memory_budget")


class Clock:
    """Seconds of each operator, on the thread that runs it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def start(self) -> Any:
        """A mark to give to ``stop``: seconds of ``time.perf_counter``."""
        return time.perf_counter()

    def stop(self, start: Any) -> float:
        """Seconds since the mark; also kept as those of the next operator."""
        self.seconds.append(time.perf_counter() - start)
        return self.seconds[-1]

    def read(self) -> list[float]:
        """Seconds of each operator, by moment; may wait for the device."""
        return self.seconds


class CudaClock(Clock):
    """On the device, which is ahead of no one: what ``stop`` gives back is the launch alone, and
    events tell the rest once the step is over."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def start(self) -> Any:
        """A mark to give to ``stop``: an event on the current stream, and the host's seconds."""
        began = torch.cuda.Event(enable_timing=True)
        began.record()
        return began, time.perf_counter()

    def stop(self, start: Any) -> float:
        """Seconds of the launch since the mark; the events are kept for ``read``."""
        ended = torch.cuda.Event(enable_timing=True)
        ended.record()
        self.events.append((start[0], ended))
        return super().stop(start[1])

    def read(self) -> list[float]:
        """Seconds of each operator on the device; waits until all of them are done."""
        torch.cuda.synchronize()
        return [began.elapsed_time(ended) / 1e3 for began, ended in self.events]


class Step(TorchDispatchMode):
    """Records the operators of one step and counts its memory.

    Args:
        control: decides what leaves; ``vision.memory.nn.control.Control``.
        operators: what is known of each overload, by ``id``; kept by the manager over steps.
        min_bytes: smaller storages stay, as do those on another type of device.

    Attributes:
        num_ops: operators so far, which is the moment of the next one; views do not count.
        num_away, away_bytes: values whose handles are open and whose memory is free.
        is_passing: operators run through: replays and our own.
        is_inside: ``__torch_dispatch__`` asks the control, without this mode on torch's stack.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # dynamo's wrapper costs more than the record; compiled models are refused

    def __init__(self, control: Any, operators: dict[int, Operator], min_bytes: int,
                 device_type: str, clock: Clock) -> None:
        super().__init__()
        self.control, self.operators, self.clock = control, operators, clock
        self.min_bytes, self.device_type = min_bytes, device_type
        self.bytes = LiveBytes(self._storage_freed)
        self.nodes: list[Node] = []
        self.calls: list[Call] = []
        self.current: dict[int, Node] = {}  # by address of the storage
        self.leaves: dict[int, Leaf] = {}
        self.num_ops = self.num_packed = 0
        self.saved_bytes = self.peak_saved_bytes = self.away_bytes = self.num_away = 0
        self.is_passing = self.is_inside = self.is_closed = False
        self.keys: list[tuple[Any, int]] = []  # (operator, bytes it made) by moment
        self.live: list[int] = []
        self.num_forward = self.backward_end = 0  # moment after the last inside backward
        self.reads: list[tuple[int, int]] = []
        self.pins = 0  # modules entered whose activations stay
        self.scopes: list[str] = []
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def begin(self) -> None:
        """Record from here on. Python's garbage collector rests until ``close``."""
        # Python's collector would look through thousands of records again and again, for nothing:
        # 0.2 s in every tenth step of a small net, and once more if it woke before they are gone.
        self._collects = gc.isenabled()
        gc.disable()
        self.__enter__()
        self._hooks.__enter__()

    def end(self) -> None:
        """Record no more; handles that are open keep working."""
        self._hooks.__exit__(None, None, None)
        self.__exit__(None, None, None)

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Operators run through, counted; also from inside of ``__torch_dispatch__``, where torch
        has taken this mode off."""
        before, self.is_passing = self.is_passing, True
        try:
            if self.is_inside:
                with self:
                    yield
            else:
                yield
        finally:
            self.is_passing = before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        operator = self.operators.get(id(func))  # its own hash runs in Python
        if operator is None:
            operator = self.operators[id(func)] = Operator(func)
        if operator.is_view:
            return func(*args, **kwargs) if kwargs else func(*args)
        if self.is_passing:
            result = func(*args, **kwargs) if kwargs else func(*args)
            self.bytes.add_results(result, operator.written(args, kwargs))
            return result
        is_forward = graph_task() == -1
        if is_forward and is_compiling():
            raise COMPILED
        moment, control = self.num_ops, self.control
        writes = operator.writes
        self.is_inside = True
        control.before(moment, func)
        if writes and self.num_away and not operator.is_refill:
            control.before_write(operator.written(args, kwargs))
        self.is_inside = False
        rng = control.draws(args) if operator.is_random and is_forward else None
        start = self.clock.start()
        try:
            result = func(*args, **kwargs) if kwargs else func(*args)
        except RuntimeError as error:
            self.is_inside = True
            has_room = not writes and control.makes_room(error)
            self.is_inside = False
            if not has_room:
                raise
            result = func(*args, **kwargs) if kwargs else func(*args)
        seconds = self.clock.stop(start)
        live = self.bytes.live
        self.num_ops += 1
        if is_forward:
            self.num_forward += 1
            self._record(operator, moment, args, kwargs, result, rng, seconds)
        else:
            written = operator.written(args, kwargs) if writes else ()
            if written:
                self._overwritten(written)
            self.bytes.add_results(result, written)
            self.backward_end = self.num_ops
        made = self.bytes.live - live
        self.keys.append((func, made))
        # What is on its way to the host is away, and lives on the device until it is there.
        self.live.append(self.bytes.live + self.away_bytes
                         - control.residence.transfer.leaving_bytes)
        self.is_inside = True
        control.after(moment)
        self.is_inside = False
        return result

    # What is recorded

    def _record(self, operator: Operator, moment: int, args: tuple, kwargs: dict | None,
                result: Any, rng: Tensor | None, seconds: float) -> None:
        call = Call(operator, moment, len(self.calls))
        call.seconds, call.rng = seconds, rng
        known = self._new_versions(call, operator, args, kwargs) if operator.writes else ()
        for position, tensor in enumerate(flat_tensors(result)):
            storage = plain_storage(tensor)
            if storage is None:
                call.is_plain = False
            elif storage._cdata not in known and (watch := self.bytes.add(storage)) is not None:
                call.outputs.append((position, self._node(call, watch, tensor)))
        if not call.outputs:  # it wrote into parameters or buffers, or gave numbers
            return
        self.calls.append(call)
        needed = self.control.needed
        if needed is not None and moment not in needed:
            call.is_plain = False
            return
        slot = self._slot
        inputs = call.args
        for value in args:
            if isinstance(value, Tensor):
                inputs.append(slot(call, value))
            elif type(value) in (tuple, list):
                inputs.append([slot(call, part) if isinstance(part, Tensor) else part
                               for part in value])
            else:
                inputs.append(value)
        if kwargs:
            if kwargs.get('generator') is not None:  # its state is not ours to set
                call.is_plain = False
            for name, value in kwargs.items():
                call.kwargs[name] = slot(call, value) if isinstance(value, Tensor) else value

    def _slot(self, call: Call, tensor: Tensor) -> Slot | None:
        storage = plain_storage(tensor)
        if storage is None:
            call.is_plain = False
            return None
        key = storage._cdata
        view = geometry(tensor)
        node = self.current.get(key)
        if node is None:
            leaf = self.leaves.get(key)
            if leaf is None:
                # The tensor itself: an alias made below autograd would not share its version.
                leaf = self.leaves[key] = Leaf(tensor, view)
            return Slot(leaf, tensor._version, view)
        if node.call is call:  # written in place: the argument is the version before
            if call.inplace is not None and call.inplace[1] is node:
                call.nodes.append(call.inplace[0])
                return Slot(call.inplace[0], 0, view)
            return Slot(node, 0, view)  # overwritten in full
        call.nodes.append(node)
        return Slot(node, 0, view)

    def _node(self, call: Call, watch: Watch, tensor: Tensor) -> Node:
        node = Node(len(self.nodes), call, watch, geometry(tensor))
        if self.pins:
            node.is_pinned = True
        if self.scopes:
            node.where = self.scopes[-1]
        self.nodes.append(node)
        self.current[watch.key] = node
        return node

    def _new_versions(self, call: Call, operator: Operator, args: tuple, kwargs: dict | None
                      ) -> set[int]:
        """Give what was written in place its new node; addresses of all that was written."""
        known = set()
        for place in operator.writes:
            value = operator.argument(place, args, kwargs)
            written = flat_tensors(value)
            self.bytes.resized(written)
            for tensor in written:
                storage = plain_storage(tensor)
                if storage is None:
                    continue
                known.add(storage._cdata)
                old = self.current.get(storage._cdata)
                if old is None or old.call is call:
                    continue
                watch, old.watch, old.death = old.watch, None, call.moment
                node = self._node(call, watch, tensor)
                if tensor is not value or place != 0:  # lists, out=: not run again
                    call.is_plain = False
                is_whole = tensor.numel() * tensor.element_size() == storage.nbytes()
                if operator.is_overwrite and is_whole:
                    call.overwrites = node
                else:
                    call.inplace = (old, node)
                call.outputs.append((WRITTEN, node))
        return known

    def _overwritten(self, tensors: list[Tensor]) -> None:
        """Backward wrote into these: what the forward pass made there is no more."""
        self.bytes.resized(tensors)
        for tensor in tensors:
            storage = plain_storage(tensor)
            node = None if storage is None else self.current.pop(storage._cdata, None)
            if node is not None:
                node.watch, node.death = None, self.num_ops - 1

    def parted(self, node: Node) -> None:
        """The node's bytes are on their way to the host: what becomes of its storage, and of the
        storage's address, is nothing to it any more."""
        self.current.pop(node.watch.key, None)
        node.watch = None

    def make_root(self, tensor: Tensor) -> None:
        """Never make this tensor's memory again, whatever shape of it the tensor shows."""
        storage = plain_storage(tensor)
        if storage is not None and (node := self.current.get(storage._cdata)) is not None:
            node.is_root, node.call.durable = True, None

    # What autograd saves

    def _pack(self, tensor: Tensor) -> Saved | Handle:
        with unseen():
            alias = tensor.detach()
        node = None
        if graph_task() == -1 and not self.is_closed:
            storage = plain_storage(tensor)
            node = None if storage is None else self.current.get(storage._cdata)
        else:
            self.control.has_second_order = True
        if node is None or node.num_bytes < self.min_bytes or node.watch is None \
                or tensor.device.type != self.device_type:
            return Saved(alias)
        if node.packed is None:
            node.packed, node.order = self.num_ops - 1, self.num_packed
            self.num_packed += 1
            self.saved_bytes += node.num_bytes
            self.peak_saved_bytes = max(self.peak_saved_bytes, self.saved_bytes)
            self.control.packed(node)
        return Handle(Saved(alias), node, self)

    def _unpack(self, handle: Saved | Handle) -> Tensor:
        saved = handle
        if type(handle) is Handle:
            saved, node = handle.saved, handle.node
            saved.refuse_if_changed()
            if not self.is_closed:
                self.reads.append((self.num_ops, node.index))
            self.control.read(node)
        else:
            saved.refuse_if_changed()
            return saved.alias
        with unseen():
            return saved.alias.detach()  # autograd's own: ours may become a shell

    def closed(self, handle: Handle) -> None:
        """Autograd needs this handle no more."""
        node = handle.node
        node.handles.remove(handle.saved)
        if not node.handles:
            self.saved_bytes -= node.num_bytes
            if node.away is not None:
                node.death = self.num_ops - 1
            self.control.forget(node)

    def _storage_freed(self, watch: Watch) -> None:
        node = self.current.get(watch.key)
        if node is not None and node.watch is watch:
            del self.current[watch.key]
            node.watch = None
            if node.away is None:
                node.death = self.num_ops - 1

    # What it was

    def trace(self) -> graph.Trace:
        """The step in numbers; of a managed step, as it would have been without a budget."""
        last, seconds = self.num_ops - 1, self.clock.read()
        values = tuple(graph.Value(
            num_bytes=node.num_bytes, call=node.call.index, born=node.born,
            death=last if node.death < 0 else max(node.death, node.born), packed=node.packed,
            idle=node.idle, may_drop=node.packed is not None and not node.is_pinned,
            where=node.where, shape=tuple(node.geometry[1])) for node in self.nodes)
        calls = tuple(graph.Call(
            name=call.operator.name, moment=call.moment,
            seconds=seconds[call.moment],
            inputs=tuple(dict.fromkeys(node.index for node in call.nodes)),
            outputs=tuple(node.index for _, node in call.outputs),
            replayable=self.control.residence.may_replay(call),
            inplace=((call.inplace[0].index, call.inplace[1].index),) if call.inplace else ())
            for call in self.calls)
        return graph.Trace(
            calls=calls, values=values, live_bytes=np.array(self.live, np.int64),
            made_bytes=np.array([made for _, made in self.keys], np.int64),
            seconds=np.array(seconds), reads=tuple(self.reads),
            signature=hash(tuple(self.keys[:self.num_forward])))

    def close(self, *, is_failed: bool = False) -> bool:
        """Let go of everything that no open handle needs; does a graph outlive the step?"""
        self.is_closed = True
        self.bytes.close()
        self.current.clear()
        self.leaves.clear()
        is_open = any(node.away for node in self.nodes)
        if is_failed or not is_open:
            for call in self.calls:
                call.clear()
        self.nodes, self.calls, self._hooks = [], [], None
        if self._collects:
            gc.enable()
        return is_open


def plain_storage(tensor: Tensor) -> torch.UntypedStorage | None:
    """The storage of a tensor (any shape) that its geometry describes; None of any other."""
    if tensor.dtype not in PLAIN_DTYPES or tensor.is_neg() or tensor.layout is not torch.strided:
        return None
    return storage_of(tensor)
