"""Softmax cross-entropy over active classes only, in one process or with rows over many ranks.

Legend: B samples (of all ranks), M active classes on this rank, K sub-centres, d dimensions.

What it leaves out is known exactly. With q the full softmax's mass of a sample outside the active
set: loss over all - loss over active = -log(1 - q), and the gradients with respect to a feature
differ by q (mean of outside rows - mean of inside rows), both means weighted by the probabilities
and taken times the scale: at most 2 q scale max|row|. ``tests/faces/test_nn_selective.py`` says
the same in code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from vision.common.core.errors import VisionError
from vision.faces.nn.head.margins import Margin, Softmax

SMALLEST_NORM = 1e-12  # below it a vector has no direction
HALF_EXPONENT = 15  # sums in float16 stay below 2 ** 15; its largest number is nearly 2 ** 16
HALF_RANGE = 100  # of exponents, so that factors and what they leave are float32


@dataclass(frozen=True)
class SelectiveLoss:
    """Result of ``selective_loss``.

    Attributes:
        loss: mean over all samples, scalar; the same on every rank.
        target_probability: (B,) softmax probability of the own class among active ones, with
            margin; no gradient.
        log_normaliser: (B,) log of the sum of exponentiated logits over active classes.
    """

    loss: Tensor
    target_probability: Tensor
    log_normaliser: Tensor


def selective_loss(features: Tensor, rows: Tensor, columns: Tensor, margin: Margin, *,
                   is_cosine: bool = True, num_subcentres: int = 1, correction: str = 'none',
                   expected_counts: Tensor | None = None, matmul_dtype: torch.dtype | None = None,
                   group: dist.ProcessGroup | None = None) -> SelectiveLoss:
    """Cross-entropy of B samples over M active classes; differentiable in features and rows.

    Softmax and margins run in float32 (float64 for float64 input) under any autocast. Gradients
    are worked out together with the loss, in the one (B, M) buffer that the logits need.

    Args:
        features: (B, d), of all ranks with ``group`` (``vision.faces.nn.head.gather``).
        rows: (M * K, d) weights of the active classes of this rank, the K centres of a class one
            after the other (sub-centre ArcFace: the nearest of them counts).
        columns: (B,) int64 position of each sample's class among the M, -1 when another rank has
            it. A class that no rank has makes the loss NaN: no step is taken on it.
        is_cosine: normalise both sides; without it logits are inner products and only
            ``Softmax`` fits.
        correction: 'none': the active set is all there is, a biased truncation, small when the
            active set holds nearly all the mass. 'sampled': subtract log(expected count) from
            logits, which makes the sum over a random active set an unbiased estimate of the sum
            over all classes.
        expected_counts: (M,) probability of each active class to have been drawn (1 for classes
            that were forced in), for 'sampled'.
        matmul_dtype: float16 or bfloat16 for the three matrix products; default as the softmax.
        group: ranks that hold the other rows.

    Raises:
        VisionError: VIS-CONFIG-1003, options that contradict each other.
    """
    _check(margin, is_cosine, correction, expected_counts)
    with torch.autocast(features.device.type, enabled=False):
        features, rows = _at_least_float32(features), _at_least_float32(rows)
        norms = features.detach().norm(dim=1, keepdim=True) if margin.needs_norms else None
        log_counts = None if expected_counts is None else expected_counts.to(features).log()
        softmax = _Softmax(columns, norms, margin, is_cosine, num_subcentres, log_counts,
                           matmul_dtype, group)
        return SelectiveLoss(*_Selective.apply(features, rows, softmax))


@dataclass(frozen=True)
class _Softmax:
    """Everything of one call but features and rows."""

    columns: Tensor
    norms: Tensor | None
    margin: Margin
    is_cosine: bool
    num_subcentres: int
    log_counts: Tensor | None
    matmul_dtype: torch.dtype | None
    group: dist.ProcessGroup | None

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        if self.matmul_dtype is None:
            return a @ b
        return (a.to(self.matmul_dtype) @ b.to(self.matmul_dtype)).to(a.dtype)

    def gradient_product(self, a: Tensor, b: Tensor) -> Tensor:
        """``product`` of gradients ``a``, of which most are many times smaller than a few.

        In float16 a number below 6e-5 loses digits and one below 3e-8 is 0: the negatives of a
        softmax. Each row of ``a`` is therefore taken times a power of two, which brings the bound
        of its products near the largest float16, and the result is divided by it in float32.
        """
        if self.matmul_dtype is not torch.float16:
            return self.product(a, b)
        bound = torch.linalg.vector_norm(a, 1, dim=1, keepdim=True) * b.abs().amax().clamp(min=1)
        exponent = (HALF_EXPONENT - torch.frexp(bound).exponent).clamp(-HALF_RANGE, HALF_RANGE)
        factor = torch.ldexp(torch.ones_like(bound), exponent)
        scaled = torch.mul(a, factor, out=torch.empty_like(a, dtype=self.matmul_dtype))
        return (scaled @ b.to(self.matmul_dtype)).to(a.dtype) / factor

    def over_ranks(self, tensor: Tensor, operation=dist.ReduceOp.SUM) -> Tensor:
        if self.group is not None:
            dist.all_reduce(tensor, operation, group=self.group)
        return tensor

    def own(self, matrix: Tensor) -> Tensor:
        """(B, M) -> (B,) entries of the own classes, 0 where another rank has them."""
        if matrix.shape[1] == 0:
            return matrix.new_zeros(len(matrix))
        entries = matrix.gather(1, self.columns.clamp(min=0)[:, None]).squeeze(1)
        return entries.where(self.columns >= 0, 0)

    def put_own(self, matrix: Tensor, entries: Tensor) -> None:
        if matrix.shape[1] == 0:
            return
        column = self.columns.clamp(min=0)[:, None]
        kept = matrix.gather(1, column)
        matrix.scatter_(1, column, entries[:, None].where(self.columns[:, None] >= 0, kept))


class _Selective(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, softmax: _Softmax) -> tuple[Tensor, Tensor, Tensor]:
        (x, x_inverse), (w, w_inverse) = (_unit(side, softmax.is_cosine) for side in (x, w))
        cosine, nearest = _cosines(x, w, softmax)
        loss, probability, normaliser, gradient = _loss_and_gradient(cosine, softmax)
        needs_x, needs_w, _ = ctx.needs_input_grad
        if needs_x or needs_w:
            gradient = _to_centres(gradient, nearest, softmax.num_subcentres)
        for_x = softmax.gradient_product(gradient, w) if needs_x else None
        for_w = softmax.gradient_product(gradient.T, x) if needs_w else None
        ctx.save_for_backward(_through_unit(for_x, x, x_inverse),
                              _through_unit(for_w, w, w_inverse))
        ctx.mark_non_differentiable(probability, normaliser)
        return loss, probability, normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx, factor: Tensor, *_):
        for_x, for_w = ctx.saved_tensors
        return (None if for_x is None else for_x * factor,
                None if for_w is None else for_w * factor, None)


def _unit(vectors: Tensor, is_cosine: bool) -> tuple[Tensor, Tensor | None]:
    """Rows of length one and one over their length; a zero row stays and gets no gradient.

    By hand, because autograd's way back through a division takes a quarter of the whole step.
    """
    if not is_cosine:
        return vectors, None
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    inverse = torch.where(norms > SMALLEST_NORM, norms.reciprocal(), 0.0)
    return vectors * inverse, inverse


def _through_unit(gradient: Tensor | None, unit: Tensor, inverse: Tensor | None) -> Tensor | None:
    """Gradient of the unit rows -> of the rows: what lies along them is taken out."""
    if gradient is None or inverse is None:
        return gradient
    along = (gradient * unit).sum(1, keepdim=True)
    return gradient.addcmul_(unit, along, value=-1).mul_(inverse)


def _cosines(x: Tensor, w: Tensor, softmax: _Softmax) -> tuple[Tensor, Tensor | None]:
    """(B, M) and, with several centres, the index (B, M) of the nearest one."""
    cosine = softmax.product(x, w.T)
    if softmax.num_subcentres == 1:
        return cosine, None
    values, nearest = cosine.view(len(x), -1, softmax.num_subcentres).max(2)
    return values, nearest


def _to_centres(gradient: Tensor, nearest: Tensor | None, num_subcentres: int) -> Tensor:
    if nearest is None:
        return gradient
    spread = gradient.new_zeros(*gradient.shape, num_subcentres)
    return spread.scatter_(2, nearest[..., None], gradient[..., None]).flatten(1)


def _loss_and_gradient(cosine: Tensor, softmax: _Softmax
                       ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean loss, probability (B,), log normaliser (B,) and d loss / d cosine, in its memory."""
    margin, num = softmax.margin, len(cosine)
    own = softmax.own(cosine)
    own_anywhere = softmax.over_ranks(own.clone()) if margin.needs_target_cosine else own
    if margin.training:
        margin.observe(own_anywhere, softmax.norms)
    target, slope = _value_and_slope(margin, own, softmax.norms)
    slopes = margin.negatives_(cosine, own_anywhere[:, None])
    softmax.put_own(cosine, target)
    logits = cosine.mul_(margin.scale)
    if softmax.log_counts is not None:
        logits.sub_(softmax.log_counts)
    own_logit = softmax.own(logits)
    highest = logits.amax(1) if logits.shape[1] else logits.new_full((num,), -torch.inf)
    highest = softmax.over_ranks(highest, dist.ReduceOp.MAX)
    powers = logits.sub_(highest[:, None]).exp_()
    # One message: the normaliser, the own logit, and how many ranks have the own class.
    sums = softmax.over_ranks(torch.stack([
        powers.sum(1), own_logit, (softmax.columns >= 0).to(own_logit.dtype)]))
    normaliser = highest + sums[0].log()
    losses = torch.where(sums[2] == 1, normaliser - sums[1], torch.nan)
    probability = (-losses).exp()
    factor = margin.scale / num
    gradient = powers.mul_((factor / sums[0])[:, None])
    if slopes is not None:
        gradient.mul_(slopes)
    softmax.put_own(gradient, (probability - 1) * slope * factor)
    return losses.mean(), probability, normaliser, gradient


