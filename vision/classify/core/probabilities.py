"""Logits to probabilities, with a place for what is of no class, and how both are set.

A network of K classes gives every picture to one of them. One more logit, the same for all
pictures, makes a place for those that resemble none: with a scale s of the logits and this
constant u, p_k = exp(s z_k) / (exp(u) + sum_j exp(s z_j)), and the rest is the unknown's. Both
numbers are chosen so that held-out pictures, of the classes and of none, are the most likely
(temperature scaling, arXiv:1706.04599, with one class more).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize


def probabilities(logits: np.ndarray, unknown_logit: float | None = None) -> np.ndarray:
    """(N, K) float logits to (N, K) probabilities; with ``unknown_logit`` (N, K + 1), the last
    column of no class."""
    logits = logits.astype(np.float64)
    if unknown_logit is not None:
        logits = np.concatenate([logits, np.full((len(logits), 1), unknown_logit)], axis=1)
    logits -= logits.max(axis=1, keepdims=True)
    values = np.exp(logits)
    return values / values.sum(axis=1, keepdims=True)


def calibrate(known: np.ndarray, labels: np.ndarray, unknown: np.ndarray, *,
              unknown_share: float = 0.1) -> tuple[float, float]:
    """(scale, unknown logit) of the greatest likelihood.

    Args:
        unknown_share: of pictures of no class among those that the classifier will be shown.
        known: (N, K) logits of pictures of the classes ``labels`` (N,).
        unknown: (M, K) logits of pictures of no class.
    """
    tops = known.max(axis=1), unknown.max(axis=1)
    # Starts between the two kinds' best logits.
    start = np.array([0.0, (np.median(tops[0]) + np.median(tops[1])) / 2])
    own = known[np.arange(len(known)), labels].astype(np.float64)

    def loss(values: np.ndarray) -> float:
        scale, place = np.exp(values)[0], values[1]
        rest_known, rest_unknown = (scale * top + np.log(np.exp(
            scale * (logits - top[:, None])).sum(axis=1, dtype=np.float64))
            for logits, top in zip((known, unknown), tops, strict=True))
        u = scale * place
        return float((1 - unknown_share) * (np.logaddexp(rest_known, u) - scale * own).mean()
                     + unknown_share * (np.logaddexp(rest_unknown, u) - u).mean())

    found = minimize(loss, start, method='Nelder-Mead', options=dict(
        xatol=1e-3, fatol=1e-4, maxfev=120))
    scale = float(np.exp(found.x[0]))
    return scale, scale * float(found.x[1])
