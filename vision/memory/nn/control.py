"""What leaves when: the plan of a step that was seen before, and scores where there is none."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vision.memory.core.graph import Trace
from vision.memory.core.plan import Plan
from vision.memory.nn.nodes import Node
from vision.memory.nn.residence import Residence, generator_state
from vision.memory.nn.step import Step

FIRST_MOMENTS = 16  # recorded in any case: by then the shapes of the input tell plans apart
TOLERANCE = 1.04  # of a plan's peak, before scores help out; 5 % is what we promise
# Of the limit: as long as others can leave, scores drop no more values in a row than this.
GROUP_SHARES = (0.25, 0.5, 1.0, math.inf)
REACTIVE_SHARE = 0.95  # of the budget: what scores hold, since an operator is seen once it has run
MAX_LEAVES = 2  # a value that left twice in a step stays: the third time is thrash


@dataclass
class Script:
    """A plan, and the operators by which its step is recognised while it runs.

    Attributes:
        num_used: steps that followed it to their end.
        leaving: actions by the moment before which they are taken.
        fetching: values whose copy back begins at a moment.
        needed: moments of the operators that may run again; the others need no record.
        horizon: moment by which half of what is saved is; a step that differs only later, as a
            detector's with its boxes, is still this one. The plan then has its way with what was
            there before, and scores with the rest where they must.
    """

    keys: list[tuple[Any, int]]
    trace: Trace
    plan: Plan
    leaving: dict[int, list[tuple[int, str]]] = field(init=False)
    fetching: dict[int, list[int]] = field(init=False)
    needed: frozenset[int] = field(init=False)
    horizon: int = field(init=False)
    num_used: int = 0

    def __post_init__(self) -> None:
        self.leaving, self.fetching = defaultdict(list), defaultdict(list)
        for index, action in self.plan.actions.items():
            self.leaving[self.trace.values[index].idle + 1].append((index, action))
        for index, moment in self.plan.fetches.items():
            self.fetching[moment].append(index)
        self.needed = self._needed()
        saved = sorted((value.packed, value.num_bytes) for value in self.trace.values
                       if value.may_drop)
        sums = np.cumsum([num_bytes for _, num_bytes in saved])
        most = int(np.searchsorted(sums, 0.5 * sums[-1])) if saved else -1
        self.horizon = saved[most][0] if saved else -1

    def _needed(self) -> frozenset[int]:
        """From what is dropped back to what stays until the drop is read."""
        trace, actions = self.trace, self.plan.actions
        first_read: dict[int, int] = {}
        for moment, index in reversed(trace.reads):
            first_read[index] = moment
        found: set[int] = set()
        dropped = sorted(((first_read.get(index, len(trace.seconds)), index)
                          for index, action in actions.items() if action == 'drop'), reverse=True)
        for until, first in dropped:  # the latest first: it needs most of what it shares
            waiting = [trace.values[first].call]
            while waiting:
                call = trace.calls[waiting.pop()]
                if call.moment in found:
                    continue
                found.add(call.moment)
                waiting += [trace.values[index].call for index in call.inputs
                            if index in actions or trace.values[index].death < until]
        return frozenset(found) | frozenset(range(FIRST_MOMENTS))

    def timed(self, seconds: list[float], horizon: int | None) -> None:
        """Another step took so long for its operators; they are the script's up to ``horizon``."""
        times = self.trace.seconds.copy()
        num_known = min(len(times), len(seconds), len(times) if horizon is None else horizon + 1)
        times[:num_known] = np.minimum(times[:num_known], seconds[:num_known])
        self.trace = replace(self.trace, seconds=times, calls=tuple(
            replace(call, seconds=float(times[call.moment])) for call in self.trace.calls))


