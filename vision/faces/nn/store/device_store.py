"""Class rows and their optimizer state, of which a step reads and writes the active ones only.

Legend: C classes, n rows here, M active rows, d dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from vision.common.core.errors import VisionError
from vision.faces.nn.store.lazy_optim import MissedSteps
from vision.faces.nn.store.ranks import raise_together
from vision.faces.nn.store.store_state import copy_ranges, fault_of, is_alike

CHUNK_ROWS = 8192  # of passes over all rows: 4 MB of 128 floats, so extra memory stays small


class ClassStore:
    """Rows ``row_start`` to ``row_end`` of C, each with optimizer state.

    A row that was not active is not touched; what it missed is applied when it is read. Reading
    never changes the rows, so that snapshots and checkpoints leave no trace in a run.
    Local row ids are 0 to ``row_end - row_start - 1``.

    Attributes:
        fetches_ahead: does ``prefetch`` do anything?

    Args:
        rows: (n, d) float32 or float64, taken, not copied.
        optimizer: of ``vision.faces.nn.store.lazy_optim``.
        num_classes: C.
        row_start: the class of the first row.
        group: ranks that hold the others, each in a store of its own; a step that one of them
            must refuse is refused by all.
    """

    fetches_ahead = False

    def __init__(self, rows: Tensor, optimizer, *, num_classes: int, row_start: int = 0,
                 group: dist.ProcessGroup | None = None,
                 device: torch.device | str | None = None) -> None:
        self.group = group
        self.device = rows.device if device is None else torch.device(device)
        self.num_classes, self.dim = num_classes, rows.shape[1]
        self.row_start, self.row_end = row_start, row_start + len(rows)
        self.optimizer = optimizer
        self._rows = rows
        self._state = optimizer.new_state(len(rows), self.dim, rows)
        self._last = torch.zeros(len(rows), dtype=torch.int32, device=rows.device)
        self._missed = MissedSteps(optimizer.order, self.device)
        self._pulled: tuple[Tensor, Tensor, dict[str, Tensor]] | None = None

    def pull(self, rows: Tensor, *, is_checked: bool = False) -> Tensor:
        """(M, d) rows as of now, a leaf that requires grad, on ``device``.

        Args:
            rows: (M,) int64 local ids, ascending, each once.
            is_checked: they are a selector's, which gives no others. To look at them an
                accelerator has to be waited for.

        Raises:
            VisionError: VIS-INPUT-1022, other ids.
        """
        if not is_checked and (fault := self._fault_of_rows(rows)):
            raise fault
        weights, state = self._current(rows)
        self._pulled = rows, weights, state
        return weights.detach().requires_grad_()

    def peek(self, rows: Tensor | slice) -> Tensor:
        """(M, d) rows as of now, on ``device``, to look at: without gradient or anything to push,
        of a range perhaps the store's own.

        Where the rows are there, too, nothing waits for the device.

        Args:
            rows: (M,) int64 local ids in any order, also several times, or a range of them; they
                are not checked.
        """
        weights, state, last = self._fetch(rows, self.optimizer.moved_by)
        factors = self._missed.factors(last, weights.dtype, may_wait=False)
        return weights if factors is None else self.optimizer.caught_up(weights, state, factors)

    def prefetch(self, rows: Tensor) -> None:
        """Begin to fetch rows (M,) that will be pulled; those on the device need no fetching."""

    def push(self, rows: Tensor, grad: Tensor, *, lr: float) -> None:
        """One optimizer step: these rows with their gradients, all others with zero gradients.

        Every rank pushes once a step, with no rows if it had none active. What ``pull`` gave is
        not changed. When ``rows`` is the tensor of the last pull, nothing is read again.

        Raises:
            VisionError: VIS-INPUT-1022, other ids than ``pull`` takes; VIS-INPUT-1030, gradients
                (M, d) of another shape; VIS-RUN-1026, gradients or a learning rate that are not
                finite. Nothing has changed then, on any rank, and all ranks raise it.
        """
        lr = float(lr)
        is_pulled = self._pulled is not None and self._pulled[0] is rows
        fault = self._fault_of_step(rows, grad, lr) or \
            (None if is_pulled else self._fault_of_rows(rows))
        raise_together(fault, self.group, self.device)
        if is_pulled:
            _, weights, state = self._pulled
        else:
            weights, state = self._current(rows)
        self._pulled = None
        weights = self.optimizer.step(weights, grad.detach().to(weights), state, lr)
        self._missed.advance(self.optimizer.missed_step(lr))
        self._write(rows, weights, state)
        if self._missed.is_full:
            self._catch_up_all()

    def snapshot(self, dtype: torch.dtype = torch.float16) -> Tensor:
        """(n, d) copy of all rows as of now, where the rows are kept."""
        result = torch.empty(self._rows.shape, dtype=dtype, device=self._rows.device)
        for chunk in self._chunks():
            # Training waits for this: rows are read once, their state only where it moves them.
            rows = self._rows[chunk]
            factors = self._missed.factors(self._last[chunk].to(self.device), rows.dtype)
            if factors is not None:
                state = {name: value[chunk] for name, value in self._state.items()}
                rows = self.optimizer.caught_up(rows, state, factors.to(rows.device))
            result[chunk] = rows
        return result

    def state_dict(self) -> dict:
        """Rows as they lie (not brought up to date), optimizer state and range.

        Tensors are the store's own, as with a module's state. ``class_rows`` gives the rows of
        such states as of then.
        """
        return dict(num_classes=self.num_classes, dim=self.dim, row_start=self.row_start,
                    row_end=self.row_end, rows=self._rows, last=self._last,
                    state=dict(self._state), missed=self._missed.state_dict(),
                    optimizer=dict(self.optimizer.options, type=self.optimizer.name))

    def load_state_dict(self, state: dict) -> None:
        """Take what ``state_dict`` of a store of the same range gave.

        Raises:
            VisionError: see ``load_ranges``.
        """
        self.load_ranges([state])

    def load_ranges(self, states: list[dict], *, takes_tensors: bool = False) -> None:
        """Take this store's rows out of the states of any number of ranks, in any order.

        Args:
            takes_tensors: the state of a run of one process gives its tensors to the store
                instead of being copied. Those of a memory-mapped checkpoint are then read row by
                row as they become active; what is written stays in memory, the file is not
                changed. (Files of several ranks are copied: one that another machine deletes
                would be lost under its mapping.)

        Raises:
            VisionError: VIS-CKPT-1023, they do not fit, with the reason; nothing has changed.
        """
        own = self.state_dict()
        if fault := fault_of(states, own):
            raise fault
        if takes_tensors and len(states) == 1 and is_alike(states[0], own):
            self._rows, self._last = states[0]['rows'], states[0]['last']
            self._state = dict(states[0]['state'])
        else:
            copy_ranges(states, own)
        self._missed.load_state_dict(states[0]['missed'])
        self._pulled = None

    def _current(self, rows: Tensor | slice) -> tuple[Tensor, dict[str, Tensor]]:
        """Copies of rows and state as of now, on ``device``."""
        weights, state, last = self._fetch(rows)
        if isinstance(rows, slice):
            weights, state = weights.clone(), {key: each.clone() for key, each in state.items()}
        # A row that is up to date is multiplied by one: cheaper than to wait for an accelerator.
        factors = self._missed.factors(last, weights.dtype,
                                       may_wait=self.device.type == 'cpu')
        if factors is not None:
            self.optimizer.catch_up_(weights, state, factors)
        return weights, state

    def _fetch(self, rows: Tensor | slice, names: tuple[str, ...] | None = None
               ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Rows, state (of these names only) and last steps as they lie, on ``device``: copies,
        but of a range that lies there its own."""
        return (self._gather(self._rows, rows),
                {name: self._gather(value, rows) for name, value in self._state.items()
                 if names is None or name in names},
                self._gather(self._last, rows))

    def _gather(self, tensor: Tensor, rows: Tensor | slice) -> Tensor:
        if isinstance(rows, slice):
            return tensor[rows]
        return tensor.index_select(0, rows)

    def _write(self, rows: Tensor | slice, weights: Tensor, state: dict[str, Tensor],
               num_steps: int | None = None) -> None:
        """Put rows and state that are up to date after so many steps; None: all of them."""
        _put(self._rows, rows, weights)
        for name, value in state.items():
            _put(self._state[name], rows, value)
        num_steps = self._missed.num_steps if num_steps is None else num_steps
        if isinstance(rows, slice):
            self._last[rows] = num_steps
        else:  # by an index, the number would go to the device as a tensor that is waited for
            self._last.index_fill_(0, rows, num_steps)

    def _catch_up_all(self) -> None:
        for chunk in self._chunks():
            self._write(chunk, *self._current(chunk))
        self._last.zero_()
        self._missed.restart()

    def _chunks(self) -> Iterator[slice]:
        num = len(self._rows)
        for start in range(0, num, CHUNK_ROWS):
            yield slice(start, min(start + CHUNK_ROWS, num))

    def _fault_of_step(self, rows: Tensor, grad: Tensor, lr: float) -> VisionError | None:
        if grad.shape != (len(rows), self.dim):
            return VisionError('VIS-INPUT-1030', f'gradients of shape {tuple(grad.shape)} for '
                               f'{len(rows)} rows of length {self.dim}', do='push what pull gave')
        # The sum is finite only if all are, at a tenth of the time of a test of each.
        if 0 <= lr < math.inf and math.isfinite(grad.sum()):
            return None
        num_bad = int((~grad.isfinite()).any(1).sum())
        if 0 <= lr < math.inf and not num_bad:
            return None  # finite numbers whose sum is not
        return VisionError('VIS-RUN-1026', f'a step with learning rate {lr} and {num_bad} of '
                           f'{len(rows)} gradients not finite', where=f'rows of classes '
                           f'{self.row_start} to {self.row_end - 1}', why='the rows would be '
                           'lost; they are as before', do='lower the learning rate or the '
                           'scale of the margin, or leave such steps out (NonFiniteHook)')

    def _fault_of_rows(self, rows: Tensor) -> VisionError | None:
        fault = ''
        if rows.dtype != torch.int64 or rows.dim() != 1:
            fault = f'{rows.dtype} of shape {tuple(rows.shape)}: int64 of shape (M,) wanted'
        elif len(rows) and not bool((rows[1:] > rows[:-1]).all()):
            fault = 'they are not ascending, each once'
        elif len(rows) and (int(rows[0]) < 0 or int(rows[-1]) >= len(self._rows)):
            fault = f'{int(rows[0])} to {int(rows[-1])} of {len(self._rows)} local rows'
        if not fault:
            return None
        return VisionError('VIS-INPUT-1022', f'row ids that cannot be used: {fault}',
                           why=f'this store has classes {self.row_start} to '
                           f'{self.row_end - 1} as rows 0 to {len(self._rows) - 1}',
                           do='subtract row_start, and use torch.unique')


def _put(tensor: Tensor, rows: Tensor | slice, values: Tensor) -> None:
    """tensor[rows] = values."""
    if isinstance(rows, slice) or tensor.device.type != 'cpu':
        tensor[rows] = values
    else:
        # index_copy_ takes 1.7 times as long for 10,000 of a million rows of 128 (one core).
        tensor.numpy()[rows.numpy()] = values.numpy()
