"""A program of one rank that stands for all, written out for each of them: the judge of that."""

from dataclasses import replace

from vision.simulator.core.program import FEATURE, GRADIENT


def unfolded(program, dp, tp):
    """Collectives join the ranks of their group: of gradients those with other parts of the batch,
    of features those with the other parts of them. Without ZeRO, whose gathers are of neither."""
    ranks = range(dp * tp)
    members = {FEATURE: lambda rank: tuple(range(rank - rank % tp, rank - rank % tp + tp)),
               GRADIENT: lambda rank: tuple(range(rank % tp, dp * tp, tp))}
    nodes, number = [], {}
    for index, node in enumerate(program.nodes):
        for rank in ranks:
            together = members.get(node.stream, lambda rank: (rank,))(rank)
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
