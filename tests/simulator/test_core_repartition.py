"""Changes of layout: a judge that moves single elements, and the table's patterns by hand."""

import random
from collections import Counter
from itertools import product
from math import prod

import pytest

from vision.simulator.core.repartition import Placed, repartition, seconds_of, volume


def price(kind, num_bytes, ranks):
    """Nodes of four ranks; a byte a second inside, two between, and a second to begin."""
    crossing = len({rank // 4 for rank in ranks}) > 1
    num = len(ranks)
    factor = dict(all_reduce=2 * (num - 1) / num, p2p=1, h2d=1, d2h=1).get(kind, (num - 1) / num)
    return 1 + factor * num_bytes * (2 if crossing else 1)


def cells(box):
    return set(product(*(range(*side) for side in box)))


class Judge:
    """What each rank has, element by element: the set of summands that are in it."""

    def __init__(self, written):
        self.has = {False: {}, True: {}}
        for box, ranks in zip(written.boxes, written.ranks, strict=True):
            for at, rank in enumerate(ranks):
                self.has[written.is_host][rank] = {
                    cell: frozenset([at % written.sums]) for cell in cells(box)}
        self.sums = frozenset(range(written.sums))
        self.received = Counter()

    def values(self, rank):
        return self.has[False].setdefault(rank, {})

    def play(self, phase):
        before = {rank: dict(own) for rank, own in self.has[False].items()}
        for each in phase.transfers:
            box = cells(each.box)
            if each.kind in ('h2d', 'd2h'):
                rank, = each.ranks
                own = self.has[each.kind == 'h2d'].get(rank, {})
                self.has[each.kind == 'd2h'].setdefault(rank, {}).update(
                    {cell: own[cell] for cell in box})
            elif each.kind == 'p2p':
                source, target = each.ranks
                self.take(target, {cell: before[source][cell] for cell in box})
            elif each.kind in ('all_reduce', 'reduce_scatter'):
                total = {cell: frozenset().union(*(before[rank][cell] for rank in each.ranks))
                         for cell in box}
                assert sum(len(before[rank][min(box)]) for rank in each.ranks) == len(
                    total[min(box)])  # nothing is added twice
                sizes = set()
                for rank in each.ranks:
                    own = cells(phase.after.box_of[rank]) & box
                    self.has[False][rank] = {cell: total[cell] for cell in own}
                    sizes.add(len(own))
                assert sizes == {len(box) // (1 if each.kind == 'all_reduce' else len(each.ranks))}
            else:
                self.exchange(each, before, box, phase.after)

    def exchange(self, each, before, box, after):
        roots = {'scatter': (each.ranks[:1], each.ranks), 'gather': (each.ranks, each.ranks[:1])}
        sources, targets = roots.get(each.kind, (each.ranks, each.ranks))
        sent = Counter()
        for target in targets:
            for cell in cells(after.box_of.get(target, ())) if target in after.box_of else ():
                holder = next((rank for rank in (target, *sources)
                               if cell in before.get(rank, {})), None)
                if holder is not None and holder != target and cell in box:
                    self.take(target, {cell: before[holder][cell]})
                    sent[holder, target] += 1
        assert len(set(sent.values())) == 1, 'a collective moves equal parts'
        size, num = next(iter(sent.values())), len(each.ranks)
        expected = {'all_gather': num * size, 'all_to_all': num * size, 'scatter': num * size,
                    'gather': num * size}[each.kind]
        assert each.num_bytes == 4 * expected
        if each.kind in ('all_gather', 'all_to_all'):
            assert len(sent) == num * (num - 1)

    def take(self, target, values):
        self.values(target).update(values)
        self.received[target] += len(values)


def judge(written, read, phases):
    play = Judge(written)
    for phase in phases:
        play.play(phase)
        for rank, box in phase.after.box_of.items():
            assert cells(box) <= set(play.has[phase.after.is_host].get(rank, {}))
    for rank, box in read.box_of.items():
        own = play.has[read.is_host][rank]
        assert all(own[cell] == play.sums for cell in cells(box))
    return play


def grid(shape, parts, ranks, **more):
    """Ranks over parts in order, as many to each."""
    size = len(ranks) // prod(parts)
    return Placed(shape, parts, tuple(tuple(ranks[at:at + size])
                                      for at in range(0, len(ranks), size)), **more)


SHAPE, FOUR = (8, 8), (0, 1, 2, 3)
ROWS = grid(SHAPE, (4, 1), FOUR)
COLUMNS = grid(SHAPE, (1, 4), FOUR)
WHOLE = grid(SHAPE, (1, 1), FOUR)
SUMS = grid(SHAPE, (1, 1), FOUR, sums=4)
ONE = grid(SHAPE, (1, 1), (0,))
ELSEWHERE = grid(SHAPE, (4, 1), (4, 5, 6, 7))
BYTES = 4 * 64


@pytest.mark.parametrize('written, read, expected', [
    (ROWS, ROWS, []), (WHOLE, COLUMNS, []),
    (SUMS, WHOLE, [('all_reduce', FOUR, BYTES)]),
    (SUMS, ROWS, [('reduce_scatter', FOUR, BYTES)]),
    (SUMS, COLUMNS, [('reduce_scatter', FOUR, BYTES)]),
    (ROWS, WHOLE, [('all_gather', FOUR, BYTES)]),
    (ROWS, COLUMNS, [('all_to_all', FOUR, BYTES // 4)]),
    (ONE, ROWS, [('scatter', FOUR, BYTES)]),
    (COLUMNS, ONE, [('gather', FOUR, BYTES)]),
    (ROWS, ELSEWHERE, [('p2p', (k, k + 4), BYTES // 4) for k in FOUR]),
    # Both parts of each group of two are gathered inside the node, not over all four.
    (grid(SHAPE, (2, 1), FOUR), WHOLE, [('all_gather', (0, 2), BYTES),
                                        ('all_gather', (1, 3), BYTES)]),
    # Two groups of two ranks, each a group's sum.
    (grid(SHAPE, (2, 1), FOUR, sums=2), grid(SHAPE, (2, 1), FOUR),
     [('all_reduce', (0, 1), BYTES // 2), ('all_reduce', (2, 3), BYTES // 2)]),
    (grid(SHAPE, (4, 1), FOUR, is_host=True), ROWS, [('h2d', (k,), BYTES // 4) for k in FOUR]),
    (ROWS, grid(SHAPE, (4, 1), FOUR, is_host=True), [('d2h', (k,), BYTES // 4) for k in FOUR]),
    (grid(SHAPE, (1, 1), FOUR, is_host=True), ROWS, [('h2d', (k,), BYTES // 4) for k in FOUR]),
])
def test_the_patterns_of_the_table(written, read, expected):
    phases = repartition(written, read, 4, price)
    found = [(each.kind, each.ranks, each.num_bytes) for phase in phases
             for each in phase.transfers]
    assert found == expected
    judge(written, read, phases)


def test_sums_for_other_ranks_are_scattered_first():
    """Each of four ranks sends a quarter: less than one that sends all of it."""
    read = grid(SHAPE, (1, 1), (4,))
    phases = repartition(SUMS, read, 4, price)
    kinds = [sorted({each.kind for each in phase.transfers}) for phase in phases]
    assert kinds[0] == ['reduce_scatter'] and len(phases) == 2
    judge(SUMS, read, phases)


def test_the_source_is_the_replica_with_the_best_link():
    written = Placed((8,), (1,), ((0, 5),))
    phase, = repartition(written, Placed((8,), (1,), ((4,),)), 4, price)
    assert [each.ranks for each in phase.transfers] == [(5, 4)]
    phase, = repartition(written, Placed((8,), (2,), ((1, 2), (6, 7))), 4, price)
    assert sorted(each.ranks for each in phase.transfers) == [(0, 1), (0, 2), (5, 6), (5, 7)]
    # One after the other from each source.
    assert seconds_of(phase, price) == 2 * (1 + 16)


def random_layout(rng, shape, ranks, sums):
    parts = tuple(rng.choice((1, 2, 3, 4)) for _ in shape)
    while prod(parts) * sums > len(ranks):
        parts = tuple(rng.choice((1, 2, 3)) for _ in shape)
    copies = rng.randint(1, len(ranks) // (prod(parts) * sums))
    chosen = rng.sample(ranks, prod(parts) * sums * copies)
    return grid(shape, parts, chosen, sums=sums, is_host=rng.random() < 0.1)


@pytest.mark.parametrize('seed', range(200))
def test_any_change_delivers_all_elements(seed):
    """And single messages are exactly the elements that readers lack, counted one by one."""
    rng = random.Random(seed)
    shape = (rng.choice((6, 8, 12)), rng.choice((5, 8)))
    ranks = list(range(8))
    written = random_layout(rng, shape, ranks, rng.choice((1, 1, 2, 4)))
    read = random_layout(rng, shape, ranks, 1)
    phases = repartition(written, read, 4, price)
    judge(written, read, phases)
    if written.sums == 1 and not written.is_host and not read.is_host:
        lacking = sum(len(cells(box) - cells(written.box_of.get(rank, ((0, 0), (0, 0)))))
                      for rank, box in read.box_of.items())
        sent = sum(each.num_bytes if each.kind == 'p2p' else 0
                   for phase in phases for each in phase.transfers)
        joined = sum(dict(all_gather=len(each.ranks) - 1, all_to_all=len(each.ranks) - 1).get(
            each.kind, (len(each.ranks) - 1) / len(each.ranks)) * each.num_bytes
            for phase in phases for each in phase.transfers if each.kind != 'p2p')
        assert sent + joined == 4 * lacking
        assert all(each.num_bytes == 4 * volume(each.box) for phase in phases
                   for each in phase.transfers if each.kind == 'p2p')
