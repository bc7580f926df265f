"""Ranks that do the same at the same time, simulated once.

Ranks, nodes and links are sorted into classes until all of one class look alike: a node by what it
does, the classes of its ranks and links and of the nodes that it waits for; a rank by the classes
of its nodes and buffers in order; a link by its bandwidth and the classes of the flows that cross
it. Then all nodes of a class begin and end at the same time. For suppose that it is true up to a
moment: they wait for the same, so they begin together; what runs beside them is of the same
classes, so they are slowed alike; and of the shares that are max-min fair there is one set alone,
so flows of one class, on links with equal crowds, have equal rates. (Our choice; what this finds
is the coarsest equitable partition, which symmetries of the program refine.)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from vision.simulator.core.engine import befores
from vision.simulator.core.program import TRANSFER, Flow, Program


@dataclass(frozen=True)
class Folded:
    """A smaller program with the same times.

    Args:
        program: of one rank of each class; ``replicas`` is multiplied.
        rank_of, node_of: its rank and node for each of the whole program.
    """

    program: Program
    rank_of: tuple[int, ...]
    node_of: tuple[int, ...]


def fold(program: Program) -> Folded:
    """Simulate one rank of each class; exact, to the bit.

    A program whose classes are not of equal size comes back as it is: ``replicas`` is one number.
    So does one whose nodes wait for each other.
    """
    whole = Folded(program, tuple(range(program.num_ranks)), tuple(range(len(program.nodes))))
    waits: list[list[int]] = [[] for _ in program.nodes]
    for number, before in befores(program):
        waits[number].append(before)
    order = _order(waits)
    if len(order) < len(program.nodes):
        return whole
    classes = _Classes(program, waits, order)
    classes.refine()
    sizes = set(Counter(classes.of_rank).values())
    if sizes == {1} or len(sizes) != 1:
        return whole
    return _folded(program, classes, sizes.pop())


def _order(befores: Sequence[Sequence[int]]) -> list[int]:
    """Nodes behind all that they wait for; fewer than all if some never begin."""
    readers: list[list[int]] = [[] for _ in befores]
    waits = [len(each) for each in befores]
    for number, each in enumerate(befores):
        for before in each:
            readers[before].append(number)
    order = [number for number, count in enumerate(waits) if not count]
    for number in order:
        for reader in readers[number]:
            waits[reader] -= 1
            if not waits[reader]:
                order.append(reader)
    return order


class _Classes:
    """Classes as whole numbers, from coarse to fine."""

    def __init__(self, program: Program, waits: Sequence[Sequence[int]], order: Sequence[int]
                 ) -> None:
        self.program, self.waits, self.order = program, waits, order
        self.of_rank = [0] * program.num_ranks
        self.of_link = dict.fromkeys(program.links, 0)
        self.of_node = [0] * len(program.nodes)
        self.nodes_on: list[list[tuple[str, int]]] = [[] for _ in self.of_rank]
        for number, node in enumerate(program.nodes):
            for rank in node.ranks:
                self.nodes_on[rank].append((node.stream, number))
        self.crossing: dict[str, list[tuple[int, int]]] = defaultdict(list)  # node, flow
        for number, node in enumerate(program.nodes):
            for k, flow in enumerate(node.flows):
                for link in flow.links:
                    self.crossing[link].append((number, k))
        self.buffers_on: list[list[str]] = [[] for _ in self.of_rank]
        for name, buffer in program.buffers.items():
            self.buffers_on[buffer.rank].append(name)

    def refine(self) -> None:
        found = None
        while found != (found := self._round()):
            pass

    def _round(self) -> tuple[int, int, int]:
        """Number of classes of each sort. A round only splits: what it looked at before is looked
        at again, in classes that are finer."""
        program = self.program
        nodes: dict[Hashable, int] = {}
        for number in self.order:  # what it waits for has its class of this round already
            self.of_node[number] = nodes.setdefault(self._sign_node(number), len(nodes))
        begins, ends = defaultdict(list), defaultdict(list)
        for number, node in enumerate(program.nodes):
            for name in node.begins:
                begins[name].append(self.of_node[number])
            for name in node.ends:
                ends[name].append(self.of_node[number])
        seen: dict[Hashable, int] = {}
        self.of_rank = [seen.setdefault(self._sign_rank(rank, begins, ends), len(seen))
                        for rank in range(program.num_ranks)]
        links: dict[Hashable, int] = {}
        self.of_link = {link: links.setdefault(self._sign_link(link), len(links))
                        for link in program.links}
        return len(nodes), len(seen), len(links)

    def _sign_node(self, number: int) -> Hashable:
        node = self.program.nodes[number]
        return (node.kind, node.stream, node.seconds, node.latency,
                tuple(sorted(self.of_rank[rank] for rank in node.ranks)),
                tuple((flow.num_bytes, tuple(sorted(self.of_link[link] for link in flow.links)))
                      for flow in node.flows),
                tuple(sorted(self.of_node[before] for before in self.waits[number])))

    def _sign_rank(self, rank: int, begins: dict[str, list[int]], ends: dict[str, list[int]]
                   ) -> Hashable:
        streams: dict[str, list[int]] = defaultdict(list)
        for stream, number in self.nodes_on[rank]:
            streams[stream].append(self.of_node[number])
        for stream, numbers in streams.items():
            if stream == TRANSFER:  # has no order
                numbers.sort()
        buffers = []
        for name in self.buffers_on[rank]:
            buffer = self.program.buffers[name]
            buffers.append((buffer.num_bytes, buffer.category, tuple(sorted(begins[name])),
                            tuple(sorted(ends[name]))))
        return tuple(sorted((stream, tuple(numbers)) for stream, numbers in streams.items())), \
            tuple(sorted(buffers))

    def _sign_link(self, link: str) -> Hashable:
        return self.program.links[link], tuple(sorted(
            (self.of_node[number], k) for number, k in self.crossing[link]))


def _folded(program: Program, classes: _Classes, size: int) -> Folded:
    """One of each class: the first."""
    rank_number = {own: k for k, own in enumerate(dict.fromkeys(classes.of_rank))}
    rank_of = tuple(rank_number[own] for own in classes.of_rank)
    kept_rank = {own: rank for rank, own in reversed(list(enumerate(classes.of_rank)))}
    kept_link = {own: link for link, own in reversed(classes.of_link.items())}
    members: dict[int, list[int]] = {}
    for number, own in enumerate(classes.of_node):
        # In the order of the first: of two on a stream it is the same one on each rank.
        members.setdefault(own, []).append(number)
    node_number = {own: k for k, own in enumerate(members)}
    kept_buffers = {name: replace(buffer, rank=rank_of[buffer.rank])
                    for name, buffer in program.buffers.items()
                    if kept_rank[classes.of_rank[buffer.rank]] == buffer.rank}
    crowds = {link: Counter((classes.of_node[number], k) for number, k in classes.crossing[link])
              for link in kept_link.values()}

    def flow_of(own: int, k: int, flow: Flow) -> Flow:
        links = [kept_link[each] for each in dict.fromkeys(
            classes.of_link[link] for link in flow.links)]
        return Flow(tuple(link for link in links for _ in range(crowds[link][own, k])),
                    flow.num_bytes)

    def buffers_of(field: str, numbers: Sequence[int]) -> tuple[str, ...]:
        return tuple(name for number in numbers for name in getattr(program.nodes[number], field)
                     if name in kept_buffers)

    nodes = []
    for own, numbers in members.items():
        node = program.nodes[numbers[0]]
        nodes.append(replace(
            node, ranks=tuple(sorted({rank_of[rank] for rank in node.ranks})),
            flows=tuple(flow_of(own, k, flow) for k, flow in enumerate(node.flows)),
            after=tuple(sorted({node_number[classes.of_node[each]] for each in node.after})),
            begins=buffers_of('begins', numbers), ends=buffers_of('ends', numbers)))
    folded = replace(program, num_ranks=len(kept_rank), nodes=tuple(nodes), buffers=kept_buffers,
                     links={link: program.links[link] for link in kept_link.values()},
                     replicas=program.replicas * size)
    return Folded(folded, rank_of, tuple(node_number[own] for own in classes.of_node))
