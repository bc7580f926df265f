"""The paper's hashing forest behind the interface of ``ClassIndex``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vision.faces.core.select.forest import build_forest


class ForestIndex:
    """Trees over a snapshot of the rows (arXiv:1801.01687, section on the hashing forest).

    Candidates of a query are the rows of its leaves. The forest does not rank them: the selector
    does, by their live rows. A refresh builds new trees: planes between old rows say nothing
    about where rows have moved.

    Args:
        rows: (C, d) of any floating type.
        num_trees: 50 in the paper's released code.
        leaf_size: rows of a leaf at most (our choice: 64; a query looks at up to 50 times 64).
    """

    can_update = False
    keeps_lists = False  # a checkpoint has the rows that it was grown from

    def __init__(self, rows: Tensor, *, num_trees: int = 50, leaf_size: int = 64, seed: int = 0,
                 is_cosine: bool = True) -> None:
        self.options = dict(num_trees=num_trees, leaf_size=leaf_size, seed=seed,
                            is_cosine=is_cosine)
        self.num_rows, self.is_cosine = len(rows), is_cosine
        self.forest = build_forest(self._array(rows), num_trees=num_trees, leaf_size=leaf_size,
                                   seed=seed)

    @property
    def num_bytes(self) -> int:
        """Memory of planes, children and leaves."""
        return self.forest.num_bytes

    def search(self, queries: Tensor, num: int) -> Tensor:
        """(B, n) int64 rows of the leaves of queries (B, d), in no order of nearness; -1: no more.

        All of them, whatever ``num``.
        """
        return torch.from_numpy(self.forest.candidates(self._array(queries))).long()

    def renewal(self, rows: Tensor, *, num_iterations: int = 0) -> Callable[[], ForestIndex]:
        """Work that grows new trees over rows (C, d); there is nothing that iterations
        could move."""
        return partial(ForestIndex, rows, **self.options | dict(seed=self.options['seed'] + 1))

    def imbalance(self) -> float:
        """1 always: leaves have no more than ``leaf_size`` rows, so all searches cost about the
        same."""
        return 1.0

    def state_dict(self) -> dict:
        """Kind and seed: trees are grown again from the rows."""
        return dict(kind='forest', seed=self.options['seed'])

    def _array(self, rows: Tensor) -> np.ndarray:
        rows = rows.detach().cpu().float()
        return (functional.normalize(rows) if self.is_cosine else rows).numpy()
