import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.memory.core.host_pool import ALIGNMENT, Block, HostPool

ARENA = 8 * ALIGNMENT
STEPS = st.lists(st.one_of(st.tuples(st.just('reserve'), st.integers(1, 12 * ALIGNMENT)),
                           st.tuples(st.just('release'), st.integers(0, 99))), max_size=60)


def rounded(num_bytes):
    return (num_bytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


@settings(deadline=None, max_examples=200)
@given(STEPS, st.one_of(st.none(), st.integers(0, 40 * ALIGNMENT)))
def test_pool_against_a_map_of_bytes(steps, cap_bytes):
    pool = HostPool(cap_bytes, arena_bytes=ARENA)
    taken, peak = [], 0
    units = {}  # (arena, unit) -> block: one entry for each ALIGNMENT that somebody has
    for kind, number in steps:
        if kind == 'release':
            if taken:
                block = taken.pop(number % len(taken))
                pool.release(block)
                units = {place: owner for place, owner in units.items() if owner is not block}
            continue
        size = rounded(number) // ALIGNMENT
        fits = any(all((arena, first + step) not in units for step in range(size))
                   for arena, arena_bytes in enumerate(pool.arena_sizes)
                   for first in range(arena_bytes // ALIGNMENT - size + 1))
        before = list(pool.arena_sizes)
        block = pool.reserve(number)
        if block is None:
            assert not fits and sum(before) + size * ALIGNMENT > cap_bytes
            assert pool.arena_sizes == before
            continue
        assert fits == (pool.arena_sizes == before)  # it grows only where nothing is left
        assert block.num_bytes == number and block.offset % ALIGNMENT == 0
        assert block.offset + number <= pool.arena_sizes[block.arena]
        for step in range(size):
            place = (block.arena, block.offset // ALIGNMENT + step)
            assert place not in units
            units[place] = block
        taken.append(block)
        assert pool.used_bytes == len(units) * ALIGNMENT
        peak = max(peak, pool.used_bytes)
    assert pool.peak_bytes == peak
    assert cap_bytes is None or sum(pool.arena_sizes) <= cap_bytes
    for block in taken:
        pool.release(block)
    assert pool.used_bytes == 0
    # All free space has joined: each arena is one block again.
    sizes = list(pool.arena_sizes)
    blocks = [pool.reserve(size) for size in sorted(sizes, reverse=True)]
    assert None not in blocks and pool.arena_sizes == sizes
    assert all(block.offset == 0 for block in blocks)


def test_arenas_grow_on_demand_and_stay():
    pool = HostPool(arena_bytes=ARENA)
    assert pool.arena_sizes == []
    small, large = pool.reserve(1), pool.reserve(ARENA + 1)
    assert pool.arena_sizes == [ARENA, ARENA + ALIGNMENT]
    assert (small, large) == (Block(0, 0, 1), Block(1, 0, ARENA + 1))
    assert pool.reserve(2) == Block(0, ALIGNMENT, 2)  # first fit
    pool.release(small)
    assert pool.reserve(3) == Block(0, 0, 3)


def test_a_cap_of_zero_gives_nothing_and_a_block_comes_back_once():
    assert HostPool(0).reserve(1) is None
    pool = HostPool()
    block = pool.reserve(5)
    pool.release(block)
    with pytest.raises(AssertionError, match='not taken'):
        pool.release(block)
