"""Parameters that are gathered module by module, as FSDP2 of torch 2.13 does it.

What is gathered is copied out of the buffer of the collective; forward, that buffer is kept until
the next one is filled. Backward, the next unit's gather begins while this one computes, gradients
are copied into a buffer for the reduce-scatter, which is kept until the next unit's is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vision.simulator.core.graph import ModuleGraph, Parameter, is_inside
from vision.simulator.core.program import FEATURE, GRADIENT
from vision.simulator.core.rewrite import first_backward
from vision.simulator.core.strategy import Spread

if TYPE_CHECKING:
    from vision.simulator.core.compile import Step


@dataclass(frozen=True)
class Unit:
    """Parameters that are gathered together.

    Args:
        name: of the module, '' for what no other unit has.
        forward, backward: indices of the first and of the last operator inside, of each pass;
            activations that are made again count as backward.
        shares: ranks over which each parameter is divided along its first dimension.
        is_reduced_late: its inputs need no gradient, so nobody knows before the end of the
            backward pass that its gradients are complete.
    """

    name: str
    parameters: tuple[Parameter, ...]
    forward: tuple[int, int]
    backward: tuple[int, int] | None
    shares: int
    is_reduced_late: bool

    def __str__(self) -> str:
        return self.name or 'the model'

    def _padded(self, each: Parameter) -> int:
        """Elements when the first dimension is filled up to a multiple of the shares."""
        if not each.shape:
            return self.shares
        rows = -(-each.shape[0] // self.shares) * self.shares
        return rows * (each.num_elements // each.shape[0])

    def shard_bytes(self, element_bytes: int | None) -> int:
        """Memory of one rank's share of the parameters, padding included; ``element_bytes`` of a
        number, None for that of each parameter."""
        return sum(self._padded(each) // self.shares * (element_bytes or each.element_bytes)
                   for each in self.parameters)

    def each_state_bytes(self, element_bytes: int | None) -> list[int]:
        """Memory of one tensor of a rank's optimizer, for each trained parameter."""
        return [self._padded(each) // self.shares * (element_bytes or each.element_bytes)
                for each in self.parameters if each.is_trained]

    def gathered_bytes(self, element_bytes: int | None) -> int:
        """Memory of all parameters gathered, padding included; ``element_bytes`` as in
        ``shard_bytes``."""
        return sum(self._padded(each) * (element_bytes or each.element_bytes)
                   for each in self.parameters)

    @property
    def reduced_bytes(self) -> int:
        """Memory of the whole gradients before they are reduced and scattered, padding
        included."""
        return sum(self._padded(each) * each.element_bytes for each in self.parameters
                   if each.is_trained)


def units_of(graph: ModuleGraph, spread: Spread) -> list[Unit]:
    """Units in order of first use; the one of the model itself first, as its hook runs first."""
    found = []
    trained_before: list[bool] = []
    seen, start = False, first_backward(graph.ops)
    of_module = {each.name: any(p.is_trained for p in each.parameters) for each in graph.modules}
    for op in graph.ops:
        trained_before.append(seen)
        seen = seen or of_module[op.module]
    for name in sorted(spread.units, key=lambda each: each != ''):
        parameters = tuple(each for module in graph.modules
                           if spread.layouts[module.name].unit == name
                           for each in module.parameters)
        ats = [at for at, op in enumerate(graph.ops) if is_inside(op.module, name)]
        forward = [at for at in ats if at < start]
        backward = [at for at in ats if at >= start]
        if parameters and forward:
            late = not name or not trained_before[forward[0]]
            found.append(Unit(name, parameters, (forward[0], forward[-1]),
                              (backward[0], backward[-1]) if backward else None, spread.dp, late))
    return sorted(found, key=lambda each: (each.forward[0], each.name.count('.'), each.name))


def hook_units(step: Step, before: dict[int, list], after: dict[int, list]) -> None:
    """Gathers and reductions of one micro-batch, at the operators where FSDP2's hooks run."""
    state = _Running(step)
    units = step.units
    for unit in units:
        before.setdefault(unit.forward[0], []).append(_bound(state.pre_forward, unit))
        after.setdefault(unit.forward[1], []).insert(0, _bound(state.post_forward, unit))
    after.setdefault(max(unit.forward[1] for unit in units), []).append(state.end_forward)
    backward = sorted((unit for unit in units if unit.backward), key=lambda each: (
        each.backward[0], -each.forward[1], each.name.count('.')))
    order = {unit.name: n for n, unit in enumerate(backward)}
    for unit in backward:
        following = backward[order[unit.name] + 1:order[unit.name] + 2]
        before.setdefault(unit.backward[0], []).append(
            lambda unit=unit, following=following: state.pre_backward(unit, following))
        if not unit.is_reduced_late:
            after.setdefault(unit.backward[1], []).insert(0, _bound(state.post_backward, unit))
    late = [unit for unit in backward if unit.is_reduced_late]
    end = len(step.graph.ops) - 1
    for unit in sorted(late, key=units.index):  # the callback at the end goes from the outermost
        after.setdefault(end, []).append(_bound(state.post_backward, unit))
    after.setdefault(end, []).append(state.finish)


