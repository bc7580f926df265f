"""Which classes take part in a step: selectors behind one interface.

The active rows of a step are: the batch's own classes, always; the best candidates, as many as
fit; and a random share, always, which gives every class a chance however old an index is. Without
candidates the random share is all the rest (Partial FC, arXiv:2010.05222).

Candidates come from an index over an old snapshot, so its scores are not used: of each sample's
candidates those with the best logits on the live rows stay (as many of every sample), and of all
samples' together those with the most softmax mass over the batch. The paper's forest is ranked in
the same way: its first step, leaves of each sample, is the paper's (arXiv:1801.01687), the two
rankings are our choice: how often a row was met says little about how much mass it takes.
Draws depend on (seed, step) only.

With rows over several ranks each fills its part of the places from its own rows; the probabilities
that rank them are of all ranks' candidates.

Ids are of the store's local rows, 0 .. row_end - row_start - 1; labels are global.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from vision.common.core.errors import VisionError
from vision.faces.core.select.ahead import Ahead
from vision.faces.core.select.sampling import draw_outside
from vision.faces.nn.select.upkeep import IndexUpkeep
from vision.faces.nn.store.side_stream import sent

_QUERIES = 16  # ranked at once on live rows: of 50 trees, 16 have some 25,000 candidates


@dataclass(frozen=True)
class Selection:
    """Active rows of one step.

    Attributes:
        rows: (M,) sorted unique int64 local ids.
        columns: (B,) int64 position of each sample's class in ``rows``, -1 on other ranks.
        expected_counts: (M,) float32, 1 for chosen rows; for the random ones the chance that a
            row which was not chosen had to be drawn. One over it is how many rows each stands for.
        stats: figures to log.
    """

    rows: Tensor
    columns: Tensor
    expected_counts: Tensor
    stats: dict[str, float] = field(default_factory=dict)


class Selector:
    """What all have.

    Args:
        store: class rows: ``num_classes, row_start, row_end, device, group, peek, snapshot``.
        num_active: active rows over all ranks; a rank with a part of the rows takes that part
            of the number. There are more where own classes alone are more, or leave no room for
            the random share.
        random_frac: share of ``num_active`` that is drawn at random from all others, one row at
            least; 0: none.
        is_cosine: logits are cosines times ``scale``; without it, inner products.
        scale: of logits, where masses are compared.
        target: what the margin makes of the own class's cosine (B,), given it and the lengths of
            the features (B, 1): ``Margin.target``. Without it an own class leaves too little
            mass to others, and the wrong rows win. None: no margin.
        num_centres: rows of a class, one after the other, of which the nearest counts for it; a
            label is the first of them.

    Raises:
        VisionError: VIS-CONFIG-1099, ``num_active`` below 1 or ``random_frac`` outside [0, 1].
    """

    never_waits = False  # for the device, nor looks at labels
    draws_from_labels = False  # can begin when they are known, before the features are

    def __init__(self, store, *, num_active: int = 1, random_frac: float = 0.1, seed: int = 0,
                 is_cosine: bool = True, scale: float = 64.0,
                 target: Callable[[Tensor, Tensor], Tensor] | None = None,
                 num_centres: int = 1) -> None:
        if num_active < 1 or not 0 <= random_frac <= 1:
            raise VisionError('VIS-CONFIG-1099', f'selector with num_active={num_active}, '
                              f'random_frac={random_frac}', where='selector',
                              do='give at least 1 active row and a share in 0..1')
        self.store, self.seed = store, seed
        self.num_active, self.random_frac = num_active, random_frac
        self.is_cosine, self.target, self.num_centres = is_cosine, target, num_centres
        self.scale = scale if is_cosine else 1.0

    @property
    def num_local(self) -> int:
        """Class rows of this rank."""
        return self.store.row_end - self.store.row_start

    @property
    def num_places(self) -> int:
        """Active rows of this rank."""
        share = self.num_local / self.store.num_classes
        return min(self.num_local, math.ceil(self.num_active * share))

    def select(self, features: Tensor, labels: Tensor, step: int) -> Selection:
        """Choose for one batch.

        Args:
            features: (B, d) without gradient, of all ranks.
            labels: (B,) int64, of all ranks.

        Raises:
            VisionError: VIS-INPUT-1051, a label is no class of the store.
        """
        device, labels = labels.device, labels.cpu()  # a device is waited for once
        local = self.local_ids(labels)
        chosen, drawn, chance = self._active(features, labels, local, step)
        rows, places = _merged(chosen, drawn)
        counts = torch.full((len(rows),), chance)
        counts.numpy()[places] = 1
        rows = torch.from_numpy(rows)
        columns = torch.searchsorted(rows, local).where(local >= 0, -1)
        return Selection(*(sent(each, device) for each in (rows, columns, counts)),
                         stats=dict(num_active=float(len(rows))))

    def expect(self, labels: Tensor, step: int) -> None:
        """Labels (B,) of all ranks will be those of ``select`` at this step; changes no result."""

    def known_rows(self, labels: Tensor, step: int) -> Tensor:
        """(N,) sorted unique local ids on the host that ``select`` takes for labels (B,) whatever
        the features.

        For fetching them before the features are there. Own classes only where all rows take
        part: a second copy of all rows is not what a store in host memory is for.
        """
        local = self.local_ids(labels)
        return local[local >= 0].unique()

    def after_update(self, rows: Tensor, step: int) -> None:
        """The optimizer has changed these local rows (M,) at this step; nothing to do here."""

    def state_dict(self, *, is_exact: bool = True) -> dict:
        """What a run changes; numbers of the config are not among it.

        Args:
            is_exact: with what an index needs to go on bit for bit (``IndexUpkeep.state_dict``).
        """
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Go on from what ``state_dict`` of a selector of this kind gave."""

    def _active(self, features: Tensor | None, labels: Tensor, local: Tensor,
                step: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Local ids that were chosen, others that were drawn, both sorted; the chance of those."""
        raise AssertionError('a subclass says which rows are active')

    def local_ids(self, labels: Tensor) -> Tensor:
        """(B,) int64 on the host: local id of each label's row, -1 on another rank.

        Raises:
            VisionError: VIS-INPUT-1051, a label is no class of the store.
        """
        labels = labels.cpu()
        is_bad = (labels < 0) | (labels >= self.store.num_classes)
        if is_bad.any():
            raise VisionError('VIS-INPUT-1051', f'{int(is_bad.sum())} of {len(labels)} labels are '
                              f'no class, the first is {int(labels[is_bad][0])}',
                              where='labels', why='the store has classes 0 to '
                              f'{self.store.num_classes - 1}', do='check the label files')
        local = labels - self.store.row_start
        return local.where((local >= 0) & (local < self.num_local), -1)


class FullSelector(Selector):
    """All rows."""

    def select(self, features: Tensor, labels: Tensor, step: int) -> Selection:
        """As ``Selector.select``, made where the labels are: features (B, d) do not count."""
        rows = torch.arange(self.num_local, device=labels.device)
        counts = torch.ones(self.num_local, device=labels.device)
        return Selection(rows, sent(self.local_ids(labels), labels.device), counts,
                         stats=dict(num_active=float(self.num_local)))


class RandomSelector(Selector):
    """Own classes and random others (Partial FC). The same draw for any number of ranks."""

    draws_from_labels = True

    def __init__(self, store, **options) -> None:
        super().__init__(store, **options)
        self._drawn_ahead = Ahead(self._drawn)

    def expect(self, labels: Tensor, step: int) -> None:
        """A thread draws for labels (B,) while the backbone works."""
        self._drawn_ahead.begin(*self._key(labels, step))

    def known_rows(self, labels: Tensor, step: int) -> Tensor:
        """(N,) all active rows of labels (B,): the features do not decide here."""
        self.expect(labels, step)  # not drawn again by ``select``
        chosen, drawn, _ = self._active(None, labels, self.local_ids(labels), step)
        return torch.from_numpy(_merged(chosen, drawn)[0])

    def _active(self, features: Tensor | None, labels: Tensor, local: Tensor,
                step: int) -> tuple[np.ndarray, np.ndarray, float]:
        drawn, chance = self._drawn_ahead(*self._key(labels, step))
        return local[local >= 0].unique().numpy(), drawn, chance

    def _key(self, labels: Tensor, step: int) -> tuple[bytes, int, int]:
        return labels.cpu().unique().numpy().tobytes(), self.num_active, step

    def _drawn(self, own: bytes, num_active: int, step: int) -> tuple[np.ndarray, float]:
        """Local ids beside the own classes, sorted; how likely each was."""
        own, store = np.frombuffer(own, np.int64), self.store
        num_random = max(0, min(num_active, store.num_classes) - len(own))
        drawn = draw_outside(own, store.num_classes, num_random, self.seed, step,
                             start=store.row_start, end=store.row_end)
        return drawn - store.row_start, num_random / max(1, store.num_classes - len(own))


class CandidateSelector(Selector):
    """Own classes, the best of what ``_candidates`` proposes, and a random share."""

    def _active(self, features: Tensor | None, labels: Tensor, local: Tensor,
                step: int) -> tuple[np.ndarray, np.ndarray, float]:
        own = local[local >= 0].unique()
        own = (own[:, None] + torch.arange(self.num_centres)).flatten().numpy()
        num_random = self._num_random()
        num_best = max(0, self.num_places - num_random - len(own))
        best = self._best(features, local, own, num_best, step)
        taken = np.union1d(own, best)
        drawn = draw_outside(taken, self.num_local, max(num_random, self.num_places - len(taken)),
                             self.seed, step, self.store.row_start)
        return taken, drawn, len(drawn) / max(1, self.num_local - len(taken))

    def _num_random(self) -> int:
        return max(1, round(self.random_frac * self.num_places)) if self.random_frac else 0

    def queries(self, features: Tensor) -> Tensor:
        """Features (B, d) in float32, of unit length for cosines."""
        features = features.detach().float()
        return functional.normalize(features) if self.is_cosine else features

    def _best(self, features: Tensor, local: Tensor, own: np.ndarray, num: int,
              step: int) -> np.ndarray:
        """At most ``num`` local ids outside ``own``; every rank comes here, also for none."""
        raise AssertionError('a subclass says which candidates are best')

    def logits(self, queries: Tensor, ids: Tensor) -> Tensor:
        """(B, U) scaled logits of queries (B, d) on the rows ids (U,) as they are now."""
        rows = self.live_rows(ids)
        return (queries.to(rows) @ rows.T).mul_(self.scale)

    def live_rows(self, ids: Tensor | slice) -> Tensor:
        """(U, d) float32 rows of local ids (U,), or of a range of them, as they are now, of unit
        length for cosines; not to be changed."""
        ids = ids if isinstance(ids, slice) else ids.to(self.store.device)
        rows = self.store.peek(ids).float()
        return functional.normalize(rows) if self.is_cosine else rows

    def own_logits(self, features: Tensor, local: Tensor) -> Tensor:
        """(B,) scaled logit of each own class with its margin; -inf: on another rank.

        Args:
            features: (B, d).
            local: (B,) local id of each own class, -1 on another rank.
        """
        centres = torch.arange(self.num_centres, device=local.device)
        rows = self.live_rows((local.clamp(min=0)[:, None] + centres).flatten())
        queries = self.queries(features).to(rows)
        rows = rows.view(len(queries), self.num_centres, rows.shape[1])
        logits = (rows * queries[:, None]).sum(2).amax(1)
        if self.target is not None:
            lengths = features.detach().to(rows).norm(dim=1, keepdim=True)
            logits = self.target(logits.clamp(-1, 1) if self.is_cosine else logits, lengths)
        return (logits * self.scale).masked_fill((local < 0).to(rows.device), -torch.inf)

    def class_of(self, ids: Tensor) -> Tensor:
        """(N,) first row of the class that each row (N,) belongs to, what a label would say."""
        return ids - ids % self.num_centres

    def log_mass(self, logits: Tensor, others: Tensor) -> Tensor:
        """(U,) logarithm of the probability that each candidate takes in the batch.

        The logarithm, since small sums would become equal zeros, and rows' numbers decide.

        Args:
            logits: (B, U) of the candidates.
            others: (B, V) logits that also count: those of the own classes.
        """
        own = torch.cat([logits, others], 1).logsumexp(1)
        return (logits - log_sum_over_ranks(own, self.store.group)[:, None]).logsumexp(0)


class IndexSelector(CandidateSelector):
    """Candidates from an index that ``IndexUpkeep`` keeps near the rows.

    Args:
        overfetch: candidates kept per place, as many of each sample; above 1, their mass over
            the batch decides.
        num_searched: candidates that the index is asked for per kept one.
        nprobe: lists that the index searches per query; None: as it was built.

    Raises:
        VisionError: VIS-CONFIG-1100, ``overfetch`` or ``num_searched`` below 1.
    """

    def __init__(self, store, upkeep: IndexUpkeep, *, overfetch: float = 1.25,
                 num_searched: int = 1, nprobe: int | None = None, **options) -> None:
        super().__init__(store, **options)
        if overfetch < 1 or num_searched < 1:
            raise VisionError('VIS-CONFIG-1100', f'selector with overfetch={overfetch}, '
                              f'num_searched={num_searched}', where='selector',
                              do='give numbers >= 1')
        self.upkeep, self.overfetch, self.num_searched = upkeep, overfetch, num_searched
        self.nprobe = nprobe
        self._own = torch.empty(0, dtype=torch.int64)

    def candidates(self, queries: Tensor, num: int, step: int, least: int = 1) -> Tensor:
        """(U,) unique local ids for ``num`` places: of each query (B, d), the best that the index
        finds.

        Args:
            least: ids kept per sample at least.
        """
        kept = max(least, math.ceil(self.overfetch * num / max(1, len(queries))))
        index = self.upkeep.index(step)
        if self.nprobe is not None:
            index.set_nprobe(self.nprobe)
        found = index.search(queries, min(self.num_searched * kept, self.num_local))
        if found.shape[1] > kept:
            found = torch.cat([self._nearest(some, ids, kept) for some, ids in zip(
                queries.split(_QUERIES), found.split(_QUERIES), strict=True)])
        return found[found >= 0].unique()

    def after_update(self, rows: Tensor, step: int) -> None:
        """The optimizer has changed these local rows (M,) at this step: the index follows, the
        batch's own classes first."""
        self.upkeep.after_update(rows, step, first=self._own.to(rows.device))

    def state_dict(self, *, is_exact: bool = True) -> dict:
        """State of the index and its counters."""
        return dict(upkeep=self.upkeep.state_dict(is_exact=is_exact))

    def load_state_dict(self, state: dict) -> None:
        """Go on from what ``state_dict`` gave."""
        self.upkeep.load_state_dict(state['upkeep'])

    def _nearest(self, queries: Tensor, found: Tensor, num: int) -> Tensor:
        """(B, num) of the candidates (B, n) with the best logits on the live rows; -1: no more."""
        ids, place = found.clamp(min=0).unique(return_inverse=True)
        logits = self.logits(queries, ids)
        logits = logits.gather(1, place.to(logits.device)).cpu().masked_fill(found < 0, -torch.inf)
        best = logits.topk(num, dim=1)
        return found.gather(1, best.indices).masked_fill(best.values == -torch.inf, -1)

    def _best(self, features: Tensor, local: Tensor, own: np.ndarray, num: int,
              step: int) -> np.ndarray:
        self._own, queries = torch.from_numpy(own), self.queries(features)
        ids = self.candidates(queries, num, step).numpy()
        ids = ids[~np.isin(ids, own, assume_unique=True)] if num else ids[:0]
        if self.store.group is None and len(ids) <= num:
            return ids
        logits = self.logits(queries, torch.from_numpy(ids))
        mass = self.log_mass(logits, self.own_logits(features, local)[:, None])
        return ids if len(ids) <= num else ids[mass.topk(num).indices.cpu().numpy()]


def _merged(few: np.ndarray, many: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All of two sorted (F,), (N,) int64 that have none in common, sorted; places of ``few``."""
    places = np.searchsorted(many, few) + np.arange(len(few))
    rows = np.empty(len(few) + len(many), np.int64)
    is_free = np.ones(len(rows), np.bool_)
    is_free[places] = False
    rows[places] = few
    rows[is_free] = many
    return rows, places


def log_sum_over_ranks(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """(B,) logarithm of the sum of exp(values) over the ranks: the largest first, then the sum."""
    if group is None or not len(values):
        return values
    highest = values.clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
    highest.clamp_(min=torch.finfo(values.dtype).min)  # -inf everywhere is -inf, not NaN
    total = (values - highest).exp()
    dist.all_reduce(total, group=group)
    return highest + total.log()
