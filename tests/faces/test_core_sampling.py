"""Draws of rows: uniform, without replacement, the same for any number of ranks."""

import numpy as np
import pytest

from vision.faces.core.select import sampling
from vision.faces.core.select.sampling import draw_outside


@pytest.fixture(params=[1 << 16, 8])
def block(request, monkeypatch):
    """One block for all rows, or many small ones."""
    monkeypatch.setattr(sampling, 'BLOCK', request.param)
    return request.param


@pytest.mark.parametrize(('taken', 'num', 'count'), [
    ([], 50, 10), ([0, 1, 2], 50, 47), ([5, 9, 49], 50, 20), (range(0, 50, 2), 50, 24),
    ([], 20_000, 100), (range(50), 50, 3), (range(8, 24), 50, 30)])
def test_draws_are_unique_sorted_and_outside(block, taken, num, count):
    taken = np.array(list(taken), np.int64)
    drawn = draw_outside(taken, num, count, 7, 3)
    assert len(drawn) == min(count, num - len(taken)) and drawn.dtype == np.int64
    assert np.all(np.diff(drawn) > 0) and not np.isin(drawn, taken).any()
    assert len(drawn) == 0 or (drawn.min() >= 0 and drawn.max() < num)


def test_draws_are_uniform_over_what_is_free_and_repeat(block):
    """Also over pairs: draws without replacement, and blocks that know of each other."""
    taken, num_steps = np.array([3, 4, 10]), 6000
    counts, pairs = np.zeros(20), np.zeros((20, 20))
    for step in range(num_steps):
        drawn = draw_outside(taken, 20, 5, 1, step)
        counts[drawn] += 1
        pairs[np.ix_(drawn, drawn)] += 1
    free = np.delete(np.arange(20), taken)
    assert counts[taken].sum() == 0
    # Five standard deviations of a count.
    share, both = 5 / 17, 5 * 4 / (17 * 16)
    assert np.abs(counts[free] / num_steps - share).max() < 5 * (share / num_steps)**0.5
    off = pairs[np.ix_(free, free)][~np.eye(len(free), dtype=bool)]
    assert np.abs(off / num_steps - both).max() < 5 * (both / num_steps)**0.5
    assert np.array_equal(draw_outside(taken, 20, 5, 1, 2), draw_outside(taken, 20, 5, 1, 2))
    assert not np.array_equal(draw_outside(taken, 20, 5, 1, 2), draw_outside(taken, 20, 5, 2, 2))


@pytest.mark.parametrize('cuts', [[0, 500], [0, 203, 500], [0, 9, 9, 250, 500],
                                  [0, 63, 64, 65, 499, 500]])
@pytest.mark.parametrize('count', [0, 1, 60, 480])
def test_the_parts_of_ranks_make_the_draw_of_one(block, cuts, count):
    taken = np.arange(0, 500, 37)
    whole = draw_outside(taken, 500, count, 5, 11)
    parts = [draw_outside(taken, 500, count, 5, 11, start=start, end=end)
             for start, end in zip(cuts, cuts[1:], strict=False)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_a_rank_draws_for_its_own_blocks_only(monkeypatch):
    seen, draw = [], sampling._draw_block
    monkeypatch.setattr(sampling, '_draw_block', lambda *args: (seen.append(args[1]),
                                                                draw(*args))[1])
    num, own = 64 * sampling.BLOCK, sampling.BLOCK
    drawn = draw_outside(np.arange(10), num, num // 100, 0, 0, start=5 * own, end=7 * own)
    assert seen == [5, 6] and len(drawn) == pytest.approx(2 * own / 100, rel=0.2)
