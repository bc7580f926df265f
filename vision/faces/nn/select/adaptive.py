"""A selector whose number of rows, renewals and search follow what it measures on itself.

Our design, see ``vision.faces.core.select.controller``. Until class rows have structure an index
finds hardly more than chance: then rows are drawn at random, and an index is only built, in the
background, for each measurement. Readings are of all ranks' rows together, so any number of
ranks decides alike.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from vision.faces.core.select.controller import AllocationController, Readings, Rules
from vision.faces.core.select.sampling import draw_outside
from vision.faces.nn.select.selectors import (
    IndexSelector,
    RandomSelector,
    Selection,
    log_sum_over_ranks,
)

_EXACT_ROWS = 65_536  # of all ranks; up to here the outside mass is summed over all rows
_SAMPLED_ROWS = 8192  # above, over so many random ones
_RECALL_SAMPLES = 32  # of the batch, whose ten best rows are looked for among all rows
_CHUNK = 1 << 16


def outside_mass(selector: IndexSelector, features: Tensor, local: Tensor, rows: Tensor,
                 step: int) -> float:
    """Mean share of the negatives' softmax mass that lies outside the ranks' ``rows``.

    Own classes are left out: whatever a margin makes of their logits, the mass outside the active
    set is at most this.

    Args:
        features: (B, d).
        local: (B,) int64 local id of each own class, or -1.
        rows: (M,) sorted unique local ids, own classes among them.
    """
    queries, store, num_local = selector.queries(features), selector.store, selector.num_local
    if not len(queries):
        return 0.0
    rows = rows.cpu()
    num_free = num_local - len(rows)
    share = 1.0 if store.num_classes <= _EXACT_ROWS else _SAMPLED_ROWS / store.num_classes
    count = min(num_free, math.ceil(share * num_local))
    drawn = draw_outside(rows.numpy(), num_local, count, selector.seed, step, 1)
    inside = selector.logits(queries, rows)
    inside.masked_fill_((selector.class_of(rows) == local[:, None]).to(inside.device), -torch.inf)
    outside = selector.logits(queries, torch.from_numpy(drawn)).logsumexp(1)
    outside += math.log(num_free / count) if count else 0.0
    outside, inside = (log_sum_over_ranks(part, store.group)
                       for part in (outside, inside.logsumexp(1)))
    return float((outside - inside).sigmoid().mean())


def recall_at_10(selector: IndexSelector, features: Tensor, local: Tensor,
                 found: Tensor) -> float:
    """Share of some samples' ten best rows, own class apart, that are in their rank's ``found``.

    Looks at all rows: the cost of ``_RECALL_SAMPLES`` samples of the full softmax. Every rank
    comes here, and all get the same number.

    Args:
        features: (B, d) of all ranks.
        local: (B,) local id of each sample's class, -1 on another rank.
        found: (N,) local ids.
    """
    queries = selector.queries(features)[:_RECALL_SAMPLES]
    if not len(queries):
        return 1.0
    own, values, is_found = local[:len(queries), None], [], []
    for part in torch.arange(selector.num_local).split(_CHUNK):
        logits = selector.logits(queries, part).cpu().masked_fill_(
            selector.class_of(part) == own, -torch.inf)
        best = logits.topk(min(10, len(part)), dim=1)
        values.append(best.values)
        is_found.append(torch.isin(best.indices + part[:1], found))
    width = 10 - min(10, selector.num_local)  # all ranks send as many
    values = [torch.full((len(queries), width), -torch.inf), *values]
    is_found = [torch.zeros(len(queries), width, dtype=torch.bool), *is_found]
    values, order = torch.cat(values, 1).topk(10, dim=1)
    is_found = torch.cat(is_found, 1).gather(1, order)
    group, device = selector.store.group, selector.store.device
    if group is not None:
        mine = torch.stack([values, is_found.float()]).to(device)
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, mine, group=group)
        values, is_found = torch.cat(parts, 2).cpu()
        values, order = values.topk(10, dim=1)
        is_found = is_found.gather(1, order)
    counted = values > -torch.inf
    return float(is_found[counted].float().mean()) if counted.any() else 1.0


class AdaptiveSelector:
    """Random rows in the warm-up, then the index; the controller is asked at fixed steps.

    In the warm-up the index of each measurement but the first is built in the background, begun
    ``swap_lag`` steps before it.

    Args:
        inner: selector with an index; its ``num_active``, interval and ``nprobe`` are set here.
        rules: of the controller.
        monitor_every: steps between two measurements, each about as dear as a tenth of a full
            step at a million rows.
    """

    never_waits = draws_from_labels = False

    def __init__(self, inner: IndexSelector, rules: Rules | None = None, *,
                 monitor_every: int = 200) -> None:
        self.inner, self.rules, self.monitor_every = inner, rules or Rules(), monitor_every
        self.controller: AllocationController | None = None
        self.random = RandomSelector(inner.store, seed=inner.seed, is_cosine=inner.is_cosine)

    @property
    def upkeep(self):
        """What keeps the inner selector's index near the rows."""
        return self.inner.upkeep

    @property
    def is_warming_up(self) -> bool:
        """Whether rows are still drawn at random."""
        return self.controller is None or self.controller.allocation.phase == 'warm-up'

    def select(self, features: Tensor, labels: Tensor, step: int) -> Selection:
        """As ``Selector.select``, of features (B, d) and labels (B,); ``stats`` also has what was
        decided."""
        if self.controller is None:
            self._make_controller(len(labels))
        readings = {}
        if step % self.monitor_every == 0:
            readings = self._monitor(features, labels, step)
        chooser = self.random if self.is_warming_up else self.inner
        selection = chooser.select(features, labels, step)
        figures = dict(is_warm_up=float(self.is_warming_up), interval=float(self.upkeep.interval))
        return replace(selection, stats=selection.stats | figures | readings)

    def expect(self, labels: Tensor, step: int) -> None:
        """Nothing of labels (B,): a measurement may end the warm-up, and with it the draw."""

    def known_rows(self, labels: Tensor, step: int) -> Tensor:
        """As ``Selector.known_rows``, (N,) of labels (B,); a hint, as a measurement may end the
        warm-up."""
        is_random = self.controller is not None and self.is_warming_up
        return (self.random if is_random else self.inner).known_rows(labels, step)

    def after_update(self, rows: Tensor, step: int) -> None:
        """The optimizer has changed these local rows (M,): in the warm-up the next measurement's
        index is begun when it is time, later the index follows."""
        if self.is_warming_up:  # rows without structure are worth no renewal between
            self.upkeep.build_for(step, step - step % self.monitor_every + self.monitor_every)
        else:
            self.inner.after_update(rows, step)

    def state_dict(self, *, is_exact: bool = True) -> dict:
        """State of the inner selector, and of the controller: None before the first step."""
        controller = None if self.controller is None else self.controller.state_dict()
        return self.inner.state_dict(is_exact=is_exact) | dict(controller=controller)

    def load_state_dict(self, state: dict) -> None:
        """Go on from what ``state_dict`` gave, with the allocation that held then."""
        self.inner.load_state_dict(state)
        if state['controller'] is not None:
            self._make_controller(1)
            self.controller.load_state_dict(state['controller'])
            self._apply()

    def _make_controller(self, batch_size: int) -> None:
        self.controller = AllocationController(self.inner.store.num_classes, batch_size,
                                               self.rules, nprobe=self.inner.nprobe)
        self._apply()

    def _apply(self) -> None:
        allocation = self.controller.allocation
        self.inner.num_active, self.inner.nprobe = allocation.num_active, allocation.nprobe
        self.random.num_active = self.controller.num_random
        self.upkeep.set_interval(allocation.interval)

    def _monitor(self, features: Tensor, labels: Tensor, step: int) -> dict[str, float]:
        inner, store = self.inner, self.inner.store
        rows, local = inner.select(features, labels, step).rows, inner.local_ids(labels)
        found = inner.candidates(inner.queries(features), inner.num_places, step, least=11)
        # Sums over the ranks of what each says of its own rows.
        sums = torch.tensor([len(rows), self.upkeep.drift() * inner.num_local],
                            dtype=torch.float64, device=store.device)
        if store.group is not None:
            dist.all_reduce(sums, group=store.group)
        num_rows, drift = sums.tolist()
        readings = Readings(
            outside_mass=outside_mass(inner, features, local, rows, step),
            random_outside_mass=1 - num_rows / store.num_classes,  # of a uniform draw: its mean
            recall=recall_at_10(inner, features, local, found),
            drift=drift / store.num_classes)
        self.controller.update(step, readings)
        self._apply()
        return dict(outside_mass=readings.outside_mass, recall=readings.recall,
                    drift=readings.drift)
