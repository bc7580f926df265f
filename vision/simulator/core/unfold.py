"""A program of one rank that stands for all, written out for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vision.simulator.core.program import Node, Program


def unfolded(program: Program, groups: Sequence[str], dp: int, tp: int) -> Program:
    """The program of one rank written out for all: collectives join the ranks of their group."""
    ranks = range(dp * tp)
    members = {'': lambda rank: (rank,), 'tp': lambda rank: tuple(
        range(rank - rank % tp, rank - rank % tp + tp)),
        'dp': lambda rank: tuple(range(rank % tp, dp * tp, tp))}
    nodes: list[Node] = []
    number: dict[tuple[int, int], int] = {}
    for index, (node, group) in enumerate(zip(program.nodes, groups, strict=True)):
        for rank in ranks:
            together = members[group](rank)
            if together[0] != rank:
                continue
            after = {number[before, each] for before in node.after for each in together}
            for each in together:
                number[index, each] = len(nodes)
            nodes.append(replace(
                node, ranks=together, after=tuple(sorted(after)),
                begins=tuple(f'{name}@{each}' for each in together for name in node.begins),
                ends=tuple(f'{name}@{each}' for each in together for name in node.ends)))
    buffers = {f'{name}@{rank}': replace(each, rank=rank)
               for name, each in program.buffers.items() for rank in ranks}
    return replace(program, num_ranks=dp * tp, nodes=tuple(nodes), buffers=buffers, replicas=1)
