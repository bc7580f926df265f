"""Memory in the order in which a rank's host issues its nodes.

torch's caching allocator gives out and takes back memory when the host says so, not when a device
gets there, so this is what a process reserves; over time, see ``memory``.
"""

from __future__ import annotations

from collections import Counter

from vision.simulator.core.program import Program


def peak_in_issue_order(program: Program, rank: int = 0) -> tuple[int, dict[str, int]]:
    """(bytes at the highest moment, of what by category), of tensors alone."""
    mine = {name: each for name, each in program.buffers.items() if each.rank == rank}
    begun = {name for node in program.nodes for name in node.begins}
    now: Counter[str] = Counter()
    for name, each in mine.items():
        if name not in begun:
            now[each.category] += each.num_bytes
    peak = Counter(now)
    total = highest = sum(now.values())
    for node in program.nodes:
        if rank not in node.ranks:
            continue
        for sign, names in ((1, node.begins), (-1, node.ends)):
            for name in names:
                if name in mine:
                    now[mine[name].category] += sign * mine[name].num_bytes
                    total += sign * mine[name].num_bytes
            if total > highest:
                highest, peak = total, Counter(now)
    return highest, {name: size for name, size in peak.items() if size}
