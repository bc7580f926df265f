"""Constants of the cost model from measured steps, and how well a set of predictions does.

Few constants, each with a physical range, on half of the rows; the other half is only scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import log

import numpy as np

from vision.simulator.core.pricing import CONSTANTS

Pair = tuple[float, float]  # (predicted, measured)

# How far constants are usually from the start, in logarithms (our choice): shares of a peak within
# a tenth, others, of which no data sheet tells, within a half. And how far rows are off then.
_DEVIATION, _USUAL_ERROR = 0.1, 0.05
_DEVIATIONS = dict(host_us=0.5, half_size=0.5, jitter=0.5, unlisted=0.5, gemm_share_hopper=0.2)


def halves(rows: Sequence) -> tuple[list, list]:
    """(fitted on, held) of rows sorted by id: first, third, ... and second, fourth, ..."""
    return list(rows[0::2]), list(rows[1::2])


def fit(predict_all: Callable[[Mapping[str, float]], Sequence[Pair]],
        start: Mapping[str, float], *, trust: float = 1.0, rounds: int = 20) -> dict[str, float]:
    """Constants that make the absolute logarithms of predicted over measured least, without going
    further from where they start than the rows ask for.

    Absolute and not squared, so that one odd row does not bend the others: least squares whose
    weights are the inverse of the last residuals, damped (Levenberg and Marquardt), in the
    logarithm of the constants and within their ranges. What constants are usually (the start,
    from data sheets) counts as rows do: a few rows that no constant explains would bend them
    otherwise. Deterministic.

    Args:
        predict_all: pairs under given constants.
        start: first values; only these constants are fitted.
        trust: in the rows, against the start; infinite for rows alone.
    """
    names = list(start)
    low, high = (np.log([max(CONSTANTS[name][at], 1e-4) for name in names]) for at in (1, 2))

    def residuals(point: np.ndarray) -> np.ndarray:
        values = dict(zip(names, np.exp(point).tolist(), strict=True))
        return np.array([log(predicted / measured) for predicted, measured in predict_all(values)])

    origin = np.clip(np.log([max(value, 1e-4) for value in start.values()]), low, high)
    stiffness = _USUAL_ERROR / (trust * np.array(
        [_DEVIATIONS.get(name, _DEVIATION) for name in names]))**2

    def loss(point: np.ndarray, residual: np.ndarray) -> float:
        return np.abs(residual).sum() + (stiffness * (point - origin)**2).sum() / 2

    point, damping = origin, 1e-2
    now = residuals(point)
    for _ in range(rounds):
        # Towards the inside where a constant stands at its upper bound.
        steps = np.where(point + 0.05 > high, -0.05, 0.05)
        slopes = np.stack([(residuals(point + step * unit) - now) / step
                           for step, unit in zip(steps, np.eye(len(names)), strict=True)], axis=1)
        weights = 1 / np.maximum(np.abs(now), 0.02)
        square = slopes.T @ (weights[:, None] * slopes) + np.diag(stiffness)
        slope = slopes.T @ (weights * now) + stiffness * (point - origin)
        for _ in range(8):
            # A constant that hardly matters stays near where it is.
            damped = square + damping * (np.diag(np.diag(square)) + np.eye(len(names)))
            trial = np.clip(point - np.linalg.solve(damped, slope), low, high)
            found = residuals(trial)
            if loss(trial, found) < loss(point, now) - 1e-6:
                point, now, damping = trial, found, damping / 3
                break
            damping *= 4
        else:
            break
    return dict(zip(names, np.exp(point).tolist(), strict=True))


@dataclass(frozen=True)
class Score:
    """Of a set of predictions.

    Args:
        count: rows.
        mean_error, max_error: of |predicted - measured| / measured.
        bias: mean of (predicted - measured) / measured.
        order: share of pairs of rows of one kind that are in the measured order; None without.
        chosen: mean over workloads of measured at the one predicted best over the best; None
            without two strategies of one workload.
    """

    count: int
    mean_error: float
    max_error: float
    bias: float
    order: float | None = None
    chosen: float | None = None


def score(pairs: Sequence[Pair], workloads: Sequence[str] = ()) -> Score:
    """How well predictions agree with measurements.

    Args:
        pairs: (predicted, measured) of times, or of rates turned into times, so that less is
            better.
        workloads: of each pair; the same work under several strategies has one name.
    """
    errors = [(predicted - measured) / measured for predicted, measured in pairs]
    ordered = [_agree(a, b) for a, b in combinations(pairs, 2) if a[1] != b[1]]
    groups: dict[str, list[Pair]] = {}
    for name, pair in zip(workloads, pairs, strict=False):
        groups.setdefault(name, []).append(pair)
    chosen = [min(group)[1] / min(measured for _, measured in group)
              for group in groups.values() if len(group) > 1]
    return Score(len(pairs), _mean([abs(error) for error in errors]),
                 max(abs(error) for error in errors), _mean(errors),
                 _mean(ordered) if ordered else None, _mean(chosen) if chosen else None)


def _agree(a: Pair, b: Pair) -> float:
    return float((a[0] < b[0]) == (a[1] < b[1]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
