"""From the layout in which a tensor is written to the one in which it is read: the cheapest
collectives that bring it there.

The patterns are those of Proteus's table (Duan et al., arXiv:2306.02267, section on its graph
compiler), and like there what fits none of them is sent piece by piece, never refused. Ours: that
ways of several steps are tried (sums made whole or scattered first) and the cheapest is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod

# Half-open intervals of elements, one a dimension.
Box = tuple[tuple[int, int], ...]
ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER = 'all_reduce', 'all_gather', 'reduce_scatter'
SCATTER, GATHER, ALL_TO_ALL = 'scatter', 'gather', 'all_to_all'
P2P, H2D, D2H = 'p2p', 'h2d', 'd2h'


@dataclass(frozen=True)
class Placed:
    """Where a tensor is.

    Args:
        shape: of the whole tensor, in elements.
        parts: along each dimension; part i of n of a side s is [i * s // n, (i + 1) * s // n).
        ranks: by part, the last dimension fastest: those that have it, each the same.
        sums: partial sums. ``ranks`` of a part are groups of as many neighbours, and what a group
            has adds up to the part; 1: nothing is left to add.
        is_host: in the memory of the ranks' hosts.
    """

    shape: tuple[int, ...]
    parts: tuple[int, ...]
    ranks: tuple[tuple[int, ...], ...]
    sums: int = 1
    is_host: bool = False

    def __post_init__(self) -> None:
        everywhere = [rank for each in self.ranks for rank in each]
        assert len(self.shape) == len(self.parts) and len(self.ranks) == prod(self.parts), self
        assert all(each and not len(each) % self.sums for each in self.ranks), self
        assert len(set(everywhere)) == len(everywhere), f'a rank has two parts: {self}'

    @cached_property
    def boxes(self) -> tuple[Box, ...]:
        """Where each part lies in the whole tensor."""
        sides = [[(i * size // n, (i + 1) * size // n) for i in range(n)]
                 for size, n in zip(self.shape, self.parts, strict=True)]
        return tuple(product(*sides))

    @cached_property
    def box_of(self) -> dict[int, Box]:
        """Where the part of each rank lies in the whole tensor."""
        return {rank: box for box, ranks in zip(self.boxes, self.ranks, strict=True)
                for rank in ranks}


@dataclass(frozen=True)
class Transfer:
    """One message, or one collective, that brings parts of a tensor to other ranks.

    Args:
        kind: a collective, 'p2p', 'h2d' or 'd2h'.
        ranks: that take part; a root first, of 'p2p' the source and the target.
        num_bytes: as prices count them: of the whole of the ranks' parts together; of 'all_to_all'
            those of one rank; of 'p2p' and copies what is sent.
        box: of the tensor that is sent.
    """

    kind: str
    ranks: tuple[int, ...]
    num_bytes: float
    box: Box


@dataclass(frozen=True)
class Phase:
    """Transfers that begin together, and the layout behind them."""

    transfers: tuple[Transfer, ...]
    after: Placed


# Seconds of a transfer from its kind, bytes and ranks.
Price = Callable[[str, float, Sequence[int]], float]


def overlap(one: Box, other: Box) -> Box | None:
    """What both have, None if that is nothing."""
    found = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return found if all(low < high for low, high in found) else None


def volume(box: Box) -> int:
    """Elements."""
    return prod(high - low for low, high in box)


def seconds_of(phase: Phase, price: Price) -> float:
    """Collectives of a phase have ranks of their own; of single messages a rank sends one after
    the other, and takes in one after the other, both at once."""
    longest, sent, taken = 0.0, Counter(), Counter()
    for each in phase.transfers:
        took = price(each.kind, each.num_bytes, each.ranks)
        if each.kind == P2P:
            sent[each.ranks[0]] += took
            taken[each.ranks[1]] += took
        longest = max(longest, took)
    return max((longest, *sent.values(), *taken.values()))


def repartition(written: Placed, read: Placed, element_bytes: float, price: Price
                ) -> tuple[Phase, ...]:
    """The cheapest way from one layout to another, in phases one after the other; none if each
    reader has what it needs. A part of what a rank has is taken out for nothing.

    Readers want whole values: ``read.sums`` is 1, or the layouts are equal.
    """
    assert written.shape == read.shape and (read.sums == 1 or written == read), (written, read)
    ways = _ways(written, read, element_bytes, price)
    return min(ways, key=lambda way: sum(seconds_of(phase, price) for phase in way))


def _ways(written: Placed, read: Placed, element_bytes: float, price: Price
          ) -> Iterator[tuple[Phase, ...]]:
    if written == read:
        yield ()
    elif written.is_host:
        lifted, copies = _copied(written, read, element_bytes)
        for way in _ways(lifted, read, element_bytes, price):
            yield (Phase(copies, lifted), *way)
    elif read.is_host:
        on_device = replace(read, is_host=False)
        copies = tuple(Transfer(D2H, (rank,), volume(box) * element_bytes, box)
                       for rank, box in read.box_of.items())
        for way in _ways(written, on_device, element_bytes, price):
            yield (*way, Phase(copies, read))
    elif written.sums > 1:
        for phase in _summed(written, read, element_bytes):
            for way in _ways(phase.after, read, element_bytes, price):
                yield (phase, *way)
    else:
        transfers = _sent(written, read, element_bytes, price)
        yield (Phase(tuple(transfers), read),) if transfers else ()


def _copied(written: Placed, read: Placed, element_bytes: float
            ) -> tuple[Placed, tuple[Transfer, ...]]:
    """From hosts to their own devices: what is read there, if the host has all of it; else what
    it has, to be sent on."""
    is_there = written.sums == 1 and all(
        overlap(box, written.box_of[rank]) == box if rank in written.box_of else False
        for rank, box in read.box_of.items())
    lifted = replace(read if is_there and not read.is_host else written, is_host=False)
    return lifted, tuple(Transfer(H2D, (rank,), volume(box) * element_bytes, box)
                         for rank, box in lifted.box_of.items())


def _summed(written: Placed, read: Placed, element_bytes: float) -> Iterator[Phase]:
    """Partial sums made whole: on all ranks of a group, or a part of it on each, along any
    dimension that divides."""
    groups = [(box, ranks[at:at + written.sums])
              for box, ranks in zip(written.boxes, written.ranks, strict=True)
              for at in range(0, len(ranks), written.sums)]

    def everywhere(kind: str) -> tuple[Transfer, ...]:
        return tuple(Transfer(kind, group, volume(box) * element_bytes, box)
                     for box, group in groups)

    yield Phase(everywhere(ALL_REDUCE), replace(written, sums=1))
    for dim, (side, num) in enumerate(zip(written.shape, written.parts, strict=True)):
        if side % (num * written.sums):
            continue
        finer = tuple(each * (written.sums if d == dim else 1)
                      for d, each in enumerate(written.parts))
        made: dict[tuple[int, ...], list[int]] = {}
        places = list(product(*map(range, written.parts)))
        for place, ranks in zip(places, written.ranks, strict=True):
            for at in range(0, len(ranks), written.sums):
                # Who reads what comes first there gets it.
                group = sorted(ranks[at:at + written.sums], key=lambda rank: read.box_of.get(
                    rank, written.box_of[rank])[dim])
                for k, rank in enumerate(group):
                    own = tuple(i * (written.sums if d == dim else 1) + (k if d == dim else 0)
                                for d, i in enumerate(place))
                    made.setdefault(own, []).append(rank)
        ranks = tuple(tuple(made[each]) for each in product(*map(range, finer)))
        yield Phase(everywhere(REDUCE_SCATTER), Placed(written.shape, finer, ranks))


def _sent(written: Placed, read: Placed, element_bytes: float, price: Price) -> list[Transfer]:
    """Of whole values: collectives where ranks and volumes make one, single messages else."""
    messages = _messages(written, read, element_bytes, price)
    transfers: list[Transfer] = []
    for ranks in _components(messages):
        own = [each for each in messages if each.ranks[0] in ranks]
        transfers += _pattern(own, ranks, written, read, element_bytes) or own
    return transfers


def _messages(written: Placed, read: Placed, element_bytes: float, price: Price
              ) -> list[Transfer]:
    """Each piece that a reader lacks, from the replica with the best link; of equal ones from the
    one that sends least so far."""
    load: Counter[int] = Counter()
    found = []
    for target, wanted in read.box_of.items():
        for box, holders in zip(written.boxes, written.ranks, strict=True):
            piece = overlap(wanted, box)
            if piece is None or target in holders:
                continue
            size = volume(piece) * element_bytes
            _, _, source = min((price(P2P, size, (rank, target)), load[rank], rank)
                               for rank in holders)
            load[source] += size
            found.append(Transfer(P2P, (source, target), size, piece))
    return found


def _components(messages: Sequence[Transfer]) -> list[tuple[int, ...]]:
    """Ranks that messages join, sorted."""
    group: dict[int, set[int]] = {}
    for each in messages:
        joined = set().union(*(group.get(rank, {rank}) for rank in each.ranks))
        group |= dict.fromkeys(joined, joined)
    return sorted({tuple(sorted(each)) for each in group.values()})


def _pattern(messages: Sequence[Transfer], ranks: tuple[int, ...], written: Placed, read: Placed,
             element_bytes: float) -> list[Transfer]:
    """One collective in the place of all messages between these ranks; empty if there is none."""
    sizes = {each.num_bytes for each in messages}
    num, pairs = len(ranks), {each.ranks for each in messages}
    if len(sizes) > 1 or len(messages) < 2 or len(pairs) < len(messages):
        return []
    size, = sizes
    sources, targets = ({each.ranks[k] for each in messages} for k in (0, 1))
    whole = _hull([each.box for each in messages])
    if _is_gathered(ranks, written.box_of, read.box_of):
        box = read.box_of[ranks[0]]
        return [Transfer(ALL_GATHER, ranks, volume(box) * element_bytes, box)]
    if len(pairs) == num * (num - 1):
        return [Transfer(ALL_TO_ALL, ranks, num * size, whole)]
    is_apart = len({each.box for each in messages}) == len(messages)
    for kind, roots in ((SCATTER, sources), (GATHER, targets)):
        if len(roots) == 1 and len(messages) == num - 1 and is_apart:
            root, = roots
            others = tuple(rank for rank in ranks if rank != root)
            return [Transfer(kind, (root, *others), num * size, whole)]
    return []


def _is_gathered(ranks: Sequence[int], has: Mapping[int, Box], wants: Mapping[int, Box]) -> bool:
    """Whether all want the same, which is what they have together, each an equal part."""
    if any(rank not in has or rank not in wants for rank in ranks):
        return False
    first = wants[ranks[0]]
    return all(wants[rank] == first and overlap(has[rank], first) == has[rank]
               and volume(has[rank]) * len(ranks) == volume(first) for rank in ranks) \
        and len({has[rank] for rank in ranks}) == len(ranks)


def _hull(boxes: Sequence[Box]) -> Box:
    return tuple((min(low for low, _ in sides), max(high for _, high in sides))
                 for sides in zip(*boxes, strict=True))
