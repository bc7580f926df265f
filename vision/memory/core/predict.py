"""What a step costs and holds when some saved activations are left out: an exact simulation.

The rules that ``nn`` follows and this file counts (our choice wherever a paper is silent):

* A value with an action is *off* from the moment after its ``idle`` (a copy to the host that runs
  beside compute: from the moment after the copy is done; one that is not done before the first
  read is called off, and the value stays). The first read after ``idle`` restores it; reads up
  to ``idle`` find it there. Once restored it stays until its ``death``.
* A replay runs the calls that are needed in post-order, inputs in their order, each once. An input
  is at hand when the unmanaged step holds it (``born < moment <= death``) and it is not off, or
  when it is locked. What is off, on the host, and not yet dead is copied back first.
* When a value is dropped, what its replay would read then, is at hand and cannot be made again is
  *locked*: it outlives its death until the dropped value is there again or dead, and does not
  leave itself. All else that is gone when a replay needs it is made again.
* What a replay made or copied back stays until its death when it was off, by whichever action; all
  else is freed after its last use in the chain. An output that nobody wants, or that is at hand
  already, counts while its call runs.
* An in-place call of a chain takes over its input's bytes when the chain made that input and
  nothing needs it afterwards; else it works on a copy.
* Copies beside compute run one after the other in each direction, on a clock of operator seconds
  and waits; replays are not on that clock, so what they would hide comes on top. The host queues
  each of them in ``host_seconds``, which nothing hides: it may be what a step waits for.
* A block of the host pool is held from ``idle`` until the value was restored for its first reader,
  or is dead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vision.memory.core.graph import Trace


@dataclass(frozen=True)
class Link:
    """The way to the host, in bytes per second. ``overlaps``: copies run beside compute, as on a
    GPU; on a CPU a copy is paid in full. ``host_seconds``: a copy that overlaps still takes the
    thread that queues operators so long."""

    out_bytes_per_s: float
    in_bytes_per_s: float
    overlaps: bool
    host_seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Which values are left out, and what that is predicted to do.

    Args:
        actions: 'drop' or 'swap' by value.
        fetches: moment before whose operator the copy back of a swapped value begins; without
            overlap its first read. Values that nobody reads again have none.
        live_bytes: (K,) as ``Trace.live_bytes``, the highest level of a replay before operator k
            included.
        wait_seconds: transfers that compute does not hide.
        host_bytes: most that lies on the host at once.
        fits: the peak is within the budget, the host pool within its cap.
    """

    actions: dict[int, str]
    fetches: dict[int, int]
    live_bytes: np.ndarray
    peak_bytes: int
    replay_seconds: float
    wait_seconds: float
    host_bytes: int
    fits: bool = True

    @property
    def extra_seconds(self) -> float:
        """Time that the step takes longer: operators that run again, and waiting for transfers."""
        return self.replay_seconds + self.wait_seconds


class CannotReplay(ValueError):
    """The dropped value ``value`` needs one that is gone and cannot be made again."""

    def __init__(self, value: int, moment: int, call: int, name: str) -> None:
        super().__init__(f'value {value}, needed at moment {moment}, needs call {call} ({name}), '
                         'which may not run again')
        self.value = value


@dataclass
class Outcome:
    """What one run of the simulator found.

    ``live_bytes`` (K,) are as in ``Plan``. ``off_from``, ``restored``: first moment without the
    value, first moment with it again; ``root_use``: first moment at which a chain read a value
    that was at hand; ``chains``: values that a replay at this moment restored; ``replays``: calls
    that run again before the operator of this moment, in order; ``copies``: values that are copied
    back before it.
    """

    live_bytes: np.ndarray
    peak_bytes: int
    replay_seconds: float
    wait_seconds: float
    host_bytes: int
    fetches: dict[int, int]
    off_from: dict[int, int]
    restored: dict[int, int]
    root_use: dict[int, int]
    chains: dict[int, list[int]]
    replays: dict[int, list[int]]
    copies: dict[int, list[int]]


