"""Uniform draws of rows, repeatable from (seed, step), of which a rank makes its own part only.

Rows lie in fixed blocks of ``BLOCK``. How many rows a block gets is settled by halving the blocks
again and again, each halving by its own hypergeometric draw; which rows, by a draw inside the
block. Every one of these draws has its own generator, seeded by where it stands: so a rank that
holds a range of rows makes the draws that lead to its blocks, and all ranks together have the draw
of one (our design; Partial FC has a random key for each row in each step).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BLOCK = 1 << 16  # a draw inside costs at most this; a million rows are 16 generators
_SORTED_SHARE = 32  # of a block; a tenth of it is sorted in 150 us, marked and read in 40


def draw_outside(taken: np.ndarray, num_rows: int, count: int, *words: int, start: int = 0,
                 end: int | None = None) -> np.ndarray:
    """``count`` rows of 0..num_rows-1 without replacement and without those of ``taken``.

    O(rows drawn + blocks of start..end), beside a search in ``taken`` for each block.

    Args:
        taken: (T,) sorted unique int64, of all rows.
        words: whole numbers >= 0 that fix the draw, e.g. seed and step.
        start, end: only the drawn rows from start on and before end are wanted; default: all.

    Returns:
        (N,) sorted unique int64; all that are left when fewer than ``count``.
    """
    end = num_rows if end is None else end
    if start >= end:
        return np.empty(0, np.int64)
    count = min(count, num_rows - len(taken))
    parts = [_draw_block(taken, block, min(BLOCK, num_rows - block * BLOCK), number, words)
             for block, number in _numbers(taken, num_rows, count, words, start // BLOCK,
                                           -(-end // BLOCK))]
    drawn = np.concatenate([np.empty(0, np.int64), *parts])
    low, high = np.searchsorted(drawn, [start, end])
    return drawn[low:high]


def _numbers(taken: np.ndarray, num_rows: int, count: int, words: tuple[int, ...], first: int,
             last: int) -> Iterator[tuple[int, int]]:
    """(block, rows drawn in it) for the blocks first to last that have any, in order."""
    def free(low: int, high: int) -> int:
        edges = min(low * BLOCK, num_rows), min(high * BLOCK, num_rows)
        return edges[1] - edges[0] - int(np.diff(np.searchsorted(taken, edges))[0])

    def halve(low: int, high: int, number: int) -> Iterator[tuple[int, int]]:
        if not number or high <= first or low >= last:
            return
        if high - low == 1:
            yield low, number
            return
        middle = (low + high) // 2
        generator = np.random.default_rng([*words, 1, low, high])
        left = int(generator.hypergeometric(free(low, middle), free(middle, high), number))
        yield from halve(low, middle, left)
        yield from halve(middle, high, number - left)
    return halve(0, -(-num_rows // BLOCK), count)


def _draw_block(taken: np.ndarray, block: int, size: int, number: int, words: tuple[int, ...]
                ) -> np.ndarray:
    begin = block * BLOCK
    low, high = np.searchsorted(taken, [begin, begin + size])
    here = taken[low:high] - begin
    generator = np.random.default_rng([*words, 0, block])
    ranks = _ascending(generator.choice(size - len(here), number, replace=False, shuffle=False),
                       size)
    # The r-th free row is r plus the number of taken rows before it: of the taken ones, fewer
    # than drawn ones, the places among the drawn are looked up, not the other way round.
    edges = np.searchsorted(ranks, here - np.arange(len(here)))
    before = np.diff(edges, prepend=0, append=number)
    return begin + ranks + np.repeat(np.arange(len(here) + 1), before)


def _ascending(ids: np.ndarray, size: int) -> np.ndarray:
    """(N,) different numbers below ``size``, sorted: by marks where that is faster."""
    if len(ids) < size // _SORTED_SHARE:
        return np.sort(ids)
    is_in = np.zeros(size, np.bool_)
    is_in[ids] = True
    return np.flatnonzero(is_in)
