"""A prediction for people: tables on the console and a picture of memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from vision.common.core.amounts import format_bytes
from vision.simulator.mm.prediction import Predicted

if TYPE_CHECKING:
    from vision.simulator.mm.variants import Found


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
    for kind, texts in result.notes.items():
        if texts:
            shown = [f'{name} x{count}' for name, count in texts.items()] \
                if isinstance(texts, dict) else texts
            console.print(f'{kind}: {"; ".join(shown)}', markup=False)
    for text in result.assumed:
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
    """Memory of the rank that needs most, by category, over time."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    curve = result.outcome.memory(result.verdict.peak.rank)
    moments = [1e3 * each for each in curve.moments]
    figure, axes = pyplot.subplots(figsize=(9, 4))
    names = list(curve.categories)
    axes.stackplot(moments, *([size / 2**30 for size in curve.categories[name]]
                              for name in names), labels=names, step='post')
    axes.set(xlabel='ms', ylabel='GiB', title=f'rank {result.verdict.peak.rank}')
    axes.legend(loc='upper right', fontsize='small')
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
