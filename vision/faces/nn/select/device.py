"""Selection from lists of near rows beside the rows, which never waits for the device.

What that changes against ``IndexSelector``, beside the fixed number of active rows (``fixed``; all
our design):

- a candidate's probabilities are summed over the samples that proposed it, not over all: where it
  is nobody's near row, it has hardly any;
- sums are of whole numbers, so that their order, which a device chooses anew each time, changes no
  bit; equal sums are ordered by the highest probability.

Legend: B samples, k candidates of each, n rows here, T active rows.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vision.common.core.errors import VisionError
from vision.faces.nn.select.fixed import FixedShapeSelector
from vision.faces.nn.select.selectors import log_sum_over_ranks
from vision.faces.nn.select.upkeep import IndexUpkeep

# A worth is a sum of probabilities in units of 2^-28, then the logarithm of the highest of them
# in 2^20 steps: 62 bits with 16,384 samples.
_SUM_BITS, _HIGHEST_BITS = 28, 20
_MOST_SAMPLES = 1 << 14
_LOWEST = -200.0  # logarithm of a probability, below which all are equally small
_OWN = torch.iinfo(torch.int64).max


class DeviceSelector(FixedShapeSelector):
    """Own classes, the best of each sample's candidates, and random others, on the device.

    Args:
        store: its rows are on the device (``backend='device'``).
        upkeep: of an index with ``propose_scored(queries (B, d), rows, *, nprobe, num)`` -> ids,
            scores (B, num): ``rows(ids)`` gives live unit rows; id -1: no more.
        overfetch: candidates of all samples together per place.
        nprobe: lists searched for each sample.

    Raises:
        VisionError: VIS-CONFIG-1098, ``overfetch`` below 1; VIS-CONFIG-1057, a store or logits
            that this selector cannot work with.
    """

    def __init__(self, store, upkeep: IndexUpkeep, *, overfetch: float = 1.25, nprobe: int = 16,
                 **options) -> None:
        super().__init__(store, **options)
        if overfetch < 1:
            raise VisionError('VIS-CONFIG-1098', f'selector with overfetch={overfetch}',
                              where='selector', do='give a number >= 1')
        if getattr(store, 'fetches_ahead', False) or not self.is_cosine:
            raise VisionError('VIS-CONFIG-1057', 'a selector on the device with '
                              + ('inner products' if not self.is_cosine else
                                 'rows in host memory'), where='selector',
                              why='its lists are of unit rows beside them',
                              do="take selector type='ivf'")
        self.upkeep, self.overfetch, self.nprobe = upkeep, overfetch, nprobe

    def after_update(self, rows: Tensor, step: int) -> None:
        """The optimizer has changed these local rows (M,) at this step; the index is renewed when
        it is due."""
        self.upkeep.after_update(rows, step)

    def state_dict(self, *, is_exact: bool = True) -> dict:
        """State of the index and its counters."""
        return dict(upkeep=self.upkeep.state_dict(is_exact=is_exact))

    def load_state_dict(self, state: dict) -> None:
        """Go on from what ``state_dict`` gave."""
        self.upkeep.load_state_dict(state['upkeep'])

    def _chosen(self, features: Tensor, local: Tensor, total: int, num: int, step: int
                ) -> tuple[Tensor, Tensor]:
        index = self.upkeep.index(step)
        return self._with_draws(self._worth(index, features, local, num), total, num, step)

    def _worth(self, index, features: Tensor, local: Tensor, num: int) -> Tensor:
        """(n,) int64 by which rows are chosen: own classes most, rows that nobody proposes 0."""
        assert len(local) <= _MOST_SAMPLES
        worth = torch.zeros(self.num_local + 1, dtype=torch.int64, device=local.device)
        if len(local):
            per_sample = math.ceil(self.overfetch * num / len(local))
            ids, scores = index.propose_scored(
                self.queries(features), self.live_rows, nprobe=self.nprobe,
                num=min(per_sample, self.num_local))
            is_other = (ids >= 0) & (self.class_of(ids) != local[:, None])
            logits = (scores * self.scale).masked_fill(~is_other, -torch.inf)
            every = torch.cat([logits, self.own_logits(features, local)[:, None]], 1)
            normaliser = log_sum_over_ranks(every.logsumexp(1), self.store.group)
            logs = (logits - normaliser[:, None]).flatten()
            slots = ids.where(is_other, self.num_local).flatten()
            amounts = (logs.double().exp() * (1 << _SUM_BITS)).round().long()
            steps = (logs.double().clamp(min=_LOWEST) / -_LOWEST + 1) * ((1 << _HIGHEST_BITS) - 2)
            highest = torch.zeros_like(worth).scatter_reduce_(0, slots, steps.long() + 1, 'amax')
            worth.scatter_add_(0, slots, amounts).bitwise_left_shift_(_HIGHEST_BITS).add_(highest)
            worth.scatter_(0, local.where(local >= 0, self.num_local), _OWN)
        return worth[:-1]

    def _with_draws(self, worth: Tensor, total: int, num: int, step: int
                    ) -> tuple[Tensor, Tensor]:
        """(T,) the ``num`` rows of most worth and random others in place of those without any;
        (T,) float32 expected counts."""
        values, best = worth.topk(num)
        is_chosen = values > 0
        drawn = self.draws(self.num_local, total, step)
        is_taken = torch.zeros(self.num_local + 1, dtype=torch.bool, device=worth.device)
        # One value everywhere: the order of writes does not matter.
        is_taken.scatter_(0, best.where(is_chosen, self.num_local), True)
        # All that were chosen, then the draws in their order until there are enough.
        in_order = torch.arange(total, 0, -1, device=worth.device)
        priority = torch.cat([is_chosen * (2 * total), in_order * ~is_taken.gather(0, drawn)])
        place = priority.topk(total).indices
        num_chosen = is_chosen.sum()
        chance = (total - num_chosen) / (self.num_local - num_chosen).clamp(min=1)
        return (torch.cat([best, drawn]).gather(0, place),
                torch.where(place < num, 1.0, chance.float()))

    def _drawn(self, num_rows: int, num: int, step: int) -> np.ndarray:
        """In random order: the first that are not taken are a uniform draw of the others."""
        drawn = super()._drawn(num_rows, num, step)
        return np.random.default_rng([*self._words(step), 2]).permutation(drawn)
