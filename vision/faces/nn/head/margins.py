"""Margins on the target's cosine, with exact gradients.

A margin turns cosines (B, M) of B samples and M classes into logits. ``target`` changes the entry
of a sample's own class, ``negatives`` the others (most margins leave them), then everything is
multiplied by ``scale``. Both are plain torch operations, so that autograd gives their exact
slopes: sin(m1 theta + m2) m1 / sin(theta) for angular margins, where common code that computes
the angle without tracking gradients has 1. Half precision input is computed in float32; nothing
waits for the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vision.common.core.errors import VisionError

BEYOND = ('continuous', 'shift', 'easy', 'raw')


class Margin(nn.Module):
    """Base: no margin at all.

    Args:
        scale: factor from cosine to logit (1 / temperature), > 0.
        filter_above: negatives with a cosine above it count as cosine 0 and get no gradient: on
            noisy data they are likely the same person under another label (the filter of
            Partial FC v2, arXiv:2203.15565). None: off.

    Raises:
        VisionError: VIS-CONFIG-1001, a value that makes no sense.
    """

    needs_target_cosine = False  # does ``negatives`` look at the target's cosine?
    needs_norms = False

    def __init__(self, scale: float = 1.0, *, filter_above: float | None = None) -> None:
        super().__init__()
        _require(scale > 0, self, f'scale={scale}', 'scale > 0')
        _require(filter_above is None or 0 < filter_above < 1, self,
                 f'filter_above={filter_above}', 'a cosine between 0 and 1, or None')
        self.scale, self.filter_above = float(scale), filter_above

    def forward(self, cosine: Tensor, target_column: Tensor, norms: Tensor | None = None,
                target_cosine: Tensor | None = None) -> Tensor:
        """Logits (B, M), scale included.

        Args:
            cosine: (B, M).
            target_column: (B,) int64 column of each sample's class, -1 where it is not among
                these columns (it is on another rank).
            norms: (B, 1) lengths of the features before normalisation (AdaFace).
            target_cosine: (B,) cosines of the targets, wherever they are; taken from ``cosine``
                when not given.
        """
        if cosine.dtype not in (torch.float32, torch.float64):
            cosine = cosine.float()
        is_here = target_column >= 0
        column = target_column.clamp(min=0)[:, None]
        own = cosine.gather(1, column).squeeze(1)
        if target_cosine is None:
            target_cosine = own
        if self.training:
            self.observe(target_cosine.detach(), norms)
        logits = self.negatives(cosine, target_cosine.detach()[:, None])
        target = torch.where(is_here, self.target(own, norms), logits.gather(1, column)[:, 0])
        return logits.scatter(1, column, target[:, None]) * self.scale

    def observe(self, target_cosine: Tensor, norms: Tensor | None) -> None:
        """Update running statistics from this batch, once per training step.

        Args:
            target_cosine: (B,) of the own classes, without gradient.
            norms: (B, 1) lengths of the features; None where nobody knows them.
        """

    def target(self, cosine: Tensor, norms: Tensor | None = None) -> Tensor:
        """(B,) cosine of the own class -> the same with the margin; norms are (B, 1) lengths of
        features."""
        return cosine

    def negatives(self, cosine: Tensor, target_cosine: Tensor) -> Tensor:
        """(B, M) cosines of other classes and (B, 1) of the own -> (B, M)."""
        if self.filter_above is None:
            return cosine
        return cosine.masked_fill(cosine.detach() > self.filter_above, 0.0)

    def negatives_(self, cosine: Tensor, target_cosine: Tensor) -> Tensor | None:
        """``negatives`` of cosines (B, M) in place, for code that keeps no graph; gives d new / d
        old (B, M).

        None stands for 1 everywhere.
        """
        if self.filter_above is None:
            return None
        is_kept = cosine <= self.filter_above
        cosine.mul_(is_kept)
        return is_kept


class Softmax(Margin):
    """Softmax on ``scale`` times cosine (or on plain inner products with ``is_cosine=False``)."""


class CombinedMargin(Margin):
    """cos(m1 theta + m2) - m3 (combined margin of ArcFace, arXiv:1801.07698, equation 4).

    Args:
        m1, m2, m3: multiplicative angular (>= 1), additive angular (radians) and additive cosine
            margin.
        beyond: what the target becomes where m1 theta + m2 exceeds pi, where the cosine would
            rise again and reward samples that get worse:
            'continuous' (default, our choice) cosine - cos((pi - m2) / m1) - 1 - m3, which has
            slope 1 and no jump; 'shift' cosine - m2 sin(m2) - m3, the rule of the first ArcFace
            code, slope 1 with a jump (m1 must be 1); 'easy' no angular margin wherever the
            cosine is below 0; 'raw' the formula as it is.

    Within one rounding of cosine +-1 the slope is taken as 0: the gradient of the cosine itself
    vanishes there, and their product, sin(m1 theta + m2), has no direction to act in.
    """

    def __init__(self, scale: float = 64.0, m1: float = 1.0, m2: float = 0.3, m3: float = 0.2, *,
                 beyond: str = 'continuous', filter_above: float | None = None) -> None:
        super().__init__(scale, filter_above=filter_above)
        _require(m1 >= 1 and 0 <= m2 < math.pi / 2 and 0 <= m3 < 2, self,
                 f'm1={m1}, m2={m2}, m3={m3}', 'm1 >= 1, 0 <= m2 < pi/2, 0 <= m3 < 2')
        _require(beyond in BEYOND, self, f'beyond={beyond!r}', f'one of {", ".join(BEYOND)}')
        _require(beyond not in ('shift', 'easy') or m1 == 1, self, f'beyond={beyond!r} with '
                 f'm1={m1}', "m1=1 with this rule, or beyond='continuous'")
        self.m1, self.m2, self.m3, self.beyond = float(m1), float(m2), float(m3), beyond

    def target(self, cosine: Tensor, norms: Tensor | None = None) -> Tensor:
        """(B,) cosine of the own class -> the same with the margins; the features' lengths do not
        count."""
        angle = self.m1 * angle_of(cosine) + self.m2
        inside = angle.cos() - self.m3
        if self.beyond == 'raw':
            return inside
        if self.beyond == 'easy':
            return torch.where(cosine > 0, inside, cosine - self.m3)
        if self.beyond == 'shift':
            step = self.m2 * math.sin(self.m2)
        else:
            step = math.cos((math.pi - self.m2) / self.m1) + 1
        return torch.where(angle > math.pi, cosine - step - self.m3, inside)


class ArcFace(CombinedMargin):
    """cos(theta + margin) (arXiv:1801.07698)."""

    def __init__(self, scale: float = 64.0, margin: float = 0.5, *, beyond: str = 'continuous',
                 filter_above: float | None = None) -> None:
        super().__init__(scale, 1.0, margin, 0.0, beyond=beyond, filter_above=filter_above)


class CosFace(Margin):
    """cos(theta) - margin (arXiv:1801.09414)."""

    def __init__(self, scale: float = 64.0, margin: float = 0.4, *,
                 filter_above: float | None = None) -> None:
        super().__init__(scale, filter_above=filter_above)
        _require(0 <= margin < 2, self, f'margin={margin}', '0 <= margin < 2')
        self.margin = float(margin)

    def target(self, cosine: Tensor, norms: Tensor | None = None) -> Tensor:
        """(B,) cosine of the own class -> the same less ``margin``."""
        return cosine - self.margin


class AdaFace(Margin):
    """Margin by image quality, for which the feature's norm stands (arXiv:2204.00964).

    With n the norm, standardised by running mean and deviation, times h, cut to [-1, 1]:
    cos(theta - margin n) - margin (n + 1); the angle is cut to [0, pi]. No gradient flows into n.

    Args:
        h: concentration; a norm one deviation above the mean gives n = h.
        momentum: weight of the old running statistics in each training step.
    """

    needs_norms = True

    def __init__(self, scale: float = 64.0, margin: float = 0.4, h: float = 0.333, *,
                 momentum: float = 0.99, filter_above: float | None = None) -> None:
        super().__init__(scale, filter_above=filter_above)
        _require(0 <= margin < 1 and h > 0 and 0 <= momentum < 1, self,
                 f'margin={margin}, h={h}, momentum={momentum}',
                 '0 <= margin < 1, h > 0, 0 <= momentum < 1')
        self.margin, self.h, self.momentum = float(margin), float(h), float(momentum)
        self.register_buffer('norm_mean', torch.tensor(20.0))  # the paper's starting values
        self.register_buffer('norm_std', torch.tensor(100.0))

    @torch.no_grad()
    def observe(self, target_cosine: Tensor, norms: Tensor | None) -> None:
        """Move mean and deviation towards those of the lengths (B, 1); a single sample has no
        deviation and changes nothing.

        Raises:
            ValueError: the lengths are not given.
        """
        norms = self._checked(norms)
        if len(norms) < 2:
            return  # one sample has no deviation
        self.norm_mean.lerp_(norms.mean().to(self.norm_mean), 1 - self.momentum)
        self.norm_std.lerp_(norms.std().to(self.norm_std), 1 - self.momentum)

    def target(self, cosine: Tensor, norms: Tensor | None = None) -> Tensor:
        """(B,) cosine of the own class -> with the margin that the feature's length earns; norms
        (B, 1)."""
        norms = self._checked(norms).squeeze(1)
        quality = ((norms - self.norm_mean) / (self.norm_std + 1e-3) * self.h).clamp(-1, 1)
        quality = quality.to(cosine.dtype)
        angle = (angle_of(cosine) - self.margin * quality).clamp(0, math.pi)
        return angle.cos() - self.margin * (quality + 1)

    @staticmethod
    def _checked(norms: Tensor | None) -> Tensor:
        if norms is None:
            raise ValueError('AdaFace needs norms (B, 1), the lengths of the features')
        return norms.detach().clamp(1e-3, 100.0)  # the paper's guard against broken samples


class CurricularFace(ArcFace):
    """ArcFace whose hard negatives gain weight as training goes on (arXiv:2004.00288).

    A negative whose cosine c exceeds cos(theta + margin) of its sample becomes c (t + c); t is
    the running mean of the targets' cosines and gets no gradient.
    """

    needs_target_cosine = True

    def __init__(self, scale: float = 64.0, margin: float = 0.5, *, momentum: float = 0.99,
                 beyond: str = 'shift', filter_above: float | None = None) -> None:
        super().__init__(scale, margin, beyond=beyond, filter_above=filter_above)
        _require(0 <= momentum < 1, self, f'momentum={momentum}', '0 <= momentum < 1')
        self.momentum = float(momentum)
        self.register_buffer('t', torch.tensor(0.0))

    @torch.no_grad()
    def observe(self, target_cosine: Tensor, norms: Tensor | None) -> None:
        """Move t towards the mean of target_cosine (B,)."""
        self.t.lerp_(target_cosine.mean().to(self.t), 1 - self.momentum)

    def negatives(self, cosine: Tensor, target_cosine: Tensor) -> Tensor:
        """(B, M) cosines of other classes and (B, 1) of the own -> (B, M), hard ones reweighed."""
        is_hard = cosine.detach() > self._threshold(target_cosine)
        modulated = torch.where(is_hard, cosine * (self.t + cosine), cosine)
        if self.filter_above is None:
            return modulated
        return modulated.masked_fill(cosine.detach() > self.filter_above, 0.0)

    def negatives_(self, cosine: Tensor, target_cosine: Tensor) -> Tensor:
        """``negatives`` of (B, M) cosines in place; gives their slope (B, M)."""
        is_hard = cosine > self._threshold(target_cosine)
        slope = torch.where(is_hard, 2 * cosine + self.t, 1.0)
        kept = super().negatives_(cosine, target_cosine)
        cosine.mul_(torch.where(is_hard, cosine + self.t, 1.0))
        return slope if kept is None else slope * kept

    def _threshold(self, target_cosine: Tensor) -> Tensor:
        return (angle_of(target_cosine) + self.m2).cos()


def angle_of(cosine: Tensor) -> Tensor:
    """Angle in [0, pi] of each cosine, of the same shape; finite value and slope also at +-1 and
    one rounding beyond."""
    squared_sine = (1 - cosine) * (1 + cosine)  # more exact near 1 than 1 - cosine ** 2
    return torch.atan2(squared_sine.clamp(min=torch.finfo(cosine.dtype).eps).sqrt(), cosine)


MARGINS = {cls.__name__: cls for cls in
           (Softmax, ArcFace, CosFace, CombinedMargin, AdaFace, CurricularFace)}


def build_margin(name: str, **options) -> Margin:
    """A margin by its class name.

    Raises:
        VisionError: VIS-CONFIG-1002, no margin of this name; VIS-CONFIG-1008, no such option.
    """
    if name not in MARGINS:
        raise VisionError('VIS-CONFIG-1002', f'no margin is called {name!r}', where='margin.type',
                          do=f'one of {", ".join(MARGINS)}')
    try:
        return MARGINS[name](**options)
    except TypeError as error:
        raise VisionError('VIS-CONFIG-1008', f'{name} does not take {", ".join(options)}',
                          where='margin', why=str(error), do='see vision/faces/nn/head/margins.py'
                          ) from error


def _require(is_fine: bool, margin: Margin, what: str, wanted: str) -> None:
    if not is_fine:
        raise VisionError('VIS-CONFIG-1001', f'{type(margin).__name__} cannot have {what}',
                          where='margin', do=wanted)
