"""A training step as nodes on streams of ranks: what every front end makes and the engine runs.

Numbers are never computed; clocks of streams and links, and lifetimes of buffers, advance. After
the distributed execution graph of Proteus (Duan et al., arXiv:2306.02267); names and shape of this
form are our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Streams of a rank: each does its nodes in the order in which the program has them.
COMPUTE, FEATURE, GRADIENT, H2D, D2H = 'compute', 'feature', 'gradient', 'h2d', 'd2h'
# What is on this one has no order: messages between two ranks do not wait for each other.
TRANSFER = 'transfer'
STREAMS = (COMPUTE, FEATURE, GRADIENT, H2D, D2H, TRANSFER)
# What buffers are for; peaks are reported by it.
CATEGORIES = ('parameters', 'gradients', 'optimizer', 'activations', 'inputs', 'temporary',
              'communication')


@dataclass(frozen=True, slots=True)
class Flow:
    """Bytes that cross links together, at the rate of the slowest; one rank may have several.

    Args:
        links: names of links of the program, in any order; one that is named k times carries k
            such flows (of ranks that this one stands for).
        num_bytes: through each of them.
    """

    links: tuple[str, ...]
    num_bytes: float


@dataclass(frozen=True, slots=True)
class Node:
    """Something that takes time on one rank, or on several together (a collective, a transfer).

    It begins when all of ``after`` have ended and it is at the head of its stream on each of its
    ranks. It takes ``seconds``, or as long as its flows need beside those of others, whichever is
    longer; both after ``latency``.

    Args:
        name: for people; what it is, of which module.
        kind: 'F', 'I', 'W', 'B', 'recompute', 'optimizer', 'all_reduce', 'all_gather',
            'reduce_scatter', 'send', 'h2d', ...
        ranks: that take part.
        stream: of each of its ranks.
        seconds: alone, without anything beside it.
        after: nodes, by their number in the program, all lower than its own or not: cycles are
            found when it is run.
        begins, ends: buffers by name that come into being when it begins, and that may go when it
            has ended, on each of its ranks that has them.
        stage, mb: of a pipeline's action, so that a table can be told back.
    """

    name: str
    kind: str
    ranks: tuple[int, ...]
    stream: str = COMPUTE
    seconds: float = 0.0
    latency: float = 0.0
    flows: tuple[Flow, ...] = ()
    after: tuple[int, ...] = ()
    begins: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    stage: int | None = None
    mb: int | None = None


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory of one rank. One that no node begins is there from the start; one that no node ends
    stays."""

    rank: int
    num_bytes: int
    category: str


@dataclass(frozen=True)
class Program:
    """One step of all ranks.

    Args:
        num_ranks: simulated; each may stand for several that do the same (``replicas``).
        nodes: streams do them in this order.
        buffers: by name.
        links: bytes per second by name.
        slowdowns: by (stream of a node, stream of what runs beside it on the same rank): how much
            longer it takes, 0.1 for a tenth, on the part of it that overlaps.
        replicas: ranks of the real run for each simulated one.
        name, unit: of the action table that it was made from.
    """

    num_ranks: int
    nodes: tuple[Node, ...]
    buffers: Mapping[str, Buffer] = field(default_factory=dict)
    links: Mapping[str, float] = field(default_factory=dict)
    slowdowns: Mapping[tuple[str, str], float] = field(default_factory=dict)
    replicas: int = 1
    name: str = ''
    unit: int | None = None
