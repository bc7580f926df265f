"""A row of layers cut into stages of equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from vision.common.core.errors import VisionError


def cut(costs: Sequence[float], num_stages: int) -> list[tuple[int, int]]:
    """Contiguous half-open ranges of pieces, none empty, whose largest cost is the least possible.

    Exact: dynamic programming over (stages, pieces), O(num_stages * pieces ** 2). Of equal
    maxima the least sum of squares is taken, so that the other stages are even too; of equal
    sums the earliest cuts.

    Args:
        costs: of each piece of the model, in order, at least 0 in any unit.
        num_stages: S, number of ranges.

    Raises:
        VisionError: VIS-CONFIG-1501, fewer pieces than stages; VIS-CONFIG-1528, a cost that is
            none.
    """
    if num_stages < 1 or len(costs) < num_stages:
        raise VisionError('VIS-CONFIG-1501', f'{len(costs)} pieces for {num_stages} stages',
                          why='each stage holds at least one piece of the model',
                          do=f'cut the model into at least {max(1, num_stages)} pieces, or use '
                          'fewer ranks or chunks')
    wrong = next((index for index, cost in enumerate(costs) if not 0 <= cost < float('inf')), None)
    if wrong is not None:
        raise VisionError('VIS-CONFIG-1528', f'piece {wrong} costs {costs[wrong]}',
                          why='a cost is a finite number from 0 on', do='measure the pieces again')
    sums = [0, *accumulate(costs)]
    most = _least_maximum(sums, num_stages)
    return _evenest(sums, num_stages, most)


def _least_maximum(sums: Sequence[float], num_stages: int) -> float:
    """Over all cuts; ``sums[j] - sums[i]`` is the cost of pieces i to j."""
    num = len(sums) - 1
    best = list(sums)  # of one stage over the first j pieces
    for stage in range(1, num_stages):
        best = [float('inf')] * (stage + 1) + [
            min(max(best[i], sums[j] - sums[i]) for i in range(stage, j))
            for j in range(stage + 1, num + 1)]
    return best[num]


def _evenest(sums: Sequence[float], num_stages: int, most: float) -> list[tuple[int, int]]:
    """Least sum of squares with no stage above ``most``, from the last piece back so that the
    first of equal choices is the earliest cut."""
    num = len(sums) - 1
    squares: list[float] = [float('inf')] * num + [0.0]  # of the pieces from j on
    choices: list[list[int]] = []
    for left in range(num_stages):
        nexts, chosen = [float('inf')] * (num + 1), [num] * (num + 1)
        for i in range(num - left):
            for j in range(i + 1, num - left + 1):
                cost = sums[j] - sums[i]
                if cost > most:
                    break
                if cost * cost + squares[j] < nexts[i]:
                    nexts[i], chosen[i] = cost * cost + squares[j], j
        squares = nexts
        choices.append(chosen)
    bounds = [0]
    for chosen in reversed(choices):
        bounds.append(chosen[bounds[-1]])
    assert bounds[-1] == num, bounds
    return list(pairwise(bounds))