class Simulator:
    """The step of a trace under any set of actions; built once per trace, run often."""

    def __init__(self, trace: Trace, link: Link) -> None:
        self.trace, self.link = trace, link
        self.num_ops = len(trace.live_bytes)
        self.live = np.asarray(trace.live_bytes, dtype=np.int64)
        self.made = [int(num_bytes) for num_bytes in trace.made_bytes]
        self.clock = np.cumsum(np.asarray(trace.seconds, dtype=float))  # when operator k is done
        self.start = [0.0, *self.clock.tolist()]  # when operator k begins
        self.bytes = [value.num_bytes for value in trace.values]
        self.call = [value.call for value in trace.values]
        self.born = [value.born for value in trace.values]
        self.death = [value.death for value in trace.values]
        self.idle = [-1 if value.idle is None else value.idle for value in trace.values]
        self.inputs = [call.inputs for call in trace.calls]
        self.outputs = [call.outputs for call in trace.calls]
        self.seconds = [call.seconds for call in trace.calls]
        self.replayable = [call.replayable for call in trace.calls]
        self.inplace = [dict((new, old) for old, new in call.inplace) for call in trace.calls]
        overwritten = {old for call in trace.calls for old, _ in call.inplace}
        self.lockable = [not self.replayable[value.call] and index not in overwritten
                         for index, value in enumerate(trace.values)]
        self.is_risky: list[bool] = []  # by call: is it, or anything before it, not replayable?
        for call in trace.calls:
            self.is_risky.append(not call.replayable or any(
                self.is_risky[self.call[w]] for w in call.inputs))
        self.has_roots = not all(self.replayable)
        # A read behind the last operator is a read before it: nothing is measured later.
        self.reads = [(min(moment, self.num_ops - 1), value) for moment, value in trace.reads]
        self.first_read: dict[int, int] = {}
        for moment, value in self.reads:
            if moment > self.idle[value]:
                self.first_read.setdefault(value, moment)

    def run(self, actions: dict[int, str], fetches: dict[int, int] | None = None) -> Outcome:
        """Raises CannotReplay. ``fetches`` counts only on a link that overlaps; None: each as late
        as hides its copy."""
        swaps = [v for v, action in actions.items() if action == 'swap']
        never = self.num_ops + 1
        off_from = {v: self.idle[v] + 1 if self.idle[v] < self.death[v] else never
                    for v in actions}
        if self.link.overlaps:
            self._copies_out(swaps, off_from)
            if fetches is None and swaps:
                needs = _Run(self, actions, off_from, {}).walk().restored
                fetches = self._schedule(swaps, off_from, needs)
        else:
            fetches = {v: self.first_read[v] for v in swaps if v in self.first_read}
        run = _Run(self, actions, off_from, fetches or {}).walk()
        return run.outcome()

    def _copies_out(self, swaps: list[int], off_from: dict[int, int]) -> None:
        """Memory is free after the operator during which the copy ends; the queue is serial."""
        end = 0.0
        for v in sorted(swaps, key=lambda v: (self.idle[v], v)):
            end = max(end, self.start[self.idle[v] + 1])
            end += self.bytes[v] / self.link.out_bytes_per_s
            done = int(np.searchsorted(self.clock, end * (1 - 1e-12)))
            off_from[v] = done + 1
            if done + 1 >= min(self.first_read.get(v, self.num_ops), self.death[v] + 1):
                off_from[v] = self.num_ops + 1  # called off

    def _schedule(self, swaps: list[int], off_from: dict[int, int],
                  needs: dict[int, int]) -> dict[int, int]:
        """From the last that is needed to the first, each before the one after it; of several
        that are needed at once, those that have left last come back last."""
        fetches, limit = {}, float('inf')
        back = [v for v in swaps if v in needs]
        for v in sorted(back, key=lambda v: (-needs[v], -off_from[v], v)):
            limit = min(limit, self.start[needs[v]]) - self.bytes[v] / self.link.in_bytes_per_s
            moment = int(np.searchsorted(self.clock, limit + 1e-12, side='right'))
            fetches[v] = min(max(moment, off_from[v]), needs[v])
        return fetches


