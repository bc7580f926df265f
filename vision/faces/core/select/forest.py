"""Hashing forest over class rows: random maximum-margin planes between pairs of rows.

The dynamic class hierarchy of arXiv:1801.01687. A cell with more than ``leaf_size`` rows draws two
of its rows u, v and is cut by the plane half-way between them; each half goes on alone. Several
trees with their own draws make a forest; a query's candidates are its leaves' rows, to be ranked
by their exact scores: in how many trees a row was met says little about how near it is.

All cells of a level are cut at once with array operations, so a build is a few passes over the
rows per level instead of a Python call per cell. Every draw is a hash of (seed, tree, path of the
cell, attempt), never the state of a generator: the forest does not depend on the order of work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vision.common.core.errors import VisionError
from vision.faces.core.select.faults import rows_not_finite

MAX_ATTEMPTS = 8  # draws of a pair before a cell is halved at random; our choice
MAX_DEPTH = 64  # a deeper cell holds (nearly) equal rows: it stays one leaf
_CHUNK = 1 << 15  # rows whose products are worked out at once: 16 MB at 128 dimensions


@dataclass(frozen=True)
class HashingForest:
    """Trees as arrays; node numbers run through all trees.

    Attributes:
        normals, offsets: (N, d), (N,) plane of each inner node; a row is on side 1 when
            row . normal > offset.
        children: (N, 2) node of each side; a leaf is stored as ~leaf.
        roots: (L,) node (or ~leaf) where each tree starts.
        leaf_starts: (K + 1,) ranges of the leaves in ``leaf_rows``.
        leaf_rows: (L * C,) row ids.
    """

    normals: np.ndarray
    offsets: np.ndarray
    children: np.ndarray
    roots: np.ndarray
    leaf_starts: np.ndarray
    leaf_rows: np.ndarray

    @property
    def num_bytes(self) -> int:
        """Memory of all arrays: planes, children and leaves."""
        return sum(getattr(self, name).nbytes for name in self.__dataclass_fields__)

    def leaves(self, queries: np.ndarray) -> np.ndarray:
        """(B, d) -> (B, L) leaf of each query in each tree, all walked together."""
        nodes = np.broadcast_to(self.roots, (len(queries), len(self.roots))).copy()
        sample, tree = np.nonzero(nodes >= 0)
        while len(sample):
            at = nodes[sample, tree]
            side = np.einsum('nd,nd->n', self.normals[at], queries[sample]) > self.offsets[at]
            nodes[sample, tree] = below = self.children[at, side.astype(np.int64)]
            inner = below >= 0
            sample, tree = sample[inner], tree[inner]
        return ~nodes

    def candidates(self, queries: np.ndarray) -> np.ndarray:
        """The rows in each query's own leaves, each once.

        Args:
            queries: (B, d).

        Returns:
            (B, n) int32 row ids of each query in ascending order, -1 where it has fewer than n.
        """
        leaves = self.leaves(queries)
        starts, ends = self.leaf_starts[leaves], self.leaf_starts[leaves + 1]
        places = np.arange((ends - starts).max(initial=0))
        is_row = places < (ends - starts)[..., None]
        places = np.where(is_row, starts[..., None] + places, 0)
        ids = np.where(is_row, self.leaf_rows[places], -1).reshape(len(queries), -1)
        ids.sort(axis=1)
        ids[:, 1:][ids[:, 1:] == ids[:, :-1]] = -1  # met in another tree
        return ids


def build_forest(rows: np.ndarray, *, num_trees: int = 50, leaf_size: int = 64,
                 seed: int = 0) -> HashingForest:
    """Build ``num_trees`` trees over all rows; leaves hold at most ``leaf_size`` of them.

    Args:
        rows: (C, d) floating point, finite.

    Raises:
        VisionError: VIS-CONFIG-1041 a setting out of range, VIS-RUN-1047 rows not finite.
    """
    if num_trees < 1 or leaf_size < 1:
        raise VisionError('VIS-CONFIG-1041', f'forest with num_trees={num_trees}, '
                          f'leaf_size={leaf_size}', where='selector', do='give whole numbers >= 1')
    if not np.isfinite(rows).all():
        raise rows_not_finite()
    trees = [_Tree(rows, leaf_size, hash_words(seed, number)) for number in range(num_trees)]
    for tree in trees:
        while tree.grow():
            pass
    return _join(trees)


def hash_words(*words: int | np.ndarray) -> np.ndarray:
    """One uint64 per element of the words, broadcast to one shape, well mixed (splitmix64's
    finaliser)."""
    state = np.uint64(0)
    with np.errstate(over='ignore'):
        for word in words:
            state = np.asarray(word).astype(np.uint64) + state * np.uint64(0x9E3779B97F4A7C15)
            state = state + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def draw_pairs(paths: np.ndarray, sizes: np.ndarray, attempt: int) -> tuple[np.ndarray, ...]:
    """Two different places in 0..size-1 for each of K cells, (K,) int64 each, from the hash of its
    path.

    Args:
        paths, sizes: (K,) of each cell; sizes from 2 on.
        attempt: draws of the same cell that found no plane so far.
    """
    sizes = sizes.astype(np.uint64)
    first = hash_words(paths, 2 * attempt) % sizes
    step = hash_words(paths, 2 * attempt + 1) % (sizes - np.uint64(1)) + np.uint64(1)
    return first.astype(np.int64), ((first + step) % sizes).astype(np.int64)


class _Tree:
    """One tree while it grows: ``order`` keeps the rows of every open cell together."""

    def __init__(self, rows: np.ndarray, leaf_size: int, path: np.ndarray) -> None:
        self.rows, self.leaf_size, self.depth = rows, leaf_size, 0
        self.normals: list[np.ndarray] = []
        self.offsets: list[np.ndarray] = []
        self.children: list[np.ndarray] = []
        self.leaves: list[np.ndarray] = []
        self.num_nodes = 0
        self.order = np.arange(len(rows))
        self.starts, self.paths = np.array([0, len(rows)]), np.atleast_1d(path)
        if len(rows) <= leaf_size:
            self.leaves.append(self.order)
            self.order, self.starts = self.order[:0], self.starts[:1]

    def grow(self) -> bool:
        """Cut every open cell once; False when none is left."""
        num_cells = len(self.starts) - 1
        if num_cells == 0:
            return False
        sizes = np.diff(self.starts)
        cells = np.repeat(np.arange(num_cells), sizes)
        normals, offsets, side = self._cut(cells, sizes)
        place = np.argsort(2 * cells + side, kind='stable')
        self.order = self.order[place]
        halves = np.bincount(2 * cells + side, minlength=2 * num_cells)
        self._close(normals, offsets, halves)
        return True

    def _cut(self, cells: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
        """Planes of all cells and the side of all rows; cells that do not part draw again."""
        num_cells, dim = len(sizes), self.rows.shape[1]
        normals = np.zeros((num_cells, dim), self.rows.dtype)
        offsets = np.zeros(num_cells, self.rows.dtype)
        side = np.zeros(len(cells), bool)
        open_cells, at = np.arange(num_cells), np.arange(len(cells))
        for attempt in range(MAX_ATTEMPTS):
            first, second = draw_pairs(self.paths[open_cells], sizes[open_cells], attempt)
            u = self.rows[self.order[self.starts[open_cells] + first]]
            v = self.rows[self.order[self.starts[open_cells] + second]]
            normals[open_cells] = u - v
            offsets[open_cells] = ((u * u).sum(1) - (v * v).sum(1)) / 2
            side[at] = self._sides(at, cells, normals, offsets)
            ones = np.bincount(cells[at], weights=side[at], minlength=num_cells)[open_cells]
            open_cells = open_cells[(ones == 0) | (ones == sizes[open_cells])]
            if not len(open_cells):
                return normals, offsets, side
            at = np.flatnonzero(np.isin(cells, open_cells))
        normals[open_cells], offsets[open_cells] = 0, 0
        side[at] = self._halve(cells[at], self.order[at])
        return normals, offsets, side

    def _sides(self, at: np.ndarray, cells: np.ndarray, normals: np.ndarray,
               offsets: np.ndarray) -> np.ndarray:
        side = np.empty(len(at), bool)
        for start in range(0, len(at), _CHUNK):
            part = at[start:start + _CHUNK]
            rows, own = self.rows[self.order[part]], cells[part]
            if own[0] == own[-1]:  # one large cell: no copy of its plane for every row
                products = rows @ normals[own[0]]
            else:
                products = np.einsum('nd,nd->n', rows, normals[own])
            side[start:start + len(part)] = products > offsets[own]
        return side

    def _halve(self, cells: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Sides that part each cell evenly, by the rank of a hash of path and row id."""
        ranking = np.lexsort((ids, hash_words(self.paths[cells], ids), cells))
        sizes = np.bincount(cells)[cells[ranking]]
        rank = np.arange(len(cells)) - np.searchsorted(cells[ranking], cells[ranking])
        side = np.empty(len(cells), bool)
        side[ranking] = rank >= sizes // 2
        return side

    def _close(self, normals: np.ndarray, offsets: np.ndarray, halves: np.ndarray) -> None:
        """Record the planes; small halves become leaves, the others next level's cells."""
        num_cells = len(normals)
        self.depth += 1
        is_leaf = (halves <= self.leaf_size) | (self.depth >= MAX_DEPTH)
        ends = np.cumsum(halves)
        names = np.empty(len(halves), np.int64)
        names[is_leaf] = ~(len(self.leaves) + np.arange(is_leaf.sum()))
        names[~is_leaf] = self.num_nodes + num_cells + np.arange((~is_leaf).sum())
        self.leaves += [self.order[end - size:end]
                        for end, size in zip(ends[is_leaf], halves[is_leaf], strict=True)]
        self.normals.append(normals)
        self.offsets.append(offsets)
        self.children.append(names.reshape(-1, 2))
        self.num_nodes += num_cells
        self.order = self.order[np.repeat(~is_leaf, halves)]
        self.starts = np.concatenate([[0], np.cumsum(halves[~is_leaf])])
        paths = hash_words(np.repeat(self.paths, 2), np.tile([0, 1], num_cells), 0)
        self.paths = paths[~is_leaf]


def _join(trees: list[_Tree]) -> HashingForest:
    """One set of arrays; each tree's node and leaf numbers move up by those before it."""
    dim, dtype = trees[0].rows.shape[1], trees[0].rows.dtype
    children, roots, num_nodes, num_leaves = [np.empty((0, 2), np.int64)], [], 0, 0
    for tree in trees:
        children += [np.where(part >= 0, part + num_nodes, part - num_leaves)
                     for part in tree.children]
        roots.append(num_nodes if tree.num_nodes else ~num_leaves)
        num_nodes, num_leaves = num_nodes + tree.num_nodes, num_leaves + len(tree.leaves)
    leaves = [leaf for tree in trees for leaf in tree.leaves]
    return HashingForest(
        normals=np.concatenate([np.empty((0, dim), dtype), *(n for t in trees
                                                             for n in t.normals)]),
        offsets=np.concatenate([np.empty(0, dtype), *(o for t in trees for o in t.offsets)]),
        children=np.concatenate(children), roots=np.array(roots, np.int64),
        leaf_starts=np.concatenate([[0], np.cumsum([len(leaf) for leaf in leaves])]),
        leaf_rows=np.concatenate(leaves).astype(np.int32))
