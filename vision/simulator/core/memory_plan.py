"""The plan that ``vision.memory`` makes under a budget of activations, in a model's graph.

A traced graph says which operator makes, reads and frees each tensor: what the memory manager
records of a step that runs. Here its planner sees the same step with counted times, and what it
decides is written into the graph: operators that run again, copies to host memory and back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vision.common.core.errors import VisionError
from vision.memory.core.graph import Call, Trace, Value
from vision.memory.core.plan import Link, Plan, make_plan
from vision.memory.core.predict import Outcome, Simulator
from vision.simulator.core.graph import AGAIN, ModuleGraph, Op, is_inside
from vision.simulator.core.rewrite import D2H_OP, H2D_OP, first_backward, renamed

SMALLEST_BYTES = 65536  # of what may leave, as the manager's ``min_bytes``


@dataclass(frozen=True)
class MemoryOptions:
    """Of ``activation_memory`` in a config.

    Args:
        ratio, num_bytes: budget of what a step makes, gradients included; one of both.
        actions: 'recompute', 'swap' or 'both'.
        host_bytes: most that may lie in host memory.
        min_bytes: smaller tensors stay.
        ignore: modules whose tensors stay.
    """

    ratio: float | None = None
    num_bytes: int | None = None
    actions: str = 'both'
    host_bytes: int | None = None
    min_bytes: int = SMALLEST_BYTES
    ignore: tuple[str, ...] = ()


def with_memory_plan(graph: ModuleGraph, options: MemoryOptions,
                     seconds_of: Callable[[Op], float], link: Link) -> tuple[ModuleGraph, Plan]:
    """The graph of a step under a budget, and the plan.

    Args:
        seconds_of: an operator on the device.
        link: to host memory.

    Raises:
        VisionError: VIS-CONFIG-1676, nobody followed the graph's tensors.
    """
    if not any(op.reads for op in graph.ops):
        raise VisionError('VIS-CONFIG-1676', 'a plan of activations for a graph whose operators '
                          'do not say what they read', where='activation_memory',
                          why='it was counted from sizes, or made by hand',
                          do='trace a module (vision.simulator.nn.trace), or name modules: '
                          'StrategyTree.recompute(), offload()')
    step, keys = memory_step(graph, seconds_of, min_bytes=options.min_bytes,
                             ignore=options.ignore)
    budget = options.num_bytes or int(options.ratio * step.peak_bytes)
    plan = make_plan(step, budget, actions=options.actions, link=link,
                     host_bytes=options.host_bytes)
    outcome = Simulator(step, link).run(plan.actions, plan.fetches)
    return apply_plan(graph, step, keys, plan.actions, outcome), plan


def memory_step(graph: ModuleGraph, seconds_of: Callable[[Op], float], *,
                min_bytes: int = SMALLEST_BYTES, ignore: Sequence[str] = ()
                ) -> tuple[Trace, list[int]]:
    """(step as the memory manager records one, key in ``graph.tensors`` of each of its values).

    A tensor that an operator writes in place is another value from then on. Nobody but autograd
    holds what a forward operator has read for the last time (our choice: Python may keep a name a
    little longer).
    """
    ops, start = graph.ops, first_backward(graph.ops)
    gone = {key: at for at, op in enumerate(ops) for key in op.ends}
    calls: list[Call] = []
    values: list[Value] = []
    keys: list[int] = []
    version: dict[int, int] = {}
    last_read: dict[int, int] = {}
    for at, op in enumerate(ops[:start]):
        inputs = tuple(version[key] for key in op.reads if key in version)
        inplace = []
        for key in (*op.begins, *op.writes):
            if key in op.writes and key not in version:
                continue
            if key in op.writes:
                old = version[key]
                inplace.append((old, len(values)))
                values[old] = replace(values[old], death=at)
            version[key] = len(values)
            values.append(Value(graph.tensors[key].num_bytes, at, at,
                                gone.get(key, len(ops) - 1), where=op.module))
            keys.append(key)
        last_read |= dict.fromkeys(inputs, at)
        calls.append(Call(op.name, at, seconds_of(op), inputs, tuple(
            index for index in range(len(values)) if values[index].call == at),
            inplace=tuple(inplace)))
    for index, value in enumerate(values):
        if value.death >= start and version[keys[index]] == index:
            is_held = any(is_inside(value.where, name) for name in ignore)
            values[index] = replace(
                value, packed=value.born, idle=last_read.get(index, value.born),
                may_drop=value.num_bytes >= min_bytes and not is_held
                and graph.tensors[keys[index]].category == 'activations')
    made = np.array([sum(graph.tensors[key].num_bytes for key in op.begins) for op in ops])
    freed = np.array([sum(graph.tensors[key].num_bytes for key in op.ends) for op in ops])
    live = np.cumsum(made) - np.concatenate([[0], np.cumsum(freed)[:-1]])
    reads = tuple((at, version[key]) for at in range(start, len(ops)) for key in ops[at].reads
                  if key in version and values[version[key]].death >= start)
    return Trace(tuple(calls), tuple(values), live, made,
                 np.array([seconds_of(op) for op in ops]), reads), keys


def apply_plan(graph: ModuleGraph, step: Trace, keys: Sequence[int], actions: dict[int, str],
               outcome: Outcome) -> ModuleGraph:
    """The graph of the step as the outcome has it."""
    return _Writer(graph, step, keys, actions, outcome).graph()


class _Writer:
    def __init__(self, graph: ModuleGraph, step: Trace, keys: Sequence[int],
                 actions: dict[int, str], outcome: Outcome) -> None:
        self.source, self.step, self.keys, self.outcome = graph, step, keys, outcome
        self.tensors = dict(graph.tensors)
        self.now: dict[int, int] = {}  # key in the source -> key of what stands for it now
        self.ops: list[Op] = []
        never = len(graph.ops) + 1
        self.left = {value: (outcome.off_from[value], action) for value, action in actions.items()
                     if outcome.off_from[value] < never}
        # By operator behind which a value is gone, or begins to be copied.
        self.leaves: dict[int, list[int]] = {}
        for value, (off, action) in self.left.items():
            at = step.values[value].idle if action == 'swap' else off - 1
            self.leaves.setdefault(at, []).append(value)
        self.gone: set[int] = set()  # keys in the source that are not there now

    def graph(self) -> ModuleGraph:
        for at, op in enumerate(self.source.ops):
            for value in self.outcome.copies.get(at, ()):
                self._copy_in(value, op.phase)
            if at in self.outcome.replays:
                self._replay(self.outcome.replays[at], set(self.outcome.chains.get(at, ())))
            # What left and never came back is not freed a second time.
            kept = replace(op, ends=tuple(key for key in op.ends if key not in self.gone))
            self.ops.append(renamed(kept, self.now))
            self._leave(at)
        return replace(self.source, ops=tuple(self.ops), tensors=self.tensors)

    def _leave(self, at: int) -> None:
        for value in self.leaves.get(at, ()):
            key, module = self.keys[value], self.step.values[value].where
            self.gone.add(key)
            if self.left[value][1] == 'drop':
                last = self.ops[-1]
                if key not in last.ends:
                    self.ops[-1] = replace(last, ends=(*last.ends, key))
            else:
                self.ops.append(Op(D2H_OP, module, 'other', 0.0,
                                   float(self.tensors[key].num_bytes), ends=(key,), reads=(key,)))

    def _copy_in(self, value: int, phase: str) -> None:
        if value not in self.left:
            return
        key = self._new(value)
        self.gone.discard(self.keys[value])
        self.now[self.keys[value]] = key
        self.ops.append(Op(H2D_OP, self.step.values[value].where, 'other', 0.0,
                           float(self.tensors[key].num_bytes), begins=(key,), phase=phase))

    def _replay(self, calls: Sequence[int], restored: set[int]) -> None:
        """Forward operators once more; what is wanted stays, all else ends with its last use."""
        step = self.step
        last_use = {value: at for at, call in enumerate(calls)
                    for value in step.calls[call].inputs}
        made: dict[int, int] = {}  # value -> key
        for at, call in enumerate(calls):
            source = self.source.ops[step.calls[call].moment]
            ends = []
            for value in step.calls[call].outputs:
                made[value] = self._new(value)
                if value not in restored and last_use.get(value, at) <= at:
                    ends.append(made[value])
            reads = []
            for value in step.calls[call].inputs:
                key = self.keys[value]
                reads.append(made.get(value, self.now.get(key, key)))
                if value in made and value not in restored and last_use[value] == at:
                    ends.append(made[value])
            self.ops.append(replace(
                source, name=source.name + AGAIN, saved_bytes=0, completes=(), writes=(),
                begins=tuple(made[value] for value in step.calls[call].outputs),
                reads=tuple(reads), ends=tuple(dict.fromkeys(ends))))
        for value in restored & made.keys():
            self.now[self.keys[value]] = made[value]
            self.gone.discard(self.keys[value])

    def _new(self, value: int) -> int:
        key = max(self.tensors) + 1
        self.tensors[key] = self.tensors[self.keys[value]]
        return key