class Control:
    """Decides for one step. A script is followed as long as the step does what the script's did;
    where live bytes pass the limit, the value with the smallest score leaves:

        score = min(replay seconds, swap seconds) / (bytes * distance)

    where distance counts saved values between now and the value: time since it was saved in the
    forward pass, and until it is read in backward (our choice, after DTR's and DELTA's filters).

    Args:
        budget_bytes: None: nothing leaves, the step is only seen.
        scripts: of earlier steps, the newest first.
        records_all: also what the script never runs again.
        verify: 'first': in a step without a script, compare each value with a replay of it before
            it may be dropped, if ``verified`` has not its operator and moment; 'always': each
            time; 'never'.
        log: one line an event.
    """

    def __init__(self, *, budget_bytes: int | None, scripts: list[Script], actions: str,
                 verify: str, verified: set[tuple[Any, int]], records_all: bool,
                 log: Callable[[str], None]) -> None:
        self.budget_bytes, self.scripts, self.actions = budget_bytes, scripts, actions
        self.verify, self.verified, self.log = verify, verified, log
        self.step: Step
        self.residence: Residence
        self.lost_at: int | None = None
        self.pending: list[Node] = []  # saved, and somebody else may still hold them
        self.idle: dict[Node, None] = {}
        self.late: list[tuple[Node, str]] = []
        self.made: dict[Any, int] = {}  # bytes, by an operator when it ran last
        self.order = 0  # of the value that was saved or read last
        self.has_second_order = self.is_adrift = False
        self.is_half_recorded = False  # for the plan that turned out to be the right one, or none
        self.records_all = records_all
        self._set_script(scripts[0] if scripts and budget_bytes is not None else None)

    def attach(self, step: Step, residence: Residence) -> None:
        """Name the step to decide for and what moves its values; before the step begins."""
        self.step, self.residence = step, residence

    def detach(self) -> None:
        """The step is over: nothing of it is held here."""
        self.pending, self.idle, self.late = [], {}, []

    def _set_script(self, script: Script | None) -> None:
        self.script = script
        self.needed = None if script is None or self.records_all else script.needed
        if self.budget_bytes is None:
            self.limit = math.inf
        elif self.script is None:
            self.limit = REACTIVE_SHARE * self.budget_bytes
        else:
            self.promised = max(self.budget_bytes, self.script.plan.peak_bytes)
            self.limit = TOLERANCE * self.promised

    # Called by the step

    def before(self, moment: int, func: Any) -> None:
        """The operator of this moment is about to run."""
        script = self.script
        if script is None:
            if self.pending:
                self._settle(moment)
            if self.step.bytes.live + self.made.get(func, 0) > self.limit:
                self._make_room(self.made.get(func, 0))
        else:
            if self.late:
                self.late = [entry for entry in self.late if not self._leaves(*entry)]
            if script.plan.actions and not self.is_adrift:
                self._follow(script, moment)
        if self.step.bytes.live > self.limit:
            self._make_room()

    def after(self, moment: int) -> None:
        """The operator of this moment has run: compare it with the script, make room above the
        limit."""
        key = self.step.keys[moment]
        if self.script is None:
            self.made[key[0]] = key[1]
        elif not self.is_adrift:
            keys = self.script.keys
            if moment >= len(keys) or key[1] != keys[moment][1] or key[0] is not keys[moment][0]:
                self._find_script(moment)
        if self.step.bytes.live > self.limit:
            self._make_room()

    def packed(self, node: Node) -> None:
        """Autograd has saved this value for backward; it may leave once nobody else holds it."""
        self.order = node.order
        self.pending.append(node)

    def read(self, node: Node) -> None:
        """Backward asks for this value: it is there afterwards. Without a script, room for it and
        for what has to run again is made first."""
        self.order = node.order
        if node.away is not None:
            if self.script is None:  # a plan has counted what its replays take
                need = self._needed_bytes(node)
                if self.step.bytes.live + need > self.limit:
                    self._make_room(need)
            elif self.residence.transfer.leaving_bytes:
                self._keep_promise(self._needed_bytes(node))
            self._restore(node)
            self.idle.pop(node, None)
            self.pending.append(node)
        self.residence.arrived(node)

    def _restore(self, node: Node) -> None:
        try:
            self.residence.restore(node)
            return
        except torch.OutOfMemoryError as error:
            if not self.makes_room(error):
                raise
        self.residence.restore(node)  # out here: the error would hold what its frames hold

    def forget(self, node: Node) -> None:
        """Nobody will read this value again, so it need not come back."""
        self.idle.pop(node, None)
        self.residence.forget(node)

    def draws(self, args: tuple) -> tuple[torch.device, Tensor]:
        """(device, state) of the generator that an operator with these arguments is about to draw
        from; the state is bytes, uint8 of shape (N,)."""
        device = next((value.device for value in args if isinstance(value, Tensor)),
                      torch.device('cpu'))
        return generator_state(device)

    def before_write(self, tensors: Iterable[Tensor]) -> None:
        """Bring back what is made from the memory of these tensors (any shape), which is about to
        change."""
        step, waiting = self.step, []
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            for source in (step.current.get(key), step.leaves.get(key)):
                if source is not None:
                    waiting += source.dependents
        while waiting:
            node = waiting.pop()
            if node.away == 'drop':
                self.residence.restore(node)
                self.pending.append(node)
                waiting += node.dependents  # they may outlive it, and it can be made no more

    def makes_room(self, error: RuntimeError) -> bool:
        """After an operator found no memory: let half of what may leave go, and keep what was too
        much as the limit of this step. Did anything go?"""
        if not isinstance(error, torch.OutOfMemoryError) \
                and "can't allocate memory" not in str(error):
            return False
        self._settle(self.step.num_ops)
        total = sum(node.num_bytes for node in self.idle)
        before = self.step.bytes.live
        self.limit = min(self.limit, REACTIVE_SHARE * before)
        self._make_room(limit=before - total // 2)
        self.residence.transfer.settle(must_free=math.inf)
        freed = before - self.step.bytes.live
        self.log(f'an operator found no memory: {freed / 1e6:.1f} MB of saved values left, '
                 'and it ran again' if freed else 'an operator found no memory, and nothing was '
                 'left that could leave')
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return freed > 0

    # How

    def _follow(self, script: Script, moment: int) -> None:
        """What the plan says of this moment, whose operator is about to make its bytes."""
        nodes = self.step.nodes
        for index, action in script.leaving.get(moment, ()):
            if not self._leaves(nodes[index], action):
                self.late.append((nodes[index], action))
        for index in script.fetching.get(moment, ()):
            self._keep_promise(nodes[index].num_bytes)
            with suppress(torch.OutOfMemoryError):  # then it comes when it is read
                self.residence.fetch(nodes[index])
        if moment < len(script.keys):
            self._keep_promise(script.keys[moment][1])

    def _keep_promise(self, needed: int) -> None:
        """So many bytes more are within the plan's peak, once what is on its way to the host has
        left. The host queues operators long before their time and sees such copies end late, so
        the device waits for them: by the plan they are over."""
        over = self.step.bytes.live + needed - self.promised
        if over > 0:
            self.residence.transfer.settle(must_free=over)

    def _settle(self, moment: int) -> None:
        """Find what only autograd holds by now."""
        still = []
        for node in self.pending:
            if not node.handles or node.away is not None or node.storage() is None:
                continue
            if not self.residence.is_idle(node):
                still.append(node)
                continue
            if node.idle is None:
                node.idle = moment - 1
            if self.script is None and self.verify != 'never':
                if self.step.bytes.live > self.limit - (need := self._needed_bytes(node)):
                    self._make_room(need)
                self._verify(node)
            self.idle[node] = None
        self.pending = still

    def _verify(self, node: Node) -> None:
        site = node.call.operator.func, node.call.moment
        if node.is_verified or self.actions == 'swap' or (
                self.verify == 'first' and site in self.verified) \
                or not self.residence.may_replay(node.call):
            return
        node.is_verified = True
        self.verified.add(site)
        peak = self.step.bytes.peak
        if not self.residence.verify(node) and node.call.operator.name in self.residence.refused:
            self.log(f'{node.call.operator.name} gave other bytes when it ran again'
                     f'{" in " + node.where if node.where else ""}: it is never run twice from '
                     'now on')
        if self.budget_bytes is None:
            self.step.bytes.peak = peak  # of the step without this test

    def _needed_bytes(self, node: Node) -> int:
        """What making it again takes, about: all that stays, and two more values on the way."""
        if node.away == 'swap':
            return node.num_bytes
        chain = self.residence.chain(node)
        if chain is None:
            return 0
        made = [value for call in chain.calls for _, value in call.outputs]
        stays = sum(value.num_bytes for value in made if value.handles and value.away)
        passes = sorted(value.num_bytes for value in made if not (value.handles and value.away))
        return stays + sum(passes[-2:])

    def _leaves(self, node: Node, action: str) -> bool:
        """Did it leave, or is there no need any more?"""
        if not node.handles or node.away is not None:
            return True
        if node.num_leaves >= MAX_LEAVES:
            return True
        return self._leave(node, action)

    def _leave(self, node: Node, action: str) -> bool:
        if self.verify == 'always' and action == 'drop' and self.residence.is_idle(node):
            self._verify(node)
        return self.residence.leave(node, action)

    def _find_script(self, moment: int) -> None:
        """The step does something else than its script: another one's, or nobody's."""
        keys = self.step.keys
        for script in self.scripts:
            if script is not self.script and len(script.keys) > moment \
                    and all(seen[1] == known[1] and seen[0] is known[0]
                            for seen, known in zip(keys, script.keys, strict=False)):
                self._set_script(script)
                self.is_half_recorded |= moment >= FIRST_MOMENTS
                return self._catch_up(range(moment + 1))
        if moment > self.script.horizon:  # from here on the moments are not the plan's
            self.is_adrift, self.needed = True, None
            self.limit /= TOLERANCE  # scores notice late, and have more to do now
            return self._catch_up(range(moment + 1, len(self.script.keys)))
        known, self.lost_at = self.script.trace.values, moment
        self._set_script(None)
        self.is_half_recorded |= moment >= FIRST_MOMENTS
        for node, value in zip(self.step.nodes, known, strict=False):
            if node.packed is not None and value.idle is not None and value.idle < moment:
                node.idle = value.idle  # what left, and when it could have, is as it was there
        self.pending = [node for node in self.step.nodes
                        if node.handles and node.away is None and node.num_leaves < MAX_LEAVES]

    def _catch_up(self, moments: range) -> None:
        """What leaves at these moments, of what is there, leaves as soon as it can."""
        nodes, leaving = self.step.nodes, self.script.leaving
        self.late += [(nodes[index], action) for moment in moments
                      for index, action in leaving.get(moment, ()) if index < len(nodes)]

    def _make_room(self, needed: int = 0, limit: float | None = None) -> None:
        """Let the cheapest leave until the limit holds, with so many bytes to spare."""
        step, residence = self.step, self.residence
        limit = self.limit if limit is None else limit
        if self.script is not None and self.pending:
            self._settle(step.num_ops)
        transfer = residence.transfer
        transfer.settle()

        def fits() -> bool:
            return step.bytes.live - transfer.leaving_bytes + needed <= limit
        if not fits():
            self._let_go(fits, limit)
        transfer.settle(must_free=step.bytes.live + needed - limit)

    def _let_go(self, fits: Callable[[], bool], limit: float) -> None:
        residence = self.residence
        scored = []
        for node in self.idle:
            if node.locks or node.is_pinned or node.num_leaves >= MAX_LEAVES:
                continue
            seconds, action = residence.restore_seconds(node, self.actions)
            if seconds < math.inf:
                distance = max(abs(self.order - node.order), 1)
                scored.append((seconds / (node.num_bytes * distance), node.order, node))
        scored.sort(key=lambda entry: entry[:2])
        # First those that will not bring much with them when they come back.
        for share in GROUP_SHARES:
            most = limit * share
            for _, _, node in scored:
                if fits():
                    return
                # Others left meanwhile: what it needs may have become dear.
                seconds, action = residence.restore_seconds(node, self.actions)
                if seconds < math.inf and (action == 'swap' or most == math.inf
                                           or residence.joint_bytes(node) <= most) \
                        and self._leave(node, action):
                    self.idle.pop(node, None)
