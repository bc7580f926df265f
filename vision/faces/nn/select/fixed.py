"""Selection that never waits for the device: every shape of a step is known beforehand.

A wait costs the host the lead that it has over an accelerator, so nothing here looks at a value on
the host or makes a tensor whose size depends on one. The number of active rows is therefore fixed:
``num_active``'s part, or own classes and the random share of the largest batch where that is more;
fewer own classes leave more to candidates or draws.

Legend: B samples, n rows here, T active rows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vision.faces.core.select.ahead import Ahead
from vision.faces.core.select.sampling import draw_outside
from vision.faces.nn.select.selectors import CandidateSelector, Selection
from vision.faces.nn.store.side_stream import sent


class FixedShapeSelector(CandidateSelector):
    """Own classes, the best others, and random ones, on the device of the rows.

    Labels are not checked: that would wait for them. Draws depend on seed, step and numbers of
    rows only, so a thread makes those of the next step while the device works.
    """

    never_waits = True

    def __init__(self, store, **options) -> None:
        super().__init__(store, **options)
        self._drawn_ahead = Ahead(self._drawn)

    def select(self, features: Tensor, labels: Tensor, step: int) -> Selection:
        """As ``Selector.select`` of features (B, d) and labels (B,)."""
        store = self.store
        features, labels = features.detach().to(store.device), labels.to(store.device)
        local = labels - store.row_start
        local = local.where((local >= 0) & (local < self.num_local), -1)
        num_random = self._num_random()
        num_own = min(len(labels) * self.own_centres, self.num_local)
        total = min(self.num_local, max(self.num_places, num_own + num_random))
        rows, counts = self._chosen(features, local, total, total - num_random, step)
        rows, order = rows.sort()
        columns = torch.searchsorted(rows, local.clamp(min=0)).where(local >= 0, -1)
        return Selection(rows, columns, counts[order], stats=dict(num_active=float(total)))

    @property
    def own_centres(self) -> int:
        """Rows of an own class that are active for certain."""
        return 1

    def _chosen(self, features: Tensor, local: Tensor, total: int, num: int, step: int
                ) -> tuple[Tensor, Tensor]:
        """``total`` different local ids in any order, of which ``num`` are chosen ones as far as
        there are any; their expected counts, float32."""
        raise AssertionError('a subclass says which rows are active')

    def draws(self, num_rows: int, num: int, step: int) -> Tensor:
        """(num,) of ``_drawn`` on the device; begins those of the next step, too."""
        key = num_rows, num
        drawn = sent(torch.from_numpy(self._drawn_ahead(*key, step)), self.store.device)
        self._drawn_ahead.begin(*key, step + 1)
        return drawn

    def _drawn(self, num_rows: int, num: int, step: int) -> np.ndarray:
        """(num,) sorted different ones of ``num_rows``, uniformly."""
        return draw_outside(np.empty(0, np.int64), num_rows, num, *self._words(step))

    def _words(self, step: int) -> tuple[int, ...]:
        return self.seed, step, self.store.row_start
