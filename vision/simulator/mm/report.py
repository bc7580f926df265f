"""A prediction for people: tables on the console, pictures of time and of memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from vision.common.core.amounts import format_bytes
from vision.common.core.figures import pyplot
from vision.simulator.core.outcome import Outcome
from vision.simulator.core.program import COMPUTE, STREAMS
from vision.simulator.mm.prediction import Predicted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vision.simulator.mm.variants import Found

NUM_NAMED = 6  # longest nodes of computation, and of communication, whose names a picture has
NAME_LENGTH = 40


def print_prediction(result: Predicted) -> None:
    """Time, memory, the dearest operators, and what all of it rests on."""
    console = Console()
    outcome, verdict = result.outcome, result.verdict
    table = Table(title=f'one step on {result.num_ranks} ranks', show_header=False)
    low, high = (1e3 * result.step_seconds * (1 + s * result.interval) for s in (-1, 1))
    rows = [('step', f'{1e3 * result.step_seconds:.4g} ms ({low:.4g} to {high:.4g})'),
            ('throughput', f'{result.samples_per_second:.4g} samples/s '
             f'({result.samples} a step)'),
            ('MFU', f'{100 * result.mfu:.1f} %'),
            ('exposed communication', f'{1e3 * max(outcome.exposed):.4g} ms'),
            ('idle compute', f'{100 * outcome.bubble:.1f} %'),
            ('memory', str(verdict))]
    rows += [(f'peak of rank {rank}', format_bytes(outcome.peak(rank).num_bytes))
             for rank in range(min(outcome.program.num_ranks, 16))]
    for name, text in rows:
        table.add_row(name, text)
    console.print(table)
    costs = Table(title='dearest operators of a rank')
    for column in ('module', 'operator', 'ms'):
        costs.add_column(column, justify='right' if column == 'ms' else 'left')
    for (module, name), seconds in result.dearest():
        costs.add_row(module or '(model)', name, f'{1e3 * seconds:.4g}')
    console.print(costs)
    print_basis(console, result.notes, result.assumed)


def print_basis(console: Console, notes: Mapping[str, Any], assumed: Sequence[str]) -> None:
    """What a prediction rests on: texts by kind, or how often each was said."""
    for kind, texts in notes.items():
        if texts:
            shown = [f'{name} x{count}' for name, count in texts.items()] \
                if isinstance(texts, Mapping) else texts
            console.print(f'{kind}: {"; ".join(shown)}', markup=False)
    for text in assumed:
        console.print(f'assumed: {text}', markup=False)


def print_search(found: Found) -> None:
    """What was tried, the front of time and memory, and the winner's config."""
    console = Console()
    table = Table(title=f'{len(found.tried)} strategies')
    for column in ('strategy', 'ms', 'memory', 'verdict', 'front'):
        table.add_column(column, justify='right' if column == 'ms' else 'left')
    for name, result in sorted(found.tried.items(), key=lambda each: each[1].step_seconds):
        table.add_row(name, f'{1e3 * result.step_seconds:.4g}',
                      format_bytes(result.verdict.needed_bytes), result.verdict.state,
                      '*' if name in found.front else '')
    console.print(table)
    for name, reason in found.refused.items():
        console.print(f'not tried: {name}: {reason}', markup=False)
    console.print(f'best: {found.name}\n{found.best.text}', markup=False)


def plot(result: Predicted, path: Path) -> None:
    """Of the rank that needs most memory, over time: what runs on each of its streams, with the
    names of the longest, and beneath it memory by category."""
    rank = result.verdict.peak.rank
    figure, (above, below) = pyplot().subplots(2, 1, figsize=(13, 7), sharex=True,
                                               layout='constrained')
    _draw_streams(above, result.outcome, rank)
    _draw_memory(below, result.outcome, rank)
    figure.savefig(path, dpi=120)
    pyplot().close(figure)


def _draw_memory(axes: Axes, outcome: Outcome, rank: int) -> None:
    curve = outcome.memory(rank)
    moments = [1e3 * each for each in curve.moments]
    names = [name for name, sizes in curve.categories.items() if any(sizes)]
    axes.stackplot(moments, *([size / 2**30 for size in curve.categories[name]]
                              for name in names), labels=names, step='post')
    axes.set(xlabel='ms', ylabel='GiB', title=f'memory of rank {rank}')
    axes.legend(loc='upper left', bbox_to_anchor=(1.005, 1), fontsize='small')


def _draw_streams(axes: Axes, outcome: Outcome, rank: int) -> None:
    """A lane for each stream; the longest nodes have numbers, with their names beside."""
    from matplotlib.patches import Patch
    program = outcome.program
    lanes = [stream for stream in STREAMS if stream in outcome.busy[rank]]
    mine = [at for at in outcome.nodes_of[rank] if outcome.ends[at] > outcome.starts[at]]
    mine.sort(key=lambda at: (lanes.index(program.nodes[at].stream), outcome.starts[at]))
    seen: dict[str, str] = {}
    for at in mine:
        node, start, end = program.nodes[at], 1e3 * outcome.starts[at], 1e3 * outcome.ends[at]
        colour = seen.setdefault(node.kind, f'C{len(seen) % 10}')
        is_compute = node.stream == COMPUTE  # a white edge would hide what is short and alone
        axes.broken_barh([(start, end - start)], (lanes.index(node.stream) - 0.35, 0.7),
                         facecolor=colour, edgecolor='white' if is_compute else colour,
                         linewidth=0.3 if is_compute else 1)
    notes, free = [], [0.0] * len(lanes)
    for number, at in enumerate(_longest(outcome, mine), start=1):
        node, start, end = program.nodes[at], 1e3 * outcome.starts[at], 1e3 * outcome.ends[at]
        lane = lanes.index(node.stream)
        place = max((start + end) / 2, free[lane])
        free[lane] = place + 20 * outcome.makespan  # thousandths: the width of a number
        axes.text(place, lane - 0.38, str(number), ha='center', va='bottom', fontsize='x-small')
        notes.append(f'{number}  {shortened(node.name)}: {end - start:.3g} ms')
    axes.set_yticks(range(len(lanes)), lanes)
    axes.set(ylim=(len(lanes) - 0.55, -0.75), title=f'timeline of rank {rank}')
    axes.legend([Patch(color=colour) for colour in seen.values()], list(seen), ncols=2,
                loc='lower left', bbox_to_anchor=(1.005, 0), fontsize='small')
    axes.text(1.01, 1, '\n'.join(notes), transform=axes.transAxes, va='top', fontsize='small')


def _longest(outcome: Outcome, nodes: Sequence[int]) -> list[int]:
    """Of computation and of the rest as many each, in order of time."""
    found: list[int] = []
    for is_compute in (True, False):
        some = [at for at in nodes
                if (outcome.program.nodes[at].stream == COMPUTE) == is_compute]
        some.sort(key=lambda at: outcome.starts[at] - outcome.ends[at])
        found += some[:NUM_NAMED]
    return sorted(found, key=lambda at: outcome.starts[at])


def shortened(name: str) -> str:
    """A node's name for a picture: the end of a module's name tells more than its beginning."""
    return name if len(name) <= NAME_LENGTH else f'{name[:4]}..{name[6 - NAME_LENGTH:]}'
