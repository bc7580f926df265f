"""Keeps an index near rows that drift: renewed in the background, swapped at a fixed step.

A renewal takes a snapshot at step s, works on it in a thread, and the new index answers from step
s + ``swap_lag`` on, on every rank: if it is late, training waits. The steps at which anything
happens depend on the step count only, so two runs (and all ranks) select alike; with
``is_async=False`` the work is done at once, which gives the same selections with no thread. A
checkpoint has the index as it is, so that a resumed run selects as the run that went on.

From cheap to dear: rows that a step has touched are put in place; all rows are assigned to the
lists again; k-means goes on from the old centroids; everything is built from nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from vision.common.core.errors import VisionError
from vision.faces.core.select.faults import damaged_index
from vision.faces.nn.store.ranks import raise_together
from vision.faces.nn.store.side_stream import on_stream

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

    Raises:
        VisionError: VIS-CONFIG-1049, steps that do not go together, or a negative number.
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


@dataclass(frozen=True)
class _Job:
    """What an index under way is made of: enough to make the same one again.

    Attributes:
        rows: (C, d) snapshot at ``begun_step``.
        use_step: the index answers from the step after this one.
        seed: of a build from nothing; None: the old index's lists are renewed.
        num_iterations: of k-means then.
        previous: (C,) int32 lists that the renewal begins from; None: as the old index has them,
            which no touched row changes.
    """

    rows: Tensor
    begun_step: int
    use_step: int
    seed: int | None = None
    num_iterations: int = 0
    previous: Tensor | None = None


class IndexUpkeep:
    """One index over the rows of one store.

    Args:
        store: has ``snapshot(dtype)``, ``peek(rows)``, ``device`` and ``group``; ranks of a group
            come to ``index``, ``after_update`` and ``build_for`` together.
        build: build(rows (C, d), seed) -> an index with ``search``, ``renewal``, ``imbalance``,
            ``can_update``, ``update``, ``state_dict``, ``keeps_lists`` and, if it does,
            ``assignment`` and ``lists_state``.
        restore: restore(state, rows) -> index, of a checkpoint; ``state`` has ``lists``, what
            ``lists_state`` gave, or the rows count.
    """

    def __init__(self, store, build: Callable[[Tensor, int], object],
                 restore: Callable[[dict, Tensor], object], schedule: Schedule | None = None, *,
                 seed: int = 0) -> None:
        self.store, self.schedule, self.seed = store, schedule or Schedule(), seed
        self.interval = self.schedule.interval
        self._build, self._restore = build, restore
        self._index: object | None = None
        self._snapshot: Tensor | None = None  # of an index that cannot give its own state
        self._probe: tuple[Tensor, Tensor] | None = None
        self._coming: Future | None = None
        self._job: _Job | None = None
        self._built_step = self._num_renewals = 0
        self._pool: ThreadPoolExecutor | None = None
        self._stream: torch.cuda.Stream | None = None
        self._touched: list[Tensor] = []
        self.seconds = dict(snapshot=0.0, wait=0.0, build=0.0, touched=0.0)

    def index(self, step: int):
        """The index to ask at this step; the first is built here, while training waits.

        Raises:
            VisionError: on all ranks, that of the one whose index could not be built.
        """
        if self._index is None:
            rows = self.store.snapshot(torch.float16)
            self._take(self._agreed(partial(self._timed, partial(self._build, rows, self.seed))),
                       rows, step)
        return self._index

    def adopt(self, index, step: int) -> None:
        """Use this index from now on, as if it had been built at ``step``; drops one under way."""
        self.finish()
        self._index, self._built_step = index, step
        self.seconds = dict.fromkeys(self.seconds, 0.0)

    def after_update(self, rows: Tensor, step: int, first: Tensor | None = None) -> None:
        """To be called when the optimizer has changed ``rows``, (M,) local ids, at ``step``.

        Args:
            first: (K,) those of the rows that are put in place before others.

        Raises:
            VisionError: at the step of the swap and on all ranks, the error of a build under way
                (VIS-RUN-1056 if it is none of ours); the old index stays.
        """
        self._swap_if_due(step)
        if self._index is None:
            return
        self._put_touched(rows if first is None else torch.cat([first, rows]))
        if self._coming is None and step - self._built_step >= self.interval:
            self._begin(step, step + self.schedule.swap_lag)

    def build_for(self, step: int, use_step: int) -> None:
        """Instead of ``after_update``: the next index is wanted at ``use_step``, none before.

        It is built from nothing, ``swap_lag`` steps ahead, or at once if that is past.
        """
        if self._coming is None and use_step - 1 - step <= self.schedule.swap_lag:
            self._begin(step, use_step - 1, is_cold=True)
        self._swap_if_due(step)

    @property
    def swap_step(self) -> int | None:
        """Step at which the index under way will be used; None: none is."""
        return None if self._coming is None else self._job.use_step

    @property
    def num_bytes(self) -> int:
        """Memory of the index, and of the snapshot that is kept for checkpoints where it needs
        one."""
        kept = 0 if self._snapshot is None else self._snapshot.nbytes
        return kept + (0 if self._index is None else self._index.num_bytes)

    def wait(self) -> None:
        """Until the index under way is built; it is still used from ``swap_step`` only."""
        if self._coming is not None:
            self._coming.exception()

    def drift(self) -> float:
        """Mean of 1 - cosine between sampled rows now and in the snapshot of the index."""
        if self._probe is None:
            return 0.0
        ids, before = self._probe
        now = self.store.peek(ids.to(self.store.device)).cpu()
        return float(1 - functional.cosine_similarity(now.float(), before.float()).mean())

    def set_interval(self, interval: int) -> None:
        """Steps between renewals from now on; never below the swap lag."""
        self.interval = max(interval, self.schedule.swap_lag + 1)

    def finish(self) -> None:
        """Wait for a build that is under way and drop it; ends the thread."""
        if self._coming is not None:
            self._coming.cancel() or self._coming.exception()
            self._coming = self._job = None
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def state_dict(self, *, is_exact: bool = True) -> dict:
        """The counters, and the index.

        Args:
            is_exact: with all that makes a loaded selector choose as this one does: the lists, or
                the snapshot that the index was built from, and those of an index under way. They
                are as large as the index. Without, a loaded index has the rows as of then.
        """
        state = dict(index=None, built_step=self._built_step, num_renewals=self._num_renewals)
        if self._index is not None:
            state['index'] = self._index.state_dict()
            if is_exact:
                lists = self._index.lists_state() if self._index.keeps_lists else None
                probe = None if self._probe is None else list(self._probe)
                state |= dict(lists=lists, snapshot=self._snapshot, probe=probe)
        if is_exact and self._job is not None:
            touched = torch.cat(self._touched).unique() if self._touched else None
            state['coming'] = dict(vars(self._job), touched=touched)
        return state

    def load_state_dict(self, state: dict) -> None:
        """Go on from what ``state_dict`` gave; an index that was under way is begun again.

        Raises:
            VisionError: VIS-CKPT-1054, the index is damaged.
        """
        self._check_loaded(*(state.get(name) for name in ('snapshot', 'probe', 'coming')))
        self.finish()
        self._index = self._snapshot = self._probe = None
        self._touched = []
        self._built_step, self._num_renewals = state['built_step'], state['num_renewals']
        if state['index'] is not None:
            lists, rows = state.get('lists'), state.get('snapshot')
            if lists is None and rows is None:
                rows = self.store.snapshot(torch.float16)
            index = self._restore(dict(state['index'], lists=lists), rows)
            self._take(index, rows, self._built_step, state.get('probe'))
        if state.get('coming') is not None:
            job = dict(state['coming'])
            touched = job.pop('touched')
            self._touched = [] if touched is None else [touched.to(self.store.device)]
            self._start(_Job(**job))

    def _take(self, index, rows: Tensor | None, step: int,
              probe: tuple[Tensor, Tensor] | None = None) -> None:
        """Use this index, made of the rows of ``step``, from now on."""
        if self.schedule.touched_per_step and not index.can_update:
            raise VisionError('VIS-CONFIG-1093', 'touched_per_step with an index that cannot '
                              'change single rows', where='selector.upkeep',
                              do='set it to 0, or take an ivf selector')
        self._index, self._built_step = index, step
        self._snapshot = None if index.keeps_lists else rows
        self._probe = self._take_probe(rows) if probe is None else tuple(probe)

    def _begin(self, step: int, use_step: int, *, is_cold: bool = False) -> None:
        schedule, start = self.schedule, time.perf_counter()
        rows, self._touched = self.store.snapshot(torch.float16), []
        self._num_renewals += 1
        self._built_step = step
        job = _Job(rows, step, use_step)
        number = self._num_renewals
        if is_cold or self._index.imbalance() > schedule.cold_imbalance:
            job = replace(job, seed=self.seed + number)
        else:
            is_warm = schedule.warm_every and number % schedule.warm_every == 0
            job = replace(
                job, num_iterations=schedule.warm_iterations if is_warm else 0,
                previous=self._index.assignment().int() if schedule.touched_per_step else None)
        self.seconds['snapshot'] += time.perf_counter() - start
        self._start(job)
        self._swap_if_due(step)

    def _start(self, job: _Job) -> None:
        if job.seed is not None:
            work = partial(self._build, job.rows, job.seed)
        else:
            previous = {} if job.previous is None else dict(previous=job.previous.long())
            work = self._index.renewal(job.rows, num_iterations=job.num_iterations, **previous)
        self._job, work = job, partial(self._timed, work)
        if self.schedule.is_async:
            self._pool = self._pool or ThreadPoolExecutor(1, 'class-index')
            if self.store.device.type == 'cuda':
                # Beside the training's: on one stream with it, each would wait for the other.
                self._stream = self._stream or torch.cuda.Stream(self.store.device)
                work = on_stream(self._stream, work)
            self._coming = self._pool.submit(work)
            return
        self._coming = Future()
        try:
            self._coming.set_result(work())
        except Exception as error:  # to be raised where a thread's would be
            self._coming.set_exception(error)

    def _timed(self, work: Callable[[], object]):
        start = time.perf_counter()
        index = work()
        self.seconds['build'] += time.perf_counter() - start
        return index

    def _swap_if_due(self, step: int) -> None:
        if self._coming is None or step < self._job.use_step:
            return
        start, job, coming = time.perf_counter(), self._job, self._coming
        self._coming = self._job = None
        self._take(self._agreed(coming.result), job.rows, job.begun_step)
        self.seconds['wait'] += time.perf_counter() - start
        if self._touched:  # since the snapshot
            self._update(torch.cat(self._touched).unique())
            self._touched = []

    def _agreed(self, work: Callable[[], object]):
        """The result of ``work``, or on every rank the error that it had on one of them."""
        index = fault = None
        try:
            index = work()
        except VisionError as error:
            fault = error
        except Exception as error:
            fault = VisionError('VIS-RUN-1056', 'the index over the class rows could not be built',
                                where='selector', why=f'{type(error).__name__}: {error}',
                                do='free memory, or take a smaller index (code, num_lists)')
            fault.__cause__ = error
        raise_together(fault, self.store.group, self.store.device)
        return index

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
        values = self.store.peek(rows)
        is_finite = values.isfinite().all(1)  # others stop the next renewal, on all ranks
        self._index.update(rows[is_finite.to(rows.device)].cpu(), values[is_finite])
        self.seconds['touched'] += time.perf_counter() - start

    def _take_probe(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        ids = torch.arange(0, len(rows), max(1, len(rows) // _DRIFT_ROWS))
        return ids, rows[ids.to(rows.device)].cpu()

    def _check_loaded(self, snapshot: Tensor | None, probe: list | None,
                      coming: dict | None) -> None:
        """Refuse what another number of rows, or no run of ours, has left."""
        num_rows, dim = self.store.row_end - self.store.row_start, self.store.dim

        def is_ids(ids: object) -> bool:
            return isinstance(ids, Tensor) and ids.dtype == torch.int64 and ids.ndim == 1 and \
                (not len(ids) or 0 <= int(ids.min()) <= int(ids.max()) < num_rows)

        def is_rows(rows: object, num: int = num_rows) -> bool:
            return isinstance(rows, Tensor) and rows.shape == (num, dim) and \
                rows.is_floating_point()
        fault = ''
        if snapshot is not None and not is_rows(snapshot):
            fault = f'it was not built from ({num_rows}, {dim}) rows'
        elif probe is not None and not (len(probe) == 2 and is_ids(probe[0])
                                        and is_rows(probe[1], len(probe[0]))):
            fault = 'its sample of rows is none'
        elif coming is not None:
            wanted = {field.name for field in fields(_Job)} | {'touched'}
            previous, touched = coming.get('previous'), coming.get('touched')
            if set(coming) != wanted or not is_rows(coming['rows']) or \
                    touched is not None and not is_ids(touched) or previous is not None and not (
                        isinstance(previous, Tensor) and previous.shape == (num_rows,)
                        and is_ids(previous.long())):
                fault = f'the one under way is not of ({num_rows}, {dim}) rows'
        if fault:
            raise damaged_index(fault)
