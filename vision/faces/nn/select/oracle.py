"""The rows with the most softmax mass, found with all logits and without waiting for the device.

Probabilities are never written down: of E = exp(logits), (B, n), the sums of its rows give one
over the normalisers, and with these one product of a matrix and a vector gives every class row's
sum. With cosines up to a scale of 64 float32 holds E as it is, so no maximum is looked for.

What a step moves, each number written or read once, for B = 1024 samples, n = 1,000,000 rows of d
= 512 and SGD with momentum (float32):

  rows as of now    by two operators on three          10 GB
  unit rows         read for the length, read, write    6 GB
  product           read rows, write E                  6 GB   1.07 TFLOP
  exp in place      read, write                         8 GB
  two sums          read, read                          8 GB

38 GB are 9.5 ms at 4 TB/s; the product's 1.07 TFLOP, 2.7 ms at 400 TFLOP/s (TF32), in part hide
among them. The full softmax's step has three such products, and writes all rows and momenta.
Where E is too large to be kept, rows and products are worked out twice.

Legend: B samples, d dimensions, n rows here, K rows of a class.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from vision.faces.nn.select.fixed import FixedShapeSelector

KEPT_BYTES = 1 << 32  # E up to this size is kept
CHUNK_BYTES = 1 << 28  # of E, or of rows, at once: some ten calls for each of 16 chunks of 4 GB
# exp(64) summed over any number of rows, and exp(-64), are float32 with all their digits.
_WIDEST_SCALE = 64.0
# One over a normaliser is taken times this, so that a probability down to 1e-47 keeps its rank.
_UNIT = 2.0**32


class OracleSelector(FixedShapeSelector):
    """The exact best: rows with the largest softmax mass over the batch (all logits needed).

    What a set captures is a sum over its rows, so the largest column sums of the probabilities
    are the optimum. Products are in float32, or TF32 where torch is set so
    (``torch.set_float32_matmul_precision``), whatever the head's ``matmul_dtype``: half precision
    would round logits by some 0.1.
    """

    @property
    def own_centres(self) -> int:
        """All rows of an own class are active."""
        return self.num_centres

    def _chosen(self, features: Tensor, local: Tensor, total: int, num: int, step: int
                ) -> tuple[Tensor, Tensor]:
        best = self._worth(features, local).topk(num, sorted=False).indices.sort().values
        num_free, num_random = self.num_local - num, total - num
        drawn = self.draws(num_free, num_random, step)
        # The r-th row that was not chosen is r plus the number of chosen ones before it.
        before = torch.arange(num, device=best.device)
        drawn = drawn + torch.searchsorted(best - before, drawn, right=True)
        counts = torch.ones(total, device=best.device)
        counts[num:] = num_random / max(1, num_free)
        return torch.cat([best, drawn]), counts

    def _worth(self, features: Tensor, local: Tensor) -> Tensor:
        """(n,) sums of probabilities in some unit; inf: own classes."""
        queries, group = self.queries(features) * self.scale, self.store.group
        own = self.own_logits(features, local).double()
        is_bounded = self.is_cosine and self.scale <= _WIDEST_SCALE
        highest = None if is_bounded else self._highest(queries)
        sums = (own if highest is None else own - highest).exp()
        keeps = (4 if is_bounded else 8) * len(local) * self.num_local <= KEPT_BYTES
        kept = []
        for part in self._parts(len(local)):
            powers = self._powers(queries, part, local, highest)
            sums += powers.sum(1)
            kept += [powers] if keeps else []
        if group is not None:
            dist.all_reduce(sums, group=group)
        weights = (_UNIT / sums).to(torch.float32 if is_bounded else torch.float64)
        worth = weights.new_empty(self.num_local + 1)
        for number, part in enumerate(self._parts(len(local))):
            powers = kept[number] if keeps else self._powers(queries, part, local, highest)
            torch.mv(powers.T, weights, out=worth[part])
        # Features that are not finite (a step that will be left out) must not hide own classes.
        worth.nan_to_num_(posinf=0.0)
        centres = torch.arange(self.num_centres, device=local.device)
        rows = (local[:, None] + centres).where(local[:, None] >= 0, self.num_local)
        return worth.index_fill_(0, rows.flatten(), torch.inf)[:-1]

    def _parts(self, num_samples: int) -> Iterator[slice]:
        """Ranges of local rows that are looked at together."""
        width = max(1, CHUNK_BYTES // (4 * max(num_samples, self.store.dim)))
        for start in range(0, self.num_local, width):
            yield slice(start, min(start + width, self.num_local))

    def _powers(self, queries: Tensor, part: slice, local: Tensor, highest: Tensor | None
                ) -> Tensor:
        """(B, U) exp of the logits of these rows, less the highest of each sample; 0 where a row
        is of the sample's own class, which counts with its margin."""
        powers = queries @ self.live_rows(part).T
        if highest is not None:
            powers = powers.double().sub_(highest[:, None])
        powers.exp_()
        local = local.where(local >= 0, -self.num_centres)[:, None]  # no centre is in any part
        for centre in range(self.num_centres):
            wanted = local + (centre - part.start)
            column = wanted.clamp(0, powers.shape[1] - 1)
            own = powers.gather(1, column).masked_fill(column == wanted, 0)
            powers.scatter_(1, column, own)
        return powers

    def _highest(self, queries: Tensor) -> Tensor:
        """(B,) float64 highest logit of each sample, over all rows of all ranks."""
        highest = queries.new_full((len(queries),), torch.finfo(torch.float32).min)
        for part in self._parts(len(queries)):
            highest = highest.maximum((queries @ self.live_rows(part).T).amax(1))
        if self.store.group is not None:
            dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.store.group)
        return highest.double()
