"""Where saved values are: leaving memory, and coming back as they were."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vision.common.core.errors import VisionError
from vision.memory.nn.nodes import WRITTEN, Call, Leaf, Node, Slot
from vision.memory.nn.operators import flat_tensors
from vision.memory.nn.step import Step
from vision.memory.nn.torch_private import (
    count_holders,
    geometry,
    plain_kernels,
    tensor_on,
    unseen,
)
from vision.memory.nn.transfer import Transfer, as_bytes


class Chain(NamedTuple):
    """What must run again for one value.

    Args:
        calls: in order; none: the value comes from the host alone.
        swapped: nodes that come back from the host first.
        there: nodes that are there.
    """

    calls: list[Call]
    swapped: list[Node]
    there: list[Node]

    @property
    def seconds(self) -> float:
        """Time that its calls took when they ran first."""
        return sum(call.seconds for call in self.calls)


class Group:
    """Bytes of dropped values that are made from each other."""

    __slots__ = ('num_bytes', 'parent')

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes, self.parent = num_bytes, None

    def root(self) -> Group:
        """The group that this one has been merged into; itself, if none."""
        group = self
        while group.parent is not None:
            group = group.parent
        return group


class Residence:
    """Drops, swaps, restores and replays the values of one step.

    Args:
        refused: names of operators that gave another result when they ran again; grows.
        must_check: sum the bytes of what leaves and compare when it is back.
    """

    def __init__(self, step: Step, transfer: Transfer, refused: set[str], *,
                 must_check: bool) -> None:
        self.step, self.transfer, self.refused = step, transfer, refused
        self.must_check = must_check
        self.replayed_calls = self.swapped_bytes = 0
        self.replay_seconds = self.swap_seconds = 0.0
        self.drops = dict(drop=0, swap=0)
        self._shells: dict[tuple, Tensor] = {}

    # What can be done

    def is_idle(self, node: Node) -> bool:
        """Would leaving free its memory? Only if nobody but our handles shows the storage."""
        storage = node.storage()
        return storage is not None and bool(node.handles) and \
            count_holders(storage) == len(node.handles) + (node.anchor is not None)

    def may_replay(self, call: Call) -> bool:
        """Whether its operator can run twice, was never found to give another result, and made
        nothing that must be kept as it was made."""
        return call.is_plain and call.operator.name not in self.refused \
            and not any(node.is_root for _, node in call.outputs)

    def chain(self, target: Node) -> Chain | None:
        """What must run so that a node that is not there is there; None: it cannot be made."""
        calls: list[Call] = []
        swapped: dict[Node, None] = {}
        there: dict[Node, None] = {}
        seen = {target.call}
        if not self._is_ready(target.call):
            return None
        stack = [(target.call, iter(target.call.nodes))]
        while stack:
            call, inputs = stack[-1]
            for node in inputs:
                if node.storage() is not None:
                    there[node] = None
                elif node.block is not None:
                    swapped[node] = None
                elif node.call not in seen:
                    if not self._is_ready(node.call):
                        return None
                    seen.add(node.call)
                    stack.append((node.call, iter(node.call.nodes)))
                    break
            else:
                calls.append(call)
                stack.pop()
        return Chain(calls, list(swapped), list(there))

    def _is_ready(self, call: Call) -> bool:
        """May it run again, and is what it read from outside as it was?"""
        if not self.may_replay(call):
            return False
        return all(slot.source.tensor._version == slot.version
                   and slot.source.tensor.untyped_storage().nbytes()  # 0: given back by FSDP2
                   for slot in call.leaf_slots())

    def _is_durable(self, call: Call) -> bool:
        """Could it and all that it is made from be made from parameters and the batch alone?"""
        stack, age = [call], len(self.refused)
        while stack:
            top = stack[-1]
            if top.durable is not None and top.durable[0] == age:
                stack.pop()
                continue
            unknown = [node.call for node in top.nodes
                       if node.call.durable is None or node.call.durable[0] != age]
            if unknown and self.may_replay(top):
                stack += unknown
                continue
            top.durable = age, self.may_replay(top) and all(
                node.call.durable[1] for node in top.nodes)
            stack.pop()
        return call.durable[1]

    def _must_hold(self, chain: Chain) -> list[Node]:
        """What the calls of a chain start from may go before they run. It is then made again in
        its turn, from what is not durable but is there; that is what must be held meanwhile."""
        held: list[Node] = []
        is_sure: dict[Node, bool] = {}
        stack = [*chain.there, *chain.swapped]
        while stack:
            node = stack[-1]
            if node not in is_sure:
                call = node.call
                is_made = self._is_durable(call)
                if not is_made and self.may_replay(call):
                    if unknown := [each for each in call.nodes if each not in is_sure]:
                        stack += unknown
                        continue
                    is_made = all(is_sure[each] for each in call.nodes)
                is_here = node.storage() is not None or node.block is not None
                if is_here and not is_made:
                    held.append(node)
                is_sure[node] = is_made or is_here
            stack.pop()
        return held

    def restore_seconds(self, node: Node, actions: str) -> tuple[float, str]:
        """(seconds that its absence costs, by the better action); infinite: it must stay."""
        replay = swap = math.inf
        if actions != 'swap' and (chain := self.chain(node)) is not None:
            replay = chain.seconds + sum(node.num_bytes for node in chain.swapped) \
                / self.transfer.link.in_bytes_per_s
        if actions != 'recompute':
            link = self.transfer.link
            swap = node.num_bytes * (1 / link.out_bytes_per_s + 1 / link.in_bytes_per_s)
        return (replay, 'drop') if replay <= swap else (swap, 'swap')

    # Leaving

    def leave(self, node: Node, action: str) -> bool:
        """Free its memory; False: it cannot leave that way."""
        if node.locks or node.is_pinned or not self.is_idle(node):
            return False
        self.arrived(node)  # its copy back may be on its way, and nothing has read it
        storage = node.storage()
        if action == 'drop':
            chain = self.chain(node)
            if chain is None:
                return False
            for source in self._must_hold(chain):
                self._lock(source, node)
            self._join(node, chain)
        else:
            start = time.perf_counter()
            node.block = self.transfer.out(storage)
            self.swap_seconds += time.perf_counter() - start
            if node.block is None:
                return False
            self.step.parted(node)
            self.swapped_bytes += node.num_bytes
        if self.must_check:
            with unseen():
                node.check = _checksum(storage)
        del storage
        node.away = action
        node.num_leaves += 1
        self.drops[action] += 1
        self.step.num_away += 1
        self.step.away_bytes += node.num_bytes
        with unseen():
            for saved in node.handles:
                saved.geometry = geometry(saved.alias)
                saved.alias.data = self._shell(saved.alias)
        return True

    def joint_bytes(self, node: Node) -> int:
        """What comes back together, at most, once this node is dropped too: dropped values that
        are made from each other, as groups that only grow within a step (DTR's neighbourhoods)."""
        chain = self.chain(node)
        groups = {} if chain is None else self._groups(node, chain)
        return node.num_bytes + sum(group.num_bytes for group in groups.values())

    def _groups(self, node: Node, chain: Chain) -> dict[int, Group]:
        made = [value for call in chain.calls for _, value in call.outputs]
        return {id(group): group for value in made + node.dependents
                if value.away == 'drop' for group in (value.group.root(),)}

    def _join(self, node: Node, chain: Chain) -> None:
        whole = Group(node.num_bytes)
        for group in self._groups(node, chain).values():
            group.parent = whole
            whole.num_bytes += group.num_bytes
        node.group = whole
        for source in chain.there:
            source.dependents.append(node)
        for call in chain.calls:
            for slot in call.leaf_slots():
                slot.source.dependents.append(node)

    def _shell(self, alias: Tensor) -> Tensor:
        key = alias.dtype, alias.device
        if key not in self._shells:
            self._shells[key] = torch.empty(0, dtype=alias.dtype, device=alias.device)
        return self._shells[key]

    def _lock(self, root: Node, dependent: Node) -> None:
        root.locks += 1
        dependent.locked_by.append(root)
        self._hold(root)

    def _hold(self, root: Node) -> None:
        if root.locks and root.anchor is None and (storage := root.storage()) is not None:
            with unseen():
                root.anchor = tensor_on(storage, root.geometry)

    def _unlock(self, dependent: Node) -> None:
        for root in dependent.locked_by:
            root.locks -= 1
            if not root.locks:
                root.anchor = None
                if root.away == 'host':
                    self._release(root)
        dependent.locked_by = []

    def forget(self, node: Node) -> None:
        """No handle is open any more."""
        if node.away is not None:
            self._count_back(node)
            node.away = 'host' if node.block is not None and node.locks else None
        if node.block is not None and node.away is None:
            self._release(node)
        if node.locked_by:
            self._unlock(node)

    def _release(self, node: Node) -> None:
        self.transfer.release(node.block)
        node.block = node.away = None

    def _count_back(self, node: Node) -> None:
        self.step.num_away -= 1
        self.step.away_bytes -= node.num_bytes

    def abandon(self, nodes: list[Node]) -> None:
        """After an error: the host's blocks are free, nothing is held for a replay."""
        for node in nodes:
            if node.block is not None:
                self.transfer.release(node.block)
                node.block, node.away = None, 'drop'
            node.anchor, node.locks, node.locked_by = None, 0, []

    # Coming back

    def restore(self, node: Node) -> None:
        """Make its handles show its bytes again.

        Raises:
            VisionError: it can no longer be made, or its bytes are not those that left.
        """
        with self.step.passing():
            if node.block is not None:
                self._back_from_host(node)
            else:
                chain = self.chain(node)
                if chain is None:
                    raise VisionError(
                        'VIS-RUN-1412', f'the output of {node.call.operator.name} was dropped and '
                        'cannot be made again', where=node.where,
                        why='what it is made from was changed in the meantime, or its step ended '
                        'with an error', do='keep the module: MemoryBudget.keep(module), or '
                        "activation_memory=dict(ignore=['its.name'])")
                for source in chain.swapped:
                    self._back_from_host(source)
                self._run(chain.calls)

    def _back_from_host(self, node: Node) -> None:
        start = time.perf_counter()
        storage, node.arrival = self.transfer.back(node.block, node.num_bytes)
        node.block = None  # only now: there may have been no memory
        self._fill(node, storage)
        self.swap_seconds += time.perf_counter() - start

    def fetch(self, node: Node) -> None:
        """Begin to copy back what will be read soon."""
        if node.block is not None:
            with self.step.passing():
                self._back_from_host(node)

    def arrived(self, node: Node) -> None:
        """Let what computes from now on wait for the node's copy."""
        if node.arrival is not None:
            self.transfer.wait(node.arrival)
            node.arrival = None

    def _fill(self, node: Node, storage: torch.UntypedStorage) -> None:
        """The storage is the node's from now on, and every handle shows it."""
        with unseen():
            if node.check is not None:
                self.arrived(node)
            if node.check is not None and _checksum(storage) != node.check:
                raise VisionError(
                    'VIS-RUN-1411', f'{node.call.operator.name} came back with other bytes',
                    where=node.where, why='a kernel that is not deterministic, or memory that '
                    'was written where autograd cannot see it', do='keep the module, or use '
                    "actions='swap'; this step's gradients were not applied")
            for saved in node.handles:
                saved.alias.data = tensor_on(storage, saved.geometry)
        watches = self.step.bytes.watches
        node.watch = watches.get(storage._cdata) or self.step.bytes.add(storage)
        self.step.current[storage._cdata] = node
        self._hold(node)
        if node.away in ('drop', 'swap'):
            self._count_back(node)
        node.away = None
        if node.locked_by:
            self._unlock(node)

    def _run(self, calls: list[Call], compare: Node | None = None) -> bool:
        """Run calls again; hand their results to nodes that wait for them.

        Args:
            compare: only tell whether this node's bytes come out, and hand nothing on.
        """
        uses = Counter(node for call in calls for node in call.nodes)
        made: dict[Node, torch.UntypedStorage] = {}
        is_equal = True
        with plain_kernels(self.transfer.device.type):
            for call in calls:
                for node, storage in self._again(call, uses, made):
                    if node is compare:
                        with unseen():
                            is_equal = _same_bytes(storage, node.storage())
                    if compare is None and node.handles and node.away is not None:
                        self._fill(node, storage)
                    elif uses[node] and node.storage() is None:
                        made[node] = storage
                    del storage
                for node in call.nodes:
                    uses[node] -= 1
                    if not uses[node]:
                        made.pop(node, None)
                self.replayed_calls += 1
        return is_equal

    def _again(self, call: Call, uses: Counter, made: dict[Node, torch.UntypedStorage]
               ) -> Iterable[tuple[Node, torch.UntypedStorage]]:
        """One call: (node, storage) of what it made."""
        args = [self._tensors(value, made) for value in call.args]
        kwargs = {name: self._tensors(value, made) for name, value in call.kwargs.items()}
        written = None
        if call.inplace is not None:
            written = self._own(call.inplace[0], uses, made)
            args[0] = tensor_on(written, call.args[0].geometry)
        elif call.overwrites is not None:
            written = torch.empty(call.overwrites.num_bytes, dtype=torch.uint8,
                                  device=self.transfer.device).untyped_storage()
            args[0] = tensor_on(written, call.args[0].geometry)
        for position in call.operator.running:
            if position < len(args) and isinstance(args[position], Tensor):
                args[position] = args[position].clone()
        with kept_generator(call.rng):
            start = time.perf_counter()
            result = call.operator.func(*args, **kwargs)
            self.replay_seconds += time.perf_counter() - start
        del args, kwargs
        tensors = flat_tensors(result)
        return [(node, written if position == WRITTEN
                 else tensors[position].untyped_storage()) for position, node in call.outputs]

    def _own(self, node: Node, uses: Counter, made: dict[Node, torch.UntypedStorage]
             ) -> torch.UntypedStorage:
        """Memory with the node's bytes that may be written: its own if nobody else needs it."""
        if node in made and uses[node] == 1:
            return made.pop(node)
        storage = made[node] if node in made else node.storage()
        return as_bytes(storage).clone().untyped_storage()

    def _tensors(self, value: Any, made: dict[Node, torch.UntypedStorage]) -> Any:
        if type(value) is Slot:
            source = value.source
            if type(source) is Leaf:
                if value.geometry == source.geometry:
                    return source.tensor
                return tensor_on(source.tensor.untyped_storage(), value.geometry)
            storage = made.get(source)
            if storage is None:
                self.arrived(source)
                storage = source.storage()
            return None if storage is None else tensor_on(storage, value.geometry)
        if type(value) is list:
            return [self._tensors(part, made) for part in value]
        return value

    # Trust

    def verify(self, node: Node) -> bool:
        """Run again what made a node that is there, and compare every byte. An operator that
        gives others is refused from then on, as is one that cannot run a second time."""
        chain = self.chain(node)
        if chain is None or chain.swapped:
            return False
        self.arrived(node)
        before = self.replayed_calls, self.replay_seconds
        try:
            with self.step.passing():
                is_equal = self._run(chain.calls, compare=node)
        except torch.OutOfMemoryError:  # says nothing about the operator
            return False
        except RuntimeError:
            is_equal = False
        finally:
            self.replayed_calls, self.replay_seconds = before
        if not is_equal:
            self.refused.add(node.call.operator.name)
        return is_equal


@contextmanager
def kept_generator(state: tuple[torch.device, Tensor] | None) -> Iterator[None]:
    """Inside, the default generator stands where it stood when an operator first drew.

    ``state`` is what ``generator_state`` gave then: the device, and bytes of shape (N,).
    """
    if state is None:
        yield
        return
    device, drawn_at = state
    with unseen():
        before = generator_state(device)[1]
        set_generator_state(device, drawn_at)
    try:
        yield
    finally:
        with unseen():
            set_generator_state(device, before)


def generator_state(device: torch.device) -> tuple[torch.device, Tensor]:
    """The device, and its default generator's state now: uint8 of shape (N,), on the host."""
    if device.type == 'cuda':
        return device, torch.cuda.get_rng_state(device)
    return device, torch.get_rng_state()


def set_generator_state(device: torch.device, state: Tensor) -> None:
    """Put the device's default generator into a state (N,) that ``generator_state`` gave."""
    if device.type == 'cuda':
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def _same_bytes(one: torch.UntypedStorage, other: torch.UntypedStorage) -> bool:
    return one.nbytes() == other.nbytes() and torch.equal(as_bytes(one), as_bytes(other))


def _checksum(storage: torch.UntypedStorage) -> int:
    """Of all words, and of those in odd places with another weight: any one change shows."""
    raw = as_bytes(storage)
    words = raw[:raw.numel() // 8 * 8].view(torch.int64)
    half = words[::2].sum() - 3 * words[1::2].sum()
    return int(words.sum()) ^ int(half) * 31 ^ int(raw[words.numel() * 8:].sum())
