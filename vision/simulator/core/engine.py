"""Let time pass over a program: discrete events, shared links, slow-downs, and what never ends.

The order inside of a stream is kept by making each node wait for the one before it, so a node
waits for nodes alone, and all state is one count for each.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count

from vision.common.core.errors import VisionError
from vision.simulator.core.outcome import Outcome
from vision.simulator.core.program import STREAMS, TRANSFER, Node, Program
from vision.simulator.core.sharing import SharedLinks


def run(program: Program) -> Outcome:
    """Times of all nodes. The same program gives the same bits.

    A node waits for ``after``, and on each of its ranks for the node before it on its stream
    (none on TRANSFER). Then its latency passes, then it works: ``seconds``, and beside that the
    bytes of its flows, at rates that are shared anew whenever flows begin or end. What runs beside
    it on one of its ranks slows it, and its flows, to 1 / (1 + g) for as long as both are there;
    with several streams beside it their g are added, and of several ranks the slowest counts (our
    choice). A node counts as running from its begin, its latency included; while it waits for
    other ranks it does not.

    Raises:
        VisionError: VIS-CONFIG-1601, nodes that wait for each other.
    """
    _check(program)
    play = _Run(program)
    play.all()
    if play.num_ended < len(program.nodes):
        raise _stuck(program, play.ends)
    return Outcome(program, tuple(play.starts), tuple(play.ends))


def _check(program: Program) -> None:
    """Front ends are ours, so what is broken here is our mistake."""
    ranks, numbers = range(program.num_ranks), range(len(program.nodes))
    for node in program.nodes:
        assert node.stream in STREAMS, f'{node.name}: no stream {node.stream}'
        assert node.seconds >= 0 and node.latency >= 0, f'{node.name}: seconds below 0'
        assert all(rank in ranks for rank in node.ranks), f'{node.name}: no rank {node.ranks}'
        assert all(each in numbers for each in node.after), f'{node.name} waits for no node'
        for flow in node.flows:
            for link in flow.links:
                assert program.links.get(link, 0) > 0, f'{node.name}: no link {link}'


class _Work:
    """One amount that a node has to do: seconds, or the bytes of a flow."""

    __slots__ = ('left', 'node', 'number', 'rate', 'share', 'since')

    def __init__(self, node: int, left: float, now: float) -> None:
        self.node, self.left, self.since = node, left, now
        self.rate = 0.0  # amounts per second, now
        self.share = 1.0  # the same without slow-down
        self.number = 0  # of the event at which it is done; earlier ones no longer count


class _Run:
    """State of ``run``. ``waits`` counts what a node still waits for; heap entries are (time,
    node, number, what): the end of a latency, of a work, or of the node."""

    def __init__(self, program: Program) -> None:
        self.nodes = nodes = program.nodes
        self.starts: list[float] = [0.0] * len(nodes)
        self.ends: list[float | None] = [None] * len(nodes)
        self.num_ended = 0
        self.readers: list[list[int]] = [[] for _ in nodes]
        self.waits = [0] * len(nodes)
        for number, before in befores(program):
            self.readers[before].append(number)
            self.waits[number] += 1
        self.heap: list[tuple] = []
        self.numbers = count(1)
        self.works: dict[int, list[_Work]] = {}  # of nodes that share or are slowed
        self.links = SharedLinks(program.links)
        self.slowdowns = program.slowdowns
        self.slowed = {stream for (stream, _), g in program.slowdowns.items() if g}
        self.seen = self.slowed | {beside for (_, beside), g in program.slowdowns.items() if g}
        # By rank: running nodes of each stream that slows or is slowed.
        self.running: list[dict[int, str]] = [{} for _ in range(program.num_ranks)]
        self.changed_ranks: dict[int, None] = {}

    def all(self) -> None:
        heap = self.heap
        for number, waits in enumerate(self.waits):
            if not waits:
                self._begin(number, 0.0)
        self._settle(0.0)
        while heap:
            now = heap[0][0]
            while heap and heap[0][0] == now:
                _, node, number, what = heapq.heappop(heap)
                if what is None:
                    self._end(node, now)
                elif what == 'latency':
                    self._work(node, now)
                elif what.number == number:
                    self._finish(what, now)
            self._settle(now)

    def _begin(self, number: int, now: float) -> None:
        node = self.nodes[number]
        self.starts[number] = now
        is_slowed = node.stream in self.slowed
        if not node.flows and not is_slowed:
            end = now + node.latency + node.seconds
            heapq.heappush(self.heap, (end, number, 0, None))
            if node.stream in self.seen and end > now:
                self._mark(node, number)
            return
        if node.stream in self.seen:
            self._mark(node, number)
        if node.latency:
            heapq.heappush(self.heap, (now + node.latency, number, 0, 'latency'))
        else:
            self._work(number, now)

    def _work(self, number: int, now: float) -> None:
        node = self.nodes[number]
        works = [_Work(number, node.seconds, now)] if node.seconds else []
        for flow in node.flows:
            if flow.num_bytes and flow.links:
                work = _Work(number, flow.num_bytes, now)
                self.links.add(work, flow.links)
                works.append(work)
        if not works:
            heapq.heappush(self.heap, (now, number, 0, None))
            return
        self.works[number] = works
        if node.seconds:
            self._set_rate(works[0], 1.0 / self._factor(number), now)

    def _finish(self, work: _Work, now: float) -> None:
        if work in self.links:
            self.links.remove(work)
        works = self.works[work.node]
        works.remove(work)
        if not works:
            del self.works[work.node]
            self._end(work.node, now)

    def _end(self, number: int, now: float) -> None:
        self.ends[number] = now
        self.num_ended += 1
        node = self.nodes[number]
        if node.stream in self.seen:
            for rank in node.ranks:
                if self.running[rank].pop(number, None) is not None:
                    self.changed_ranks[rank] = None
        for reader in self.readers[number]:
            self.waits[reader] -= 1
            if not self.waits[reader]:
                self._begin(reader, now)

    def _mark(self, node: Node, number: int) -> None:
        for rank in node.ranks:
            self.running[rank][number] = node.stream
            self.changed_ranks[rank] = None

    def _settle(self, now: float) -> None:
        """All that begins or ends at this moment has: new shares, then new rates."""
        if self.changed_ranks:
            touched = dict.fromkeys(number for rank in self.changed_ranks
                                    for number in self.running[rank] if number in self.works)
            self.changed_ranks = {}
        else:
            touched = {}
        for work, share in self.links.new_rates().items():
            work.share = share
            touched[work.node] = None
        for number in touched:
            factor = self._factor(number)
            for work in self.works[number]:
                self._set_rate(work, work.share / factor, now)

    def _factor(self, number: int) -> float:
        """How many times longer the node takes now."""
        node = self.nodes[number]
        if node.stream not in self.slowed:
            return 1.0
        most = 0.0
        for rank in node.ranks:
            beside = dict.fromkeys(stream for other, stream in self.running[rank].items()
                                   if other != number)
            if beside:
                most = max(most, sum(self.slowdowns.get((node.stream, stream), 0.0)
                                     for stream in sorted(beside)))
        return 1.0 + most

    def _set_rate(self, work: _Work, rate: float, now: float) -> None:
        if rate == work.rate:
            return  # its end stays the same bits
        work.left = max(0.0, work.left - (now - work.since) * work.rate)
        work.since, work.rate, work.number = now, rate, next(self.numbers)
        heapq.heappush(self.heap, (now + work.left / rate, work.node, work.number, work))


def befores(program: Program) -> Iterator[tuple[int, int]]:
    """(node, one that has to end before it begins): by ``after``, or on a stream of both."""
    last: dict[tuple[int, str], int] = {}
    for number, node in enumerate(program.nodes):
        for before in node.after:
            yield number, before
        if node.stream != TRANSFER:
            for rank in node.ranks:
                key = rank, node.stream
                if key in last:
                    yield number, last[key]
                last[key] = number


def _stuck(program: Program, ends: list[float | None]) -> VisionError:
    """VIS-CONFIG-1601 with one cycle of nodes that wait for each other."""
    waits_for: dict[int, int] = {}
    for number, before in befores(program):
        if ends[number] is None and ends[before] is None:
            waits_for.setdefault(number, before)
    seen: dict[int, None] = {}
    number = min(waits_for)
    while number not in seen:
        seen[number] = None
        number = waits_for[number]
    order = list(seen)
    cycle = order[order.index(number):]
    parts = []
    for each in cycle:
        node, before = program.nodes[each], program.nodes[waits_for[each]]
        if waits_for[each] in node.after:
            parts.append(f'waits for {before.name}')
        else:
            rank = min(set(node.ranks) & set(before.ranks))
            parts.append(f'stands behind {before.name} on the {node.stream} stream of rank {rank}')
    return VisionError(
        'VIS-CONFIG-1601', f'the step would never end: {program.nodes[cycle[0]].name} '
        + ', which '.join(parts),
        where=f'{len(program.nodes) - sum(end is not None for end in ends)} of '
        f'{len(program.nodes)} nodes never begin',
        why='each stream does its nodes in order, and a node begins when all that it waits for '
        'has ended', do='change the order of one of these, or what it waits for')
