"""Optimizers for rows of which few are stepped at a time: what the others missed is made up later.

Between two steps with a gradient a row has zero gradient, and there SGD with momentum and weight
decay is linear in (row w, momentum v). In PyTorch's form, learning rate outside the momentum,

    v <- mu v + wd w,   w <- w - lr v:   (w, v) <- A (w, v),   A = [[1 - lr wd, -lr mu], [wd, mu]]

so k missed steps are one 2x2 product, whatever the learning rates were. ``MissedSteps`` keeps
these products from each step of a window to now; bringing M rows of length d up to date costs
O(M d), without a loop over rows or steps.

Legend: M rows, d dimensions, k order of the linear map (2 for SGD with momentum, else 1).
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

from vision.common.core.errors import VisionError

# Steps after which all rows are brought up to date and the products start anew. A product for
# each step of the window is multiplied in each step (60 us for all 8192 on one core); one pass
# over all rows every 8192 steps costs less than a thousandth of them.
WINDOW = 8192
LAZY_BYTES = 1 << 24  # of state, from which on zeros cost nothing until they are written


class MissedSteps:
    """Products of the linear maps of zero-gradient steps, from each step of a window to now.

    Args:
        order: k, of the (k, k) maps.
        window: largest number of steps between two calls of ``restart``.

    Attributes:
        num_steps: steps since ``restart``; a row that is up to date is marked with this number.
    """

    def __init__(self, order: int, device: torch.device | str = 'cpu',
                 window: int = WINDOW) -> None:
        self.window = window
        eye = torch.eye(order, dtype=torch.float64, device=device)
        self._to_now = eye[:, :, None].repeat(1, 1, window + 1)
        self.num_steps, self.is_identity = 0, True

    @property
    def is_full(self) -> bool:
        """Whether the window is used up: bring all rows up to date, then ``restart``."""
        return self.num_steps == self.window

    def advance(self, matrix: list[list[float]]) -> None:
        """One more step, which maps a row without a gradient by ``matrix`` (k, k)."""
        assert not self.is_full
        order = len(matrix)
        if matrix != [[float(i == j) for j in range(order)] for i in range(order)]:
            self.is_identity = False
            now = self._to_now[:, :, :self.num_steps + 1]
            step = torch.tensor(matrix, dtype=torch.float64)
            if now.device.type == 'cuda':  # from page-locked memory nothing waits for it
                step = step.pin_memory().to(now.device, non_blocking=True)
            now.copy_((step @ now.reshape(order, -1)).view_as(now))
        self.num_steps += 1

    def factors(self, last: Tensor, dtype: torch.dtype, *, may_wait: bool = True
                ) -> Tensor | None:
        """(k, k, M) maps of rows that were up to date at steps ``last`` (M,); None: nothing to do.

        Args:
            may_wait: look whether all are up to date, which an accelerator has to be waited for.

        Raises:
            IndexError: a step that is not of this window.
        """
        if self.is_identity or may_wait and bool((last == self.num_steps).all()):
            return None
        return self._to_now.index_select(2, last).to(dtype)

    def restart(self) -> None:
        """Forget all steps: every row is up to date now and is marked with 0."""
        order = len(self._to_now)
        eye = torch.eye(order, dtype=torch.float64, device=self._to_now.device)
        self._to_now.copy_(eye[:, :, None])
        self.num_steps, self.is_identity = 0, True

    def state_dict(self) -> dict:
        """Steps so far and their products, ``to_now`` (k, k, num_steps + 1) float64 on
        the host."""
        used = self._to_now[:, :, :self.num_steps + 1].cpu()
        return dict(num_steps=self.num_steps, to_now=used.clone())

    def load_state_dict(self, state: dict) -> None:
        """Take what ``state_dict`` of the same order and no larger window gave."""
        self.restart()
        to_now = state['to_now']
        assert to_now.shape[0] == len(self._to_now) and state['num_steps'] <= self.window
        self._to_now[:, :, :to_now.shape[2]] = to_now.to(self._to_now)
        self.num_steps = state['num_steps']
        eye = torch.eye(len(to_now), dtype=torch.float64, device=to_now.device)[:, :, None]
        self.is_identity = bool((to_now == eye).all())


class LazySGD:
    """SGD with momentum and L2 weight decay, equal to dense ``torch.optim.SGD`` up to rounding.

    All rows at all times (once brought up to date) are what the dense optimizer has after the
    same steps with zero gradients for rows that were not active, for any sequence of learning
    rates: PyTorch's form, no dampening, no Nesterov.
    """

    name = 'sgd'  # moved_by: what of the state moves a row in a step without a gradient

    def __init__(self, *, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        _check('sgd', momentum=(momentum, 0, 1), weight_decay=(weight_decay, 0, math.inf))
        self.momentum, self.weight_decay = momentum, weight_decay
        self.order = 2 if momentum else 1
        self.moved_by = ('momentum',) if momentum else ()
        self.options = dict(momentum=momentum, weight_decay=weight_decay)

    def new_state(self, num: int, dim: int, like: Tensor) -> dict[str, Tensor]:
        """Zero momentum (num, dim) in the dtype and on the device of ``like``; {} without
        momentum."""
        return dict(momentum=_zeros(like, num, dim)) if self.momentum else {}

    def missed_step(self, lr: float) -> list[list[float]]:
        """The (k, k) map of a step without a gradient at this learning rate."""
        mu, wd = self.momentum, self.weight_decay
        if not mu:
            return [[1 - lr * wd]]
        return [[1 - lr * wd, -lr * mu], [wd, mu]]

    def caught_up(self, rows: Tensor, state: dict[str, Tensor], factors: Tensor) -> Tensor:
        """(M, d) rows alone, by (k, k, M) factors, as ``catch_up_`` has them; nothing changes."""
        now = rows * factors[0, 0, :, None]
        if self.momentum:
            now.addcmul_(state['momentum'], factors[0, 1, :, None])
        return now

    def catch_up_(self, rows: Tensor, state: dict[str, Tensor], factors: Tensor) -> None:
        """Apply (k, k, M) factors to rows (M, d) and their state, in place."""
        factors = factors[..., None]
        if not self.momentum:
            rows.mul_(factors[0, 0])
            return
        momentum = state['momentum']
        from_rows = rows * factors[1, 0] if self.weight_decay else None
        rows.mul_(factors[0, 0]).addcmul_(momentum, factors[0, 1])
        momentum.mul_(factors[1, 1])
        if from_rows is not None:
            momentum.add_(from_rows)

    def step(self, rows: Tensor, grad: Tensor, state: dict[str, Tensor], lr: float) -> Tensor:
        """Rows (M, d) after a step with their gradients (M, d); state changes in place."""
        if self.weight_decay:
            grad = grad.add(rows, alpha=self.weight_decay)
        if self.momentum:
            grad = state['momentum'].mul_(self.momentum).add_(grad)
        return rows.add(grad, alpha=-lr)


class LazyAdamW:
    """AdamW (arXiv:1711.05101) in which each row counts its own steps.

    Exact: a row that is active in every step is what ``torch.optim.AdamW`` gives; decoupled weight
    decay acts in every step on every row, missed ones are made up with the learning rates that
    they had. Not that of a dense AdamW: moments and step count of a row stand still while it is
    not active. Dense AdamW would let the moments decay there and move the row on by what is left
    of them; that motion is not linear in the row's state (eps under the division), and its bias
    correction counts steps in which the row had no gradient at all.
    """

    name = 'adamw'
    order = 1
    moved_by = ()

    def __init__(self, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 1e-2) -> None:
        _check('adamw', beta1=(betas[0], 0, 1), beta2=(betas[1], 0, 1), eps=(eps, 0, math.inf),
               weight_decay=(weight_decay, 0, math.inf))
        self.betas, self.eps, self.weight_decay = tuple(betas), eps, weight_decay
        self.options = dict(betas=list(betas), eps=eps, weight_decay=weight_decay)

    def new_state(self, num: int, dim: int, like: Tensor) -> dict[str, Tensor]:
        """Zero moments (num, dim) and step counts (num, 1) int32, on the device of ``like``."""
        return dict(exp_avg=_zeros(like, num, dim), exp_avg_sq=_zeros(like, num, dim),
                    count=like.new_zeros(num, 1, dtype=torch.int32))

    def missed_step(self, lr: float) -> list[list[float]]:
        """The (1, 1) map of a step without a gradient: what the weight decay leaves of a row."""
        return [[1 - lr * self.weight_decay]]

    def caught_up(self, rows: Tensor, state: dict[str, Tensor], factors: Tensor) -> Tensor:
        """(M, d) rows by (1, 1, M) factors; nothing changes."""
        return rows * factors[0, 0, :, None]

    def catch_up_(self, rows: Tensor, state: dict[str, Tensor], factors: Tensor) -> None:
        """Apply (1, 1, M) factors to rows (M, d), in place; moments and counts stand still."""
        rows.mul_(factors[0, 0, :, None])

    def step(self, rows: Tensor, grad: Tensor, state: dict[str, Tensor], lr: float) -> Tensor:
        """Rows (M, d) after a step with their gradients (M, d); moments and counts change in
        place."""
        beta1, beta2 = self.betas
        first = state['exp_avg'].lerp_(grad, 1 - beta1)
        second = state['exp_avg_sq'].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        count = state['count'].add_(1).double()
        correction1, correction2 = ((1 - beta ** count).to(rows) for beta in self.betas)
        denominator = second.sqrt().div_(correction2.sqrt()).add_(self.eps)
        decayed = rows * (1 - lr * self.weight_decay)
        return decayed.addcdiv_(first * (-lr / correction1), denominator)


class RowAdaGrad:
    """AdaGrad with one number of state per row, the sum of its mean squared gradients.

    The rule of large embedding tables (FBGEMM's row-wise AdaGrad). A row without a gradient does
    not move, so skipping it is exact; weight decay is decoupled and made up as in ``LazyAdamW``.
    """

    name = 'row_adagrad'
    order = 1
    moved_by = ()

    def __init__(self, *, eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        _check('row_adagrad', eps=(eps, 0, math.inf), weight_decay=(weight_decay, 0, math.inf))
        self.eps, self.weight_decay = eps, weight_decay
        self.options = dict(eps=eps, weight_decay=weight_decay)

    def new_state(self, num: int, dim: int, like: Tensor) -> dict[str, Tensor]:
        """Zero sums (num, 1) in the dtype and on the device of ``like``."""
        return dict(sum=_zeros(like, num, 1))

    missed_step = LazyAdamW.missed_step
    caught_up = LazyAdamW.caught_up
    catch_up_ = LazyAdamW.catch_up_

    def step(self, rows: Tensor, grad: Tensor, state: dict[str, Tensor], lr: float) -> Tensor:
        """Rows (M, d) after a step with their gradients (M, d); the sums change in place."""
        total = state['sum'].add_(grad.square().mean(1, keepdim=True))
        decayed = rows * (1 - lr * self.weight_decay)
        return decayed.addcmul_(grad, -lr / total.sqrt().add(self.eps))


OPTIMIZERS = {kind.name: kind for kind in (LazySGD, LazyAdamW, RowAdaGrad)}


def build_optimizer(type: str = 'sgd', **options) -> LazySGD | LazyAdamW | RowAdaGrad:
    """Optimizer of class rows by name: sgd, adamw or row_adagrad, with its options.

    Raises:
        VisionError: VIS-CONFIG-1027 an unknown name, VIS-CONFIG-1028 option, VIS-CONFIG-1029 a
            value out of range.
    """
    if type not in OPTIMIZERS:
        raise VisionError('VIS-CONFIG-1027', f'no optimizer {type!r} for class rows',
                          where='store.optimizer.type', do=f'take one of {", ".join(OPTIMIZERS)}')
    kind = OPTIMIZERS[type]
    known = set(kind.__init__.__kwdefaults__)
    if unknown := set(options) - known:
        raise VisionError(
            'VIS-CONFIG-1028', f'{type} has no option {sorted(unknown)[0]!r}',
            where='store.optimizer', why='the learning rate comes with each step and follows the '
            "model's: head.lr_mult scales it" if 'lr' in unknown else '',
            do=f'its options are {", ".join(sorted(known))}')
    return kind(**options)


def _zeros(like: Tensor, num: int, dim: int) -> Tensor:
    """(num, dim) zeros; large ones in host memory take a page only when something is written.

    ``torch.zeros`` writes all of it, so that rows that are never active would cost as much as the
    others; NumPy's zeros ask for pages of 2 MiB, of which one row would take a whole one.
    """
    num_bytes = num * dim * like.element_size()
    if like.device.type != 'cpu' or num_bytes < LAZY_BYTES:
        return like.new_zeros(num, dim)
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, 'MADV_NOHUGEPAGE'):  # where all memory has such pages
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=like.dtype).view(num, dim)


def _check(name: str, **values: tuple[float, float, float]) -> None:
    """Refuse values that are not in [low, high)."""
    for option, (value, low, high) in values.items():
        if not low <= value < high:
            raise VisionError('VIS-CONFIG-1029', f'{option}={value} of {name}',
                              where='store.optimizer', why=f'it must be in [{low}, {high})',
                              do='change it')
