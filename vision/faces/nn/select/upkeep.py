"""Keeps an index near rows that drift: renewed in the background, swapped at a fixed step.

A renewal takes a snapshot at step s, works on it in a thread, and the new index answers from step
s + ``swap_lag`` on, on every rank: if it is late, training waits. The steps at which anything
happens depend on the step count only, so two runs (and all ranks) select alike; with
``is_async=False`` the work is done at once, which gives the same selections with no thread.

From cheap to dear: rows that a step has touched are put in place; all rows are assigned to the
lists again; k-means goes on from the old centroids; everything is built from nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from vision.common.core.errors import VisionError

_DRIFT_ROWS = 1024  # sampled for the drift: its standard error is then about 3 % of itself


@dataclass(frozen=True)
class Schedule:
    """When to do what; steps are training steps.

    Attributes:
        interval: between two renewals.
        swap_lag: from a snapshot to the use of what was built from it, below ``interval``.
        warm_every: each so-many-th renewal also moves the centroids by k-means; 0: never.
        warm_iterations: of k-means then.
        cold_imbalance: lists more uneven than this are built from nothing at the next renewal.
        touched_per_step: rows touched by a step that are put in their new place at once, those
            of the batch's own labels first; 0: none, they wait for the renewal.
        is_async: build in a thread.
    """

    interval: int = 500
    swap_lag: int = 50
    warm_every: int = 4
    warm_iterations: int = 1
    cold_imbalance: float = 3.0
    touched_per_step: int = 0
    is_async: bool = False

    def __post_init__(self) -> None:
        if self.interval < 1 or not 0 <= self.swap_lag < self.interval \
                or min(self.warm_every, self.warm_iterations, self.touched_per_step) < 0:
            raise VisionError('VIS-CONFIG-1049', f'upkeep with interval={self.interval}, '
                              f'swap_lag={self.swap_lag}, warm_every={self.warm_every}, '
                              f'touched_per_step={self.touched_per_step}', where='selector',
                              why='0 <= swap_lag < interval, and no number is negative',
                              do='lower swap_lag, or raise interval')


class IndexUpkeep:
    """One index over the rows of one store.

    Args:
        store: has ``snapshot(dtype)`` and ``pull(rows)``.
        build: build(rows (C, d), seed) -> an index with ``propose``, ``renewal``,
            ``imbalance``, ``can_update``, ``update`` and ``state_dict``.
        restore: restore(state, rows) -> index, of a checkpoint.
    """

    def __init__(self, store, build: Callable[[Tensor, int], object],
                 restore: Callable[[dict, Tensor], object], schedule: Schedule | None = None, *,
                 seed: int = 0) -> None:
        self.store, self.schedule, self.seed = store, schedule or Schedule(), seed
        self.interval = self.schedule.interval
        self._build, self._restore = build, restore
        self._index: object | None = None
        self._coming: Future | None = None
        self._coming_step = self._built_step = 0
        self._num_renewals = 0
        self._pool: ThreadPoolExecutor | None = None
        self._touched: list[Tensor] = []
        self._probe: tuple[Tensor, Tensor] | None = None
        self._coming_probe: tuple[Tensor, Tensor] | None = None
        self.seconds = dict(snapshot=0.0, wait=0.0, build=0.0, touched=0.0)

    def index(self, step: int):
        """The index to ask at this step; the first is built here, while training waits."""
        if self._index is None:
            start = time.perf_counter()
            rows = self.store.snapshot(torch.float16)
            index = self._build(rows, self.seed)
            if self.schedule.touched_per_step and not index.can_update:
                raise VisionError('VIS-CONFIG-1046', 'touched_per_step with an index that cannot '
                                  'change single rows', where='selector.upkeep',
                                  do='set it to 0, or take an ivf or midx selector')
            self._index, self._probe = index, self._take_probe(rows)
            self._built_step = step
            self.seconds['build'] += time.perf_counter() - start
        return self._index

    def adopt(self, index, step: int) -> None:
        """Use this index from now on, as if it had been built at ``step``; drops one under way."""
        self.finish()
        self._index, self._built_step = index, step
        self.seconds = dict.fromkeys(self.seconds, 0.0)

    def after_update(self, rows: Tensor, step: int, first: Tensor | None = None) -> None:
        """To be called when the optimizer has changed ``rows`` (local ids) at ``step``.

        Args:
            first: those of the rows that are put in place before others.
        """
        if self._index is None:
            return
        if self._coming is not None and step >= self._coming_step:
            self._swap()
        self._put_touched(rows if first is None else torch.cat([first, rows]))
        if self._coming is None and step - self._built_step >= self.interval:
            self._begin(step)

    @property
    def swap_step(self) -> int | None:
        """Step at which the index under way will be used; None: none is."""
        return None if self._coming is None else self._coming_step

    def wait(self) -> None:
        """Until the index under way is built; it is still used from ``swap_step`` only."""
        if self._coming is not None:
            self._coming.exception()

    def drift(self) -> float:
        """Mean of 1 - cosine between sampled rows now and in the snapshot of the index."""
        if self._probe is None:
            return 0.0
        ids, before = self._probe
        now = self.store.pull(ids.to(self.store.device)).detach().cpu()
        return float(1 - functional.cosine_similarity(now.float(), before.float()).mean())

    def set_interval(self, interval: int) -> None:
        """Steps between renewals from now on; never below the swap lag."""
        self.interval = max(interval, self.schedule.swap_lag + 1)

    def renew(self, step: int) -> None:
        """Build from nothing now, while training waits."""
        self.finish()
        self._index = None
        self.index(step)

    def finish(self) -> None:
        """Wait for a build that is under way and drop it; ends the thread."""
        if self._coming is not None:
            self._coming.cancel() or self._coming.exception()
            self._coming = None
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def state_dict(self) -> dict:
        """The index without its lists, and the counters; a build under way is begun again."""
        state = None if self._index is None else self._index.state_dict()
        return dict(index=state, built_step=self._built_step, num_renewals=self._num_renewals)

    def load_state_dict(self, state: dict) -> None:
        self.finish()
        self._index = None
        self._built_step, self._num_renewals = state['built_step'], state['num_renewals']
        if state['index'] is not None:
            rows = self.store.snapshot(torch.float16)
            self._index, self._probe = self._restore(state['index'], rows), self._take_probe(rows)

    def _begin(self, step: int) -> None:
        start = time.perf_counter()
        rows, self._touched = self.store.snapshot(torch.float16), []
        self._coming_probe = self._take_probe(rows)
        self._num_renewals += 1
        self._built_step, self._coming_step = step, step + self.schedule.swap_lag
        self.seconds['snapshot'] += time.perf_counter() - start
        work = self._work(rows)
        if self.schedule.is_async:
            self._pool = self._pool or ThreadPoolExecutor(1, 'class-index')
            self._coming = self._pool.submit(self._timed, work)
        else:
            self._coming = Future()
            self._coming.set_result(self._timed(work))
        if self.schedule.swap_lag == 0:
            self._swap()

    def _work(self, rows: Tensor) -> Callable[[], object]:
        schedule, number = self.schedule, self._num_renewals
        if self._index.imbalance() > schedule.cold_imbalance:
            return partial(self._build, rows, self.seed + number)
        is_warm = schedule.warm_every and number % schedule.warm_every == 0
        return self._index.renewal(
            rows, num_iterations=schedule.warm_iterations if is_warm else 0)

    def _timed(self, work: Callable[[], object]):
        start = time.perf_counter()
        index = work()
        self.seconds['build'] += time.perf_counter() - start
        return index

    def _swap(self) -> None:
        start = time.perf_counter()
        self._index, self._coming = self._coming.result(), None
        self._probe = self._coming_probe
        self.seconds['wait'] += time.perf_counter() - start
        if self._touched:  # since the snapshot
            self._update(torch.cat(self._touched).unique())
            self._touched = []

    def _put_touched(self, rows: Tensor) -> None:
        budget = self.schedule.touched_per_step
        if not budget or not len(rows):
            return
        rows = rows[:budget].unique()
        self._update(rows)
        if self._coming is not None:
            self._touched.append(rows)

    def _update(self, rows: Tensor) -> None:
        start = time.perf_counter()
        self._index.update(rows.cpu(), self.store.pull(rows).detach())
        self.seconds['touched'] += time.perf_counter() - start

    def _take_probe(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        ids = torch.arange(0, len(rows), max(1, len(rows) // _DRIFT_ROWS))
        return ids, rows[ids.to(rows.device)].cpu()
