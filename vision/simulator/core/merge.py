"""Operators that make one node together, so that programs are small and memory stays exact."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from vision.simulator.core.graph import FORWARD, ModuleGraph


@dataclass(frozen=True)
class Span:
    """Operators [begin, end).

    Args:
        begins: tensors that are there behind it, and were not before.
        ends: tensors that were there before, and are not behind it.
        transient_bytes: at its highest moment beyond what was there before and begins.
    """

    begin: int
    end: int
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    transient_bytes: int


def spans(graph: ModuleGraph, cuts: Collection[int]) -> Iterator[Span]:
    """The whole pass, cut at these indices, where the innermost module or forward and backward
    change, and where one more operator would make the node's memory wrong: a node has all that it
    begins from its start to its end, so what it frees early may not make room for what comes late.
    """
    begin = 0
    cuts = set(cuts)
    while begin < len(graph.ops):
        end, found = begin, None
        live = peak = 0
        begun: dict[int, None] = {}
        ended: dict[int, None] = {}
        for end in range(begin, len(graph.ops)):
            op = graph.ops[end]
            if end > begin and (end in cuts or not _goes_with(graph, end)):
                break
            trial = dict(begun) | dict.fromkeys(op.begins)
            live += sum(graph.tensors[key].num_bytes for key in op.begins)
            peak = max(peak, live)
            live -= sum(graph.tensors[key].num_bytes for key in op.ends)
            gone = [key for key in op.ends if key in trial]
            survivors = {key: None for key in trial if key not in set(gone)}
            kept = sum(graph.tensors[key].num_bytes for key in survivors)
            if found is not None and peak < kept:
                break
            begun = survivors
            ended |= dict.fromkeys(key for key in op.ends if key not in trial)
            found = Span(begin, end + 1, tuple(begun), tuple(ended), max(0, peak - kept))
        assert found is not None
        yield found
        begin = found.end


def _goes_with(graph: ModuleGraph, at: int) -> bool:
    before, op = graph.ops[at - 1], graph.ops[at]
    return before.module == op.module and (before.phase == FORWARD) == (op.phase == FORWARD)