class _Run:
    """One walk over the reads of a step."""

    def __init__(self, sim: Simulator, actions: dict[int, str], off_from: dict[int, int],
                 fetches: dict[int, int]) -> None:
        self.sim, self.actions, self.off_from, self.fetches = sim, actions, off_from, fetches
        self.restored: dict[int, int] = {}
        self.first_need: dict[int, int] = {}
        self.ready: dict[int, float] = {}  # end of a copy back that nobody waited for yet
        self.root_use: dict[int, int] = {}
        self.chains: dict[int, list[int]] = {}
        self.replays: dict[int, list[int]] = {}
        self.copies: dict[int, list[int]] = {}
        self.events: dict[int, list[list]] = {}  # moment -> [peak, net bytes, bytes unlocked]
        self.restoring: dict[int, list] = {}  # value -> event in which a replay made it
        self.lockers: dict[int, list[int]] = {}  # value -> those that were dropped and need it
        self.replay_seconds = self.wait_seconds = self.delay = self.in_end = 0.0

    def walk(self) -> _Run:
        sim, actions = self.sim, self.actions
        if not sim.link.overlaps:
            self.wait_seconds = sum(sim.bytes[v] / sim.link.out_bytes_per_s
                                    for v, action in actions.items() if action == 'swap')
        queue = []
        if sim.link.overlaps:
            num_out = sum(action == 'swap' for action in actions.values())
            self.wait_seconds = sim.link.host_seconds * (num_out + len(self.fetches))
            queue = sorted(((moment, sim.first_read.get(v, sim.num_ops), v)
                            for v, moment in self.fetches.items()), reverse=True)
        leaving = []  # matters only where something can be locked
        if sim.has_roots:
            leaving = sorted(((first, v) for v, first in self.off_from.items()
                              if first <= sim.num_ops), reverse=True)
        for moment, v in sim.reads:
            if v not in actions:
                continue
            while leaving and leaving[-1][0] <= moment:
                self._leave(*leaving.pop())
            while queue and queue[-1][0] <= moment:
                self._fetch(*queue.pop()[::2])
            if self._is_off(v, moment):
                if actions[v] == 'swap':
                    self._copy_in(v, moment)
                    self.copies.setdefault(moment, []).append(v)
                    self.restored[v] = moment
                    num_bytes = sim.bytes[v]
                    self._add(moment, [num_bytes, num_bytes * (sim.death[v] >= moment), 0])
                else:
                    self._replay(v, moment)
            elif v in self.ready:
                self._await(v, moment)
        while leaving:
            self._leave(*leaving.pop())
        return self

    def _is_off(self, v: int, moment: int) -> bool:
        return v in self.actions and v not in self.restored and self.off_from[v] <= moment

    def _is_there(self, v: int, moment: int) -> bool:
        if moment > self.sim.death[v]:
            return self._is_locked(v, moment)
        return self.sim.born[v] < moment and not self._is_off(v, moment)

    def _is_locked(self, v: int, moment: int) -> bool:
        return self.sim.lockable[v] and any(
            u not in self.restored and moment <= self.sim.death[u]
            for u in self.lockers.get(v, ()))

    def _leave(self, moment: int, v: int) -> None:
        sim = self.sim
        if self._is_locked(v, moment):
            self.off_from[v] = sim.num_ops + 1
        elif self.actions[v] == 'drop' and sim.is_risky[sim.call[v]]:
            for w in self._chain(v, moment)[2]:
                if not sim.replayable[sim.call[w]]:
                    self.lockers.setdefault(w, []).append(v)

    def _fetch(self, moment: int, v: int) -> None:
        """Start the copy back of v, unless a chain made it or copied it before."""
        if not self._is_off(v, moment):
            return
        sim = self.sim
        self.in_end = (max(self.in_end, sim.start[moment] + self.delay)
                       + sim.bytes[v] / sim.link.in_bytes_per_s)
        self.ready[v] = self.in_end
        self.copies.setdefault(moment, []).append(v)
        self.restored[v] = moment

    def _copy_in(self, v: int, moment: int) -> None:
        """Copy v back now and wait for it."""
        sim = self.sim
        self.first_need[v] = moment
        seconds = sim.bytes[v] / sim.link.in_bytes_per_s
        if not sim.link.overlaps:
            self.wait_seconds += seconds
            return
        now = sim.start[moment] + self.delay
        self.in_end = max(self.in_end, now) + seconds
        self.wait_seconds += self.in_end - now
        self.delay += self.in_end - now

    def _await(self, v: int, moment: int) -> None:
        late = self.ready.pop(v) - (self.sim.start[moment] + self.delay)
        self.first_need[v] = moment
        if late > 0:
            self.wait_seconds += late
            self.delay += late

    def _add(self, moment: int, event: list) -> list:
        self.events.setdefault(moment, []).append(event)
        return event

    def _chain(self, target: int, moment: int) -> tuple[list[int], list[int], list[int]]:
        """Calls in order, values that are copied back before, values that are read as they are."""
        sim = self.sim
        calls, copies, roots, known = [], [], [], set()
        actions, death, born = self.actions, sim.death, sim.born
        stack = [(sim.call[target], iter(sim.inputs[sim.call[target]]))]
        while stack:
            call, inputs = stack[-1]
            for w in inputs:
                if w in known:
                    continue
                # _is_there, without the calls that make up half of a search's time.
                if (born[w] < moment <= death[w] if w not in actions or w in self.restored
                        else self._is_there(w, moment)) or (
                            sim.has_roots and self._is_locked(w, moment)):
                    known.add(w)
                    roots.append(w)
                elif actions.get(w) == 'swap' and self._is_held(w, moment):
                    known.add(w)
                    copies.append(w)
                else:
                    stack.append((sim.call[w], iter(sim.inputs[sim.call[w]])))
                    break
            else:
                stack.pop()
                if not sim.replayable[call]:
                    raise CannotReplay(target, moment, call, sim.trace.calls[call].name)
                calls.append(call)
                for w in sim.outputs[call]:
                    if not self._is_there(w, moment):
                        known.add(w)
        return calls, copies, roots

    def _is_held(self, v: int, moment: int) -> bool:
        """Is it off, and will be read yet or could be?"""
        return moment <= self.sim.death[v] and self._is_off(v, moment)

    def _replay(self, target: int, moment: int) -> None:
        sim = self.sim
        calls, copies, roots = self._chain(target, moment)
        at_hand, kept = {*roots, *copies}, []
        for w in roots:
            self.root_use.setdefault(w, moment)
            if w in self.ready:
                self._await(w, moment)
        self.replays.setdefault(moment, []).extend(calls)
        for w in copies:
            self._copy_in(w, moment)
            self.copies.setdefault(moment, []).append(w)
            self._keep(w, moment, kept)
        last_use = {w: index for index, call in enumerate(calls) for w in sim.inputs[call]}
        owned: set[int] = set()
        level = peak = sum(sim.bytes[w] for w in copies)
        for index, call in enumerate(calls):
            self.replay_seconds += sim.seconds[call]
            unwanted = 0
            for w in sim.outputs[call]:
                old = sim.inplace[call].get(w)
                if old in owned and last_use[old] == index:
                    owned.discard(old)
                else:
                    level += sim.bytes[w]
                if w == target or w not in at_hand and self._is_held(w, moment):
                    self._keep(w, moment, kept)
                elif w in at_hand or w not in last_use or self._is_there(w, moment):
                    unwanted += sim.bytes[w]
                else:
                    owned.add(w)
            peak = max(peak, level)
            level -= unwanted
            for w in sim.inputs[call]:
                if w in owned and last_use[w] == index:
                    owned.discard(w)
                    level -= sim.bytes[w]
        self.chains.setdefault(moment, []).extend(kept)
        assert not owned and level == sum(sim.bytes[w] for w in kept)
        event = self._add(moment, [peak, sum(sim.bytes[w] for w in kept
                                             if sim.death[w] >= moment), 0])
        self.restoring.update(dict.fromkeys(kept, event))

    def _keep(self, v: int, moment: int, kept: list[int]) -> None:
        self.restored[v] = self.first_need[v] = moment
        kept.append(v)

    def outcome(self) -> Outcome:
        sim, num_ops = self.sim, self.sim.num_ops
        change, host = [0] * (num_ops + 2), [0] * (num_ops + 2)
        for v, action in self.actions.items():
            first, num_bytes = self.off_from[v], sim.bytes[v]
            end = min(self.restored.get(v, num_ops), sim.death[v] + 1)
            if first < end:
                change[first] -= num_bytes
                change[end] += num_bytes
            if action == 'swap' and first <= num_ops:
                host[sim.idle[v] + 1] += num_bytes
                last = self.first_need.get(v, sim.death[v])
                host[min(last, num_ops) + 1] -= num_bytes
        for v, lockers in self.lockers.items():
            # Until the last of them is there again: in an event of that moment, or dead.
            moment = max(self.restored.get(u, sim.death[u] + 1) for u in lockers)
            if moment > sim.death[v]:
                change[sim.death[v] + 1] += sim.bytes[v]
                change[moment] -= sim.bytes[v]
                made = [self.restoring[u] for u in lockers if self.restored.get(u) == moment]
                for event in reversed(self.events.get(moment, ())):
                    if any(event is other for other in made):
                        event[2] += sim.bytes[v]
                        break
        live = sim.live + np.cumsum(change[:num_ops])
        for moment, events in self.events.items():
            level = int(live[moment]) - sim.made[moment]
            level += sum(unlocked - net for _, net, unlocked in events)
            highest = int(live[moment])
            for peak, net, unlocked in events:
                highest = max(highest, level + peak)
                level += net - unlocked
            live[moment] = highest
        return Outcome(
            live_bytes=live, peak_bytes=int(live.max(initial=0)),
            replay_seconds=self.replay_seconds, wait_seconds=self.wait_seconds,
            host_bytes=int(np.cumsum(host).max(initial=0)), fetches=self.fetches,
            off_from=self.off_from, restored=self.restored, root_use=self.root_use,
            chains=self.chains, replays=self.replays, copies=self.copies)


def predict(trace: Trace, actions: dict[int, str], link: Link,
            fetches: dict[int, int] | None = None) -> Plan:
    """The step under ``actions``, exactly by the rules above; ``fits`` is always true here.

    Raises:
        CannotReplay: a dropped value could not be made again.
    """
    return as_plan(Simulator(trace, link).run(actions, fetches), actions)


def as_plan(outcome: Outcome, actions: dict[int, str], fits: bool = True) -> Plan:
    """An outcome as what was decided: ``actions`` by value ('drop' or 'swap'), and whether it
    fits."""
    return Plan(dict(actions), dict(outcome.fetches), outcome.live_bytes, outcome.peak_bytes,
                outcome.replay_seconds, outcome.wait_seconds, outcome.host_bytes, fits)