def _value_and_slope(margin: Margin, own: Tensor, norms: Tensor | None) -> tuple[Tensor, Tensor]:
    """The margin on B numbers, with its slope by autograd: exact for every margin."""
    with torch.enable_grad():
        variable = own.detach().clone().requires_grad_()
        value = margin.target(variable, norms)
        slope, = torch.autograd.grad(value.sum(), variable)
    return value.detach(), slope


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check(margin: Margin, is_cosine: bool, correction: str, counts: Tensor | None) -> None:
    fault = ''
    if not is_cosine and (type(margin) is not Softmax or margin.filter_above is not None):
        fault = f'is_cosine=False with {type(margin).__name__}: margins are made for cosines'
    elif correction not in ('none', 'sampled'):
        fault = f'correction={correction!r}: it is "none" or "sampled"'
    elif (correction == 'sampled') != (counts is not None):
        fault = f'correction={correction!r} {"with" if counts is not None else "without"} ' \
                'expected_counts: they belong to "sampled"'
    if fault:
        raise wrong_head(fault, where='head')


def wrong_head(fault: str, *, where: str) -> VisionError:
    """VIS-CONFIG-1003: options of the face head that do not go together."""
    return VisionError('VIS-CONFIG-1003', fault, where=where,
                       do='see vision/faces/README.md, the head')
