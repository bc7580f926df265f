"""The forest cut level by level is the forest cut cell by cell."""

import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.faces.core.select.forest import MAX_ATTEMPTS, build_forest, draw_pairs, hash_words


def recursive_leaves(rows, ids, path, leaf_size, depth=0):
    """Judge: the leaves of one tree in depth-first order, one cell at a time."""
    if len(ids) <= leaf_size or depth >= 64:
        return [set(ids.tolist())]
    for attempt in range(MAX_ATTEMPTS):
        first, second = draw_pairs(np.atleast_1d(path), np.array([len(ids)]), attempt)
        u, v = rows[ids[first[0]]], rows[ids[second[0]]]
        side = rows[ids] @ (u - v) > (u @ u - v @ v) / 2
        if side.any() and not side.all():
            break
    else:
        keys = hash_words(path, ids)
        side = np.isin(ids, ids[np.lexsort((ids, keys))][len(ids) // 2:])
    return [leaf for which in (0, 1) for leaf in recursive_leaves(
        rows, ids[side == bool(which)], hash_words(path, which, 0), leaf_size, depth + 1)]


def grid_rows(num, dim, seed=0):
    """Whole numbers: products are exact, so both versions cut alike."""
    return np.random.default_rng(seed).integers(-9, 10, (num, dim)).astype(np.float32)


def tree_leaves(forest, tree):
    stack, leaves = [forest.roots[tree]], []
    while stack:
        node = stack.pop()
        if node < 0:
            start, end = forest.leaf_starts[~node:~node + 2]
            leaves.append(set(forest.leaf_rows[start:end].tolist()))
        else:
            stack += forest.children[node][::-1].tolist()
    return leaves


@pytest.mark.parametrize(('num', 'leaf_size', 'duplicates'),
                         [(500, 10, False), (333, 1, False), (300, 7, True), (5, 8, False)])
def test_equals_the_recursive_judge(num, leaf_size, duplicates):
    rows = grid_rows(num, 6)
    if duplicates:
        rows[40:200] = rows[0]  # a cell that no plane parts
    forest = build_forest(rows, num_trees=3, leaf_size=leaf_size, seed=5)
    for tree in range(3):
        expected = recursive_leaves(rows, np.arange(num), hash_words(5, tree), leaf_size)
        assert tree_leaves(forest, tree) == expected


def test_each_tree_holds_every_row_once_and_leaves_are_small():
    rows = np.random.default_rng(1).standard_normal((3000, 16)).astype(np.float32)
    forest = build_forest(rows, num_trees=4, leaf_size=32)
    for tree in range(4):
        leaves = tree_leaves(forest, tree)
        assert sorted(i for leaf in leaves for i in leaf) == list(range(3000))
        assert max(map(len, leaves)) <= 32


def test_equal_rows_are_halved_and_finish():
    forest = build_forest(np.ones((100, 4), np.float32), num_trees=1, leaf_size=10)
    sizes = np.diff(forest.leaf_starts)
    assert sizes.sum() == 100 and sizes.max() <= 10 and sizes.min() >= 5


def test_a_plane_by_hand():
    """Two rows, leaf of one: the plane stands half-way, each query goes to the nearer row."""
    rows = np.array([[0.0, 0.0], [4.0, 0.0]], np.float32)
    forest = build_forest(rows, num_trees=1, leaf_size=1)
    ids = forest.candidates(np.array([[1.9, 7.0], [2.1, -7.0], [9.0, 0.0]], np.float32))
    assert ids.tolist() == [[0], [1], [1]]


def test_a_row_finds_its_own_leaf_and_near_rows_more_than_far_ones():
    rng = np.random.default_rng(2)
    centres = rng.standard_normal((40, 24))
    rows = (centres.repeat(50, 0) + 0.1 * rng.standard_normal((2000, 24))).astype(np.float32)
    forest = build_forest(rows, num_trees=6, leaf_size=60, seed=1)
    found = forest.candidates(rows[:100])
    leaves = forest.leaves(rows[:100])
    for row in range(100):
        ids = found[row][found[row] >= 0]
        assert row in ids and len(np.unique(ids)) == len(ids)
        assert set(ids) == set().union(*(
            forest.leaf_rows[slice(*forest.leaf_starts[leaf:leaf + 2])].tolist()
            for leaf in leaves[row]))
    ids = found[0][found[0] >= 0]
    assert (ids < 50).sum() > 40 and (ids < 50).mean() > 0.3  # its cluster is 1 of 40


def test_seeds_differ_and_repeat():
    rows = grid_rows(400, 5)
    first, again, other = (build_forest(rows, num_trees=2, leaf_size=8, seed=s) for s in (3, 3, 4))
    assert np.array_equal(first.leaf_rows, again.leaf_rows)
    assert not np.array_equal(first.leaf_rows, other.leaf_rows)


@pytest.mark.parametrize(('change', 'code'), [
    (dict(num_trees=0), '1041'), (dict(leaf_size=0), '1041')])
def test_bad_settings_are_refused(change, code):
    with pytest.raises(VisionError, match=code):
        build_forest(grid_rows(10, 3), **change)


def test_rows_that_are_not_finite_are_refused():
    rows = grid_rows(10, 3)
    rows[4, 1] = np.nan
    with pytest.raises(VisionError, match='1047'):
        build_forest(rows)