def _bound(act: Callable[[Unit], None], unit: Unit) -> Callable[[], None]:
    return lambda: act(unit)


class _Running:
    """Of one micro-batch: what is gathered, and which buffers of collectives are kept."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.whole: dict[str, str] = {}
        self.pending: dict[str, tuple[int, str]] = {}
        self.kept_gather: str | None = None
        self.kept_reduce: tuple[int, str] | None = None
        self.count = 0

    def _gather(self, unit: Unit) -> None:
        if unit.name in self.whole or unit.name in self.pending:
            return
        step = self.step
        self.count += 1
        size = unit.gathered_bytes(step.settings.gathered_bytes)
        name = step.hold(f'gather {self.count} of {unit}.{step.mb}', size, 'communication')
        self.pending[unit.name] = step.collective(
            f'gather {unit}', 'all_gather', size, stream=FEATURE,
            after=self._copied_out(), begins=[name]), name

    def _copied_out(self) -> tuple[int, ...]:
        """A gather waits for the copy out of the one before: one is ahead, not more."""
        nodes = self.step.nodes
        at = next((at for at in reversed(range(len(nodes))) if nodes[at].kind in (
            'copy_out', 'optimizer')), None)
        return () if at is None else (at,)

    def _copy_out(self, unit: Unit, is_forward: bool) -> None:
        if unit.name in self.whole:
            return
        step = self.step
        node, buffer = self.pending.pop(unit.name)
        ends = [] if is_forward else [buffer]
        if is_forward and self.kept_gather:
            self.free(self.kept_gather, node)  # the new buffer is there, its copy is not
        self.kept_gather = buffer if is_forward else self.kept_gather
        size = unit.gathered_bytes(step.settings.gathered_bytes)
        name = step.hold(f'parameters {self.count} of {unit}.{step.mb}', size, 'parameters')
        step.wait(node)
        step.add(f'copy out {unit}', 'copy_out', step.copying(size),
                 begins=[name], ends=ends)
        self.whole[unit.name] = name

    def free(self, name: str, at: int | None = None) -> None:
        """At a node; at the compute node that was issued last."""
        nodes = self.step.nodes
        at = self.step.last()[0] if at is None else at
        nodes[at] = replace(nodes[at], ends=(*nodes[at].ends, name))

    def _end_reduce(self) -> None:
        """Compute waits for the reduction that was issued last, whose buffer is then free."""
        if self.kept_reduce is not None:
            node, name = self.kept_reduce
            self.step.wait(node)
            self.step.add('wait for gradients', 'wait', 0.0, ends=[name])
            self.kept_reduce = None

    def pre_forward(self, unit: Unit) -> None:
        self._gather(unit)
        self._copy_out(unit, is_forward=True)

    def post_forward(self, unit: Unit) -> None:
        if unit.name:  # the model's own stay whole: backward begins with them
            self.free(self.whole.pop(unit.name))

    def end_forward(self) -> None:
        if self.kept_gather:
            self.free(self.kept_gather)
            self.kept_gather = None

    def pre_backward(self, unit: Unit, following: list[Unit]) -> None:
        self._gather(unit)
        self._copy_out(unit, is_forward=False)
        for each in following:
            self._gather(each)

    def post_backward(self, unit: Unit) -> None:
        step = self.step
        if unit.name in self.whole:
            self.free(self.whole.pop(unit.name))
        self._end_reduce()
        if not unit.reduced_bytes:
            return
        names = [each.name for each in unit.parameters]
        buffer = step.hold(f'reduce {unit}.{step.mb}', unit.reduced_bytes, 'communication')
        step.add(f'copy in {unit}', 'copy_in', step.copying(unit.reduced_bytes),
                 begins=[buffer], ends=step.gradients(names, step.mb))
        size = sum(unit.each_state_bytes(step.settings.master_bytes))
        shard = [] if step.mb else [step.hold(f'gradient shard of {unit}', size,
                                              'gradients')]
        node = step.collective(f'reduce {unit}', 'reduce_scatter', unit.reduced_bytes,
                               stream=GRADIENT, after=step.last(), begins=shard)
        self.kept_reduce = node, buffer

    def finish(self) -> None:
        """The end of the backward pass waits for all reductions."""
        self._end_reduce()
        for name in self.whole.values():
            self.free(name)
        for _, name in self.pending.values():
            self.free(name)
