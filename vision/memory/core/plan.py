"""Which saved activations to leave out under a budget: a 0/1 knapsack, solved by a heuristic.

The successor of DELTA (doi 10.1145/3689338) poses the choice so and solves it in polynomial time;
its formulas were not available to us. Ours: greedy by cost density, where a cost is that of the
whole chain as it stands, checkpoint-like starts for deep budgets, then local search. Every plan
that is returned was simulated exactly (``predict``); estimates only order the candidates.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from vision.memory.core.graph import Trace
from vision.memory.core.predict import (
    CannotReplay,
    Link,
    Outcome,
    Plan,
    Simulator,
    as_plan,
    predict,
)

__all__ = ['CannotReplay', 'Link', 'Plan', 'make_plan', 'predict', 'trade_off']

KINDS = dict(recompute=('drop',), swap=('swap',), both=('drop', 'swap'))
# Pieces of equal saved bytes, each recomputed from the values that enter it (Chen et al., 2016,
# arXiv:1604.06174). The square root of a network's depth is in this range.
SEGMENTS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
# Exact simulations that local search may use: milliseconds each for 2,000 operators. Four times as
# many took at most 2 % off the extra time of a residual network of that size.
MAX_TRIALS = 300
# Partners tried for one value that leaves the plan in a 1-1 exchange.
NUM_PARTNERS = 6
# Where the budget was not reached, what else is searched for: budget + share x (reached - budget).
OTHER_TARGETS = (0.5, -0.5, -1.5, 0.75, 0.25)


def make_plan(trace: Trace, budget_bytes: int, *, actions: str = 'both', link: Link,
              host_bytes: int | None = None) -> Plan:
    """The cheapest plan found whose peak is at most ``budget_bytes``.

    Args:
        actions: 'recompute', 'swap' or 'both'.
        host_bytes: cap of the host pool; None: no cap.

    Returns:
        A plan; where none within the budget was found, that of the lowest peak, ``fits`` false.
    """
    return _Planner(Simulator(trace, link), actions, host_bytes).solve(budget_bytes).plan()


def trade_off(trace: Trace, ratios: Sequence[float], *, actions: str = 'both', link: Link,
              host_bytes: int | None = None) -> list[Plan]:
    """A plan for each ratio of the unmanaged peak, in the order of ``ratios``.

    A budget may take the plan of any other that fits it, so that neither the extra time falls nor
    the peak rises when the budget becomes smaller.
    """
    planner = _Planner(Simulator(trace, link), actions, host_bytes)
    budgets = [int(ratio * trace.peak_bytes) for ratio in ratios]
    found = [planner.solve(budget) for budget in budgets]
    plans = []
    for budget in budgets:
        pool = [trial.under(budget) for trial in found]
        plans.append(min(pool, key=lambda trial: (*trial.key, trial.outcome.peak_bytes)).plan())
    return plans


@dataclass(frozen=True)
class _Trial:
    """A set of actions with what the simulator said of it."""

    actions: dict[int, str]
    outcome: Outcome
    budget_bytes: int
    host_bytes: int | None

    @cached_property
    def over_bytes(self) -> int:
        over = max(self.outcome.peak_bytes - self.budget_bytes, 0)
        if self.host_bytes is not None:
            over += max(self.outcome.host_bytes - self.host_bytes, 0)
        return over

    @cached_property
    def key(self) -> tuple[int, int, float, int]:
        """Less is better. What is over the budget in sum tells between two plans that are over it
        by as much, as long as a moment as high is left in both. Seconds are rounded, because sums
        in another order differ in their last digits."""
        seconds = self.outcome.replay_seconds + self.outcome.wait_seconds
        area = 0
        if self.over_bytes:
            area = int(np.maximum(self.outcome.live_bytes - self.budget_bytes, 0).sum())
        return self.over_bytes, area, float(f'{seconds:.9g}'), len(self.actions)

    def under(self, budget_bytes: int) -> _Trial:
        return _Trial(self.actions, self.outcome, budget_bytes, self.host_bytes)

    def plan(self) -> Plan:
        return as_plan(self.outcome, self.actions, fits=self.over_bytes == 0)


class _Planner:
    """Search for one trace; ``solve`` may be called for many budgets."""

    def __init__(self, sim: Simulator, actions: str, host_bytes: int | None) -> None:
        if actions not in KINDS:
            raise ValueError(f'actions must be one of {", ".join(KINDS)}, got {actions!r}')
        self.sim, self.actions, self.host_bytes = sim, actions, host_bytes
        self.kinds = KINDS[actions]
        if host_bytes == 0:
            self.kinds = tuple(kind for kind in self.kinds if kind != 'swap')
        self.candidates = [v for v in sim.trace.candidates if sim.idle[v] < sim.death[v]]
        self.budget_bytes = 0
        self.trials_left = 0

    def solve(self, budget_bytes: int) -> _Trial:
        best = self._solve(budget_bytes)
        if len(self.kinds) == 2:  # the larger choice may lead a search astray
            plain = _Planner(self.sim, 'recompute', self.host_bytes)._solve(budget_bytes)
            best = min(best, plain, key=lambda trial: trial.key)
        return best

    def _solve(self, budget_bytes: int) -> _Trial:
        first = best = self._search(budget_bytes, MAX_TRIALS)
        # The times of one step mislead a search into corners that other prices lead out of.
        for prices in ('equal', 'bytes'):
            if not best.over_bytes:
                break
            actions = self._priced(prices)._search(budget_bytes, MAX_TRIALS).actions
            self.budget_bytes = budget_bytes
            best = min(best, self._try(actions), key=lambda trial: trial.key)
        # A search ends in another corner when it asks for more or for less.
        for share in OTHER_TARGETS:
            if not best.over_bytes:
                break
            target = budget_bytes + share * (best.outcome.peak_bytes - budget_bytes)
            other = self._search(max(int(target), 0), MAX_TRIALS // 4).under(budget_bytes)
            best = min(best, other, key=lambda trial: trial.key)
        if best is first or best.over_bytes:
            return best
        self.budget_bytes, self.trials_left = budget_bytes, MAX_TRIALS
        return self._improve(best)  # what asked for less is dearer than it need be

    def _priced(self, prices: str) -> _Planner:
        """The same step where each operator costs as much, or as much as the bytes it made."""
        trace = self.sim.trace
        calls = tuple(replace(call, seconds=1.0 if prices == 'equal' else float(
            1 + sum(trace.values[v].num_bytes for v in call.outputs))) for call in trace.calls)
        seconds = np.ones(len(trace.seconds))
        for call in calls:
            seconds[call.moment] = call.seconds
        return _Planner(Simulator(replace(trace, calls=calls, seconds=seconds), self.sim.link),
                        self.actions, self.host_bytes)

    def _search(self, budget_bytes: int, num_trials: int) -> _Trial:
        self.budget_bytes, self.trials_left = budget_bytes, num_trials
        nothing = self._try({})
        if not nothing.over_bytes:
            return nothing
        best = self._greedy(nothing)
        # Pieces beat a greedy choice where chains are long, and only there.
        starts = sorted((self._try(actions) for actions in self._starts()),
                        key=lambda trial: trial.key)
        if starts and (best.over_bytes or starts[0].key < best.key):
            second = self._greedy(starts[0])
            best = min(best, second, key=lambda trial: trial.key)
        return self._improve(best)

    def _try(self, actions: dict[int, str]) -> _Trial:
        """Simulate. Values that turn out not to be replayable are left where they are, and those
        whose copy to the host would end too late: they would go and come for nothing."""
        actions = dict(actions)
        while True:
            try:
                outcome = self.sim.run(actions)
            except CannotReplay as error:
                del actions[error.value]
                continue
            called_off = [v for v, kind in actions.items()
                          if kind == 'swap' and outcome.off_from[v] > self.sim.num_ops]
            if called_off:
                actions = {v: kind for v, kind in actions.items() if v not in called_off}
                continue
            return _Trial(actions, outcome, self.budget_bytes, self.host_bytes)

    # Starts ------------------------------------------------------------------------------------

    def _starts(self) -> Iterator[dict[int, str]]:
        sim = self.sim
        if 'swap' in self.kinds:
            yield dict.fromkeys(self.candidates, 'swap')
        if 'drop' not in self.kinds:
            return
        last_use = list(sim.born)
        for call in sim.trace.calls:
            for w in call.inputs:
                last_use[w] = max(last_use[w], call.moment)
        order = sorted(self.candidates, key=lambda v: sim.born[v])
        sums = np.cumsum([sim.bytes[v] for v in order])
        for num_pieces in SEGMENTS:
            if num_pieces > len(order):
                return
            cuts = np.searchsorted(sums, sums[-1] * np.arange(1, num_pieces) / num_pieces)
            cuts = [sim.born[order[cut]] for cut in cuts]
            crossing = {v for v in order if any(sim.born[v] <= cut < last_use[v] for cut in cuts)}
            yield {v: 'drop' for v in order if v not in crossing}
            if 'swap' in self.kinds:
                yield {v: 'swap' if v in crossing else 'drop' for v in order}

    # Greedy ------------------------------------------------------------------------------------

    def _greedy(self, trial: _Trial) -> _Trial:
        """Add the cheapest bytes first. Candidates are chosen on estimates, a batch at a time, and
        each batch is simulated before the next one."""
        best, batch = trial, max(4, len(self.candidates) // 8)
        left = set(self.candidates)  # what proved not to be replayable is not chosen again
        while trial.over_bytes:
            state = _State(self.sim, trial)
            left -= state.choose(left, self.kinds, self.host_bytes, batch)
            if len(state.actions) == len(trial.actions):
                break
            trial = self._try(state.actions)
            best = min(best, trial, key=lambda trial: trial.key)
        return best

    # Local search ------------------------------------------------------------------------------

    def _improve(self, best: _Trial) -> _Trial:
        while self.trials_left > 0:
            before = best.key
            if best.over_bytes:
                best = self._lower_peak(best)
            else:
                best = self._descend(best, self._without)
                if best.outcome.replay_seconds + best.outcome.wait_seconds > 0:
                    best = self._descend(best, self._flipped)
                    best = self._descend(best, self._exchanged)
            if best.key == before:
                break
        return best

    def _descend(self, best: _Trial, moves) -> _Trial:
        """Take each move that pays, in one sweep."""
        for v in self._dearest(best):
            for actions in moves(best, v):
                if self.trials_left <= 0:
                    return best
                self.trials_left -= 1
                trial = self._try(actions)
                if trial.key < best.key:
                    best = trial
                    break
        return best

    def _dearest(self, trial: _Trial) -> list[int]:
        seconds = {v: self._own_seconds(v, action) for v, action in trial.actions.items()}
        return sorted(seconds, key=lambda v: (-seconds[v], v))

    def _own_seconds(self, v: int, action: str) -> float:
        sim = self.sim
        if action == 'drop':
            return sim.seconds[sim.call[v]]
        return sim.bytes[v] * (1 / sim.link.out_bytes_per_s + 1 / sim.link.in_bytes_per_s)

    def _has_room(self, trial: _Trial, out: int, into: Iterable[int] = ()) -> bool:
        """Could v come back? What replays hold for a moment may fall with it, so the level at
        moments with a replay is not asked."""
        first, end = self._span(trial, out)
        live = trial.outcome.live_bytes[first:end].copy()
        for u in into:
            left, right = max(self.sim.idle[u] + 1, first), self.sim.first_read.get(u, end)
            live[left - first:max(right - first, 0)] -= self.sim.bytes[u]
        calm = [k - first for k in trial.outcome.chains if first <= k < end]
        live[calm] = 0
        return int(live.max(initial=0)) + self.sim.bytes[out] <= self.budget_bytes

    def _span(self, trial: _Trial, v: int) -> tuple[int, int]:
        outcome = trial.outcome
        first = min(outcome.off_from[v], self.sim.num_ops)
        return first, max(first, outcome.restored.get(v, self.sim.death[v] + 1))

    def _without(self, best: _Trial, v: int) -> Iterator[dict[int, str]]:
        if v in best.actions and self._has_room(best, v):
            yield {w: action for w, action in best.actions.items() if w != v}

    def _flipped(self, best: _Trial, v: int) -> Iterator[dict[int, str]]:
        other = 'swap' if best.actions.get(v) == 'drop' else 'drop'
        if v in best.actions and other in self.kinds:
            yield {**best.actions, v: other}

    def _exchanged(self, best: _Trial, v: int) -> Iterator[dict[int, str]]:
        if v not in best.actions:
            return
        cost = self._own_seconds(v, best.actions[v])
        partners = []
        for u in self.candidates:
            for kind in self.kinds:
                if u not in best.actions and self._own_seconds(u, kind) < cost:
                    partners.append((self._own_seconds(u, kind), u, kind))
        partners.sort()
        rest = {w: action for w, action in best.actions.items() if w != v}
        num_tried = 0
        for _, u, kind in partners:
            if self._has_room(best, v, (u,)):
                yield {**rest, u: kind}
                num_tried += 1
                if num_tried == NUM_PARTNERS:
                    return

    def _lower_peak(self, best: _Trial) -> _Trial:
        """Where the peak stands: break the replay that makes it, or leave more out."""
        outcome = best.outcome
        top = int(outcome.live_bytes.argmax())
        moves = []
        for moment, values in outcome.chains.items():
            for v in values:
                if moment <= top <= self.sim.first_read.get(v, top):
                    moves.append((self.sim.bytes[v], v))
        for v in self.candidates:
            if v not in best.actions and self.sim.idle[v] < top <= self.sim.first_read.get(
                    v, self.sim.death[v]):
                moves.append((self.sim.bytes[v], v))
        steps = [(v, kind) for _, v in sorted(set(moves), reverse=True)
                 for kind in (None, *self.kinds) if kind != best.actions.get(v)]
        for changes in itertools.chain(((step,) for step in steps),
                                       itertools.combinations(steps, 2)):
            if self.trials_left <= 0:
                break
            self.trials_left -= 1
            changed = {**best.actions, **dict(changes)}
            trial = self._try({v: kind for v, kind in changed.items() if kind})
            if trial.key < best.key:
                return trial
        return best


class _State:
    """A trial that is being added to, on estimates: levels, and when each value is there again."""

    def __init__(self, sim: Simulator, trial: _Trial) -> None:
        outcome = trial.outcome
        self.sim, self.budget_bytes = sim, trial.budget_bytes
        self.actions = dict(trial.actions)
        self.over = outcome.live_bytes - trial.budget_bytes
        self.off_from, self.restored = dict(outcome.off_from), dict(outcome.restored)
        self.root_use = dict(outcome.root_use)
        self.swapped = sum(sim.bytes[v] for v, kind in self.actions.items() if kind == 'swap')
        self.tiny = 1e-6 * max(sim.trace.op_seconds, 1e-9) / max(len(sim.call), 1)
        begins = sim.reads[0][0] if sim.reads else sim.num_ops
        self.backward_start = sim.start[begins]

    def choose(self, candidates: set[int], kinds: tuple[str, ...], host_bytes: int | None,
               batch: int) -> set[int]:
        """Add up to ``batch`` values, best density first, until the estimate is within budget."""
        heap = [(self._score(v, kind), v, kind) for v in sorted(candidates) for kind in kinds
                if v not in self.actions]
        heap = [item for item in heap if item[0] < math.inf]
        heapq.heapify(heap)
        added: set[int] = set()
        while heap and len(added) < batch and self.over.max() > 0:
            _, v, kind = heapq.heappop(heap)
            if v in self.actions:
                continue
            if kind == 'swap' and host_bytes is not None:
                if self.swapped + self.sim.bytes[v] > host_bytes:
                    continue
            score = self._score(v, kind)
            if heap and score > heap[0][0]:
                if score < math.inf:
                    heapq.heappush(heap, (score, v, kind))
                continue
            self._add(v, kind)
            added.add(v)
        return added

    def _estimate(self, v: int, kind: str) -> tuple[float, list[tuple[int, int, int]],
                                                    list[int], list[int]] | None:
        """Seconds, changes (bytes, first, end) of the levels, values that a replay would restore
        earlier, and values that it would read; None: cannot be replayed."""
        sim = self.sim
        first = sim.idle[v] + 1
        end = min(sim.first_read.get(v, sim.death[v] + 1), self.root_use.get(v, sim.num_ops))
        if kind == 'swap':
            seconds, first = self._swap_estimate(v, end, first)
            return seconds, [(-sim.bytes[v], first, end)], [], []
        changes = [(-sim.bytes[v], first, end)]
        seconds, pulled, roots, seen, stack = 0.0, [], [], set(), [sim.call[v]]
        if v not in sim.first_read and v not in self.root_use:
            return 0.0, changes, [], []
        while stack:
            call = stack.pop()
            if call in seen:
                continue
            seen.add(call)
            if not sim.replayable[call]:
                return None
            seconds += sim.seconds[call]
            for w in sim.inputs[call]:
                action = self.actions.get(w)
                if (action and self.off_from[w] <= end
                        and self.restored.get(w, sim.num_ops) > end):
                    if w not in pulled:
                        pulled.append(w)
                        changes.append((sim.bytes[w], end, self.restored.get(w, end)))
                    if action == 'drop':
                        stack.append(sim.call[w])
                    elif sim.link.overlaps:  # without overlap it is paid in any case
                        seconds += sim.bytes[w] / sim.link.in_bytes_per_s
                elif sim.born[w] < end <= sim.death[w]:
                    roots.append(w)
                elif sim.lockable[w] and sim.idle[v] < sim.death[w] < end:
                    roots.append(w)
                    changes.append((sim.bytes[w], sim.death[w] + 1, end))
                else:
                    stack.append(sim.call[w])
        return seconds, changes, pulled, roots

    def _swap_estimate(self, v: int, end: int, first: int) -> tuple[float, int]:
        """Seconds not hidden and the first moment without v. Beside compute: the copies back that
        backward needs before this one run before it."""
        sim = self.sim
        out = sim.bytes[v] / sim.link.out_bytes_per_s
        back = sim.bytes[v] / sim.link.in_bytes_per_s
        if not sim.link.overlaps:
            return out + (back if v in sim.first_read else 0.0), first
        queueing = sim.link.host_seconds * (1 + (v in sim.first_read))
        done = int(np.searchsorted(sim.clock, sim.start[first] + out))
        queue = back + sum(sim.bytes[w] for w, kind in self.actions.items() if kind == 'swap'
                           and self.restored.get(w, sim.num_ops) < end) / sim.link.in_bytes_per_s
        late = queue - (sim.start[min(end, sim.num_ops)] - self.backward_start)
        return queueing + max(0.0, late), done + 1

    def _score(self, v: int, kind: str) -> float:
        estimate = self._estimate(v, kind)
        if estimate is None:
            return math.inf
        seconds, changes, _, _ = estimate
        gain = 0
        for num_bytes, first, end in changes:
            if first < end:
                over = self.over[first:end]
                gain += int(np.maximum(over, 0).sum() - np.maximum(over + num_bytes, 0).sum())
        return (seconds + self.tiny) / gain if gain > 0 else math.inf

    def _add(self, v: int, kind: str) -> None:
        _, changes, pulled, roots = self._estimate(v, kind)
        for num_bytes, first, end in changes:
            self.over[first:max(first, end)] += num_bytes
        first, end = changes[0][1:]
        self.actions[v], self.off_from[v] = kind, first
        self.restored[v] = end
        for w in pulled:
            self.restored[w] = end
        for w in roots:
            self.root_use[w] = min(end, self.root_use.get(w, end))
        self.swapped += self.sim.bytes[v] * (kind == 'swap')
