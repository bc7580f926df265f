"""A selector whose number of rows, renewals and search follow what it measures on itself.

Our design, see ``vision.faces.core.select.controller``. Until class rows have structure an index
finds hardly more than chance: then rows are drawn at random, and the index is only built when
measured.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from vision.faces.core.select.controller import AllocationController, Readings, Rules
from vision.faces.core.select.sampling import draw_outside
from vision.faces.nn.select.selectors import IndexSelector, RandomSelector, Selection

_EXACT_ROWS = 65_536  # up to here the outside mass is summed over all rows
_SAMPLED_ROWS = 8192  # above, over so many random ones
_RECALL_SAMPLES = 32  # of the batch, whose ten best rows are looked for among all rows
_CHUNK = 1 << 16


def outside_mass(selector: IndexSelector, features: Tensor, local: Tensor, rows: Tensor,
                 step: int) -> float:
    """Mean share of the negatives' softmax mass that lies outside ``rows``.

    Own classes are left out: whatever a margin makes of their logits, the mass outside the active
    set is at most this.

    Args:
        features: (B, d).
        local: (B,) int64 local id of each own class, or -1.
        rows: (M,) sorted unique local ids, own classes among them.
    """
    queries, taken = selector.queries(features), rows.cpu().numpy()
    num_free = selector.num_local - len(taken)
    count = num_free if selector.num_local <= _EXACT_ROWS else min(_SAMPLED_ROWS, num_free)
    if not count or not len(queries):
        return 0.0
    drawn = torch.from_numpy(draw_outside(taken, selector.num_local, count, selector.seed, step,
                                          1))
    inside = selector.logits(queries, rows.cpu())
    column = torch.searchsorted(rows.cpu(), local.clamp(min=0)).to(inside.device)[:, None]
    is_own = (local >= 0).to(inside.device)[:, None]
    inside.scatter_(1, column, inside.gather(1, column).masked_fill(is_own, -torch.inf))
    log_out = selector.logits(queries, drawn).logsumexp(1) + math.log(num_free / count)
    return float((log_out - inside.logsumexp(1)).sigmoid().mean())


def recall_at_10(selector: IndexSelector, features: Tensor, local: Tensor,
                 found: Tensor) -> float:
    """Share of the ten best rows of some samples, own class apart, that are in ``found``.

    Looks at all rows: the cost of ``_RECALL_SAMPLES`` samples of the full softmax.
    """
    queries = selector.queries(features)[:_RECALL_SAMPLES]
    values, ids = [], []
    for part in torch.arange(selector.num_local).split(_CHUNK):
        best = selector.logits(queries, part).topk(min(11, len(part)), dim=1)
        values.append(best.values)
        ids.append(best.indices.cpu() + part[0])
    order = torch.cat(values, 1).argsort(1, descending=True).cpu()
    best = torch.cat(ids, 1).gather(1, order)[:, :11]
    own = local[:len(queries), None]
    is_found = torch.isin(best, found)
    rank = (best != own).cumsum(1)
    counted = (best != own) & (rank <= 10)
    return float(is_found[counted].float().mean()) if counted.any() else 1.0


def make_adaptive(inner: IndexSelector, *, monitor_every: int = 200,
                  group: dist.ProcessGroup | None = None, **rules) -> AdaptiveSelector:
    return AdaptiveSelector(inner, Rules(**rules), monitor_every=monitor_every, group=group)


class AdaptiveSelector:
    """Random rows in the warm-up, then the index; the controller is asked at fixed steps.

    Args:
        inner: selector with an index; its ``num_active``, interval and ``nprobe`` are set here.
        rules: of the controller.
        monitor_every: steps between two measurements, each about as dear as a tenth of a full
            step at a million rows.
        group: ranks that hold the other rows; the mean of their readings decides.
    """

    def __init__(self, inner: IndexSelector, rules: Rules | None = None, *,
                 monitor_every: int = 200, group: dist.ProcessGroup | None = None) -> None:
        self.inner, self.rules, self.monitor_every = inner, rules or Rules(), monitor_every
        self.group, self.controller = group, None
        self.random = RandomSelector(inner.store, seed=inner.seed, is_cosine=inner.is_cosine)

    @property
    def upkeep(self):
        return self.inner.upkeep

    @property
    def is_warming_up(self) -> bool:
        return self.controller is None or self.controller.allocation.phase == 'warm-up'

    def select(self, features: Tensor, labels: Tensor, step: int) -> Selection:
        """As ``Selector.select``; ``stats`` also has what was decided."""
        if self.controller is None:
            self._make_controller(len(labels))
        readings = {}
        if step % self.monitor_every == 0:
            readings = self._monitor(features, labels, step)
        chooser = self.random if self.is_warming_up else self.inner
        selection = chooser.select(features, labels, step)
        figures = dict(is_warm_up=float(self.is_warming_up), interval=float(self.upkeep.interval))
        return replace(selection, stats=selection.stats | figures | readings)

    def known_rows(self, labels: Tensor, step: int) -> Tensor:
        """As ``Selector.known_rows``; a hint, as a measurement may end the warm-up."""
        is_random = self.controller is not None and self.is_warming_up
        return (self.random if is_random else self.inner).known_rows(labels, step)

    def after_update(self, rows: Tensor, step: int) -> None:
        if not self.is_warming_up:  # rows without structure are worth no renewal
            self.inner.after_update(rows, step)

    def state_dict(self) -> dict:
        controller = None if self.controller is None else self.controller.state_dict()
        return self.inner.state_dict() | dict(controller=controller)

    def load_state_dict(self, state: dict) -> None:
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
        if self.is_warming_up:
            self.upkeep.renew(step)
        inner = self.inner
        rows, local = inner.select(features, labels, step).rows, inner.local_ids(labels)
        queries = inner.queries(features)
        values = torch.tensor([
            outside_mass(inner, features, local, rows, step),
            1 - len(rows) / inner.num_local,  # of a uniform draw: the mean is exactly this
            recall_at_10(inner, features, local,
                         inner.candidates(queries, inner.num_places, step, least=11)),
            self.upkeep.drift()], dtype=torch.float64)
        if self.group is not None:
            values = values.to(labels.device)
            dist.all_reduce(values, group=self.group)
            values /= dist.get_world_size(self.group)
        readings = Readings(*values.tolist())
        self.controller.update(step, readings)
        self._apply()
        return dict(outside_mass=readings.outside_mass, recall=readings.recall,
                    drift=readings.drift)
