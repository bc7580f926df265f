"""A step for Perfetto: a process for each rank, a track for each stream, arrows and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vision.simulator.core.program import STREAMS, TRANSFER

if TYPE_CHECKING:
    from vision.simulator.core.outcome import Outcome

MICROSECONDS = 1e6  # of a second; the format counts in these
_LANES = 100  # of the transfers of a rank begin at this track


def chrome_trace(outcome: Outcome, ranks: Sequence[int] | None = None) -> dict[str, Any]:
    """Trace events: X a node on each of its ranks, s, t and f the arrow through all ranks of a
    node with several, C memory by category. What takes no time is left out.

    Args:
        ranks: of which; None for all.
    """
    program = outcome.program
    shown = list(range(program.num_ranks)) if ranks is None else list(ranks)
    lanes = {rank: _lanes(outcome, rank) for rank in shown}
    events: list[dict[str, Any]] = []
    for rank in shown:
        events += _names(outcome, rank, lanes[rank])
        events += _memory(outcome, rank)
    for number, node in enumerate(program.nodes):
        start, end = outcome.starts[number], outcome.ends[number]
        if end <= start:
            continue
        places = [(rank, lanes[rank][number] if node.stream == TRANSFER
                   else STREAMS.index(node.stream)) for rank in node.ranks if rank in lanes]
        arguments = {key: value for key, value in (
            ('stage', node.stage), ('microbatch', node.mb), ('ranks', list(node.ranks)),
            ('bytes', sum(flow.num_bytes for flow in node.flows))) if value not in (None, 0)}
        for rank, track in places:
            events.append(dict(name=node.name, cat=node.kind, ph='X', pid=rank, tid=track,
                               ts=start * MICROSECONDS, dur=(end - start) * MICROSECONDS,
                               args=arguments))
        if len(places) > 1:
            events += _arrow(number, node.kind, places, (start + end) / 2 * MICROSECONDS)
    return dict(traceEvents=events, displayTimeUnit='ms',
                otherData=dict(program=program.name, makespan_s=outcome.makespan,
                               replicas=program.replicas))


def _arrow(number: int, kind: str, places: list[tuple[int, int]], at: float
           ) -> list[dict[str, Any]]:
    """Through the middle of the same node on all its ranks: an end of an arrow belongs to the
    slice that is there at its moment."""
    phases = ['s', *'t' * (len(places) - 2), 'f']
    return [dict(name=kind, cat=kind, ph=phase, id=number, pid=rank, tid=track, ts=at,
                 **(dict(bp='e') if phase == 'f' else {}))
            for phase, (rank, track) in zip(phases, places, strict=True)]


def _names(outcome: Outcome, rank: int, lanes: dict[int, int]) -> list[dict[str, Any]]:
    nodes = outcome.program.nodes
    used = {nodes[number].stream for number in outcome.nodes_of[rank]} - {TRANSFER}
    tracks = {STREAMS.index(stream): stream for stream in used} | {
        lane: TRANSFER for lane in lanes.values()}
    return [dict(name='process_name', ph='M', pid=rank, args=dict(name=f'rank {rank}')),
            dict(name='process_sort_index', ph='M', pid=rank, args=dict(sort_index=rank)),
            *(dict(name='thread_name', ph='M', pid=rank, tid=track, args=dict(name=name))
              for track, name in sorted(tracks.items()))]


def _lanes(outcome: Outcome, rank: int) -> dict[int, int]:
    """Tracks of transfers: two at the same time cannot be on one."""
    free_at: list[float] = []
    found = {}
    numbers = [number for number in outcome.nodes_of[rank]
               if outcome.program.nodes[number].stream == TRANSFER]
    for number in sorted(numbers, key=lambda each: (outcome.starts[each], each)):
        start = outcome.starts[number]
        lane = next((k for k, end in enumerate(free_at) if end <= start), len(free_at))
        free_at[lane:lane + 1] = [outcome.ends[number]]
        found[number] = _LANES + lane
    return found


def _memory(outcome: Outcome, rank: int) -> list[dict[str, Any]]:
    if not outcome.lifetimes[rank]:
        return []
    over = outcome.memory(rank)
    return [dict(name='memory', ph='C', pid=rank, ts=moment * MICROSECONDS,
                 args={name: values[k] for name, values in over.categories.items()})
            for k, moment in enumerate(over.moments)]
