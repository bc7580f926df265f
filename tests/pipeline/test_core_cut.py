"""The cut has the least maximum of all cuts, and among those the least squares."""

import random
from itertools import combinations, pairwise

import pytest

from vision.common.core.errors import VisionError
from vision.pipeline.core.cut import cut


def all_cuts(num_pieces, num_stages):
    for inner in combinations(range(1, num_pieces), num_stages - 1):
        yield list(pairwise((0, *inner, num_pieces)))


def costs_of(costs, ranges):
    return [sum(costs[start:end]) for start, end in ranges]


def test_by_hand():
    assert cut([1, 1, 1, 3], 2) == [(0, 3), (3, 4)]
    assert cut([5, 1, 1, 1, 1], 3) == [(0, 1), (1, 3), (3, 5)]  # not (1, 4), (4, 5): as good at 5
    assert cut([1, 1, 1], 2) == [(0, 1), (1, 3)]  # the earliest of equal ones
    assert cut([0, 0, 0], 3) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize('seed', range(60))
def test_no_cut_is_better(seed):
    rng = random.Random(seed)
    num_pieces = rng.randint(1, 9)
    num_stages = rng.randint(1, num_pieces)
    costs = [rng.randint(0, 9) for _ in range(num_pieces)]

    def score(ranges):
        found = costs_of(costs, ranges)
        return max(found), sum(cost * cost for cost in found), [end for _, end in ranges]

    assert cut(costs, num_stages) == min(all_cuts(num_pieces, num_stages), key=score)


def test_costs_of_any_size():
    """Real times, whose sums are not exact: no stage is lost."""
    rng = random.Random(0)
    costs = [rng.uniform(1e-4, 1e-2) for _ in range(200)]
    ranges = cut(costs, 16)
    assert len(ranges) == 16 and all(start < end for start, end in ranges)
    assert [start for start, _ in ranges[1:]] == [end for _, end in ranges[:-1]]
    assert max(costs_of(costs, ranges)) <= sum(costs) / 16 + max(costs)


@pytest.mark.parametrize(('costs', 'num_stages', 'code'), [
    ([1, 2], 3, 1501), ([], 1, 1501), ([1, 2], 0, 1501), ([1, -1], 1, 1528),
    ([1, float('nan')], 1, 1528)])
def test_what_cannot_be_cut_is_refused(costs, num_stages, code):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}'):
        cut(costs, num_stages)
