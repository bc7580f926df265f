"""Pictures of simulated schedules: who does what when, and what memory it takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vision.common.core.figures import pyplot, save_figure
from vision.pipeline.core.compare import Simulated
from vision.pipeline.core.simulate import Timeline
from vision.pipeline.core.tasks import COMPUTE, REDUCE_GRAD, UNSHARD, B, F, I, W

LABELS = {F: 'forward', I: 'gradient of the input', W: 'gradient of the weights',
          B: 'both gradients', UNSHARD: 'all-gather', REDUCE_GRAD: 'reduce-scatter'}
# Darkest and lightest shade of a kind: the first chunk of a rank and its last.
SHADES = {F: ('#1d4e89', '#9cc5ec'), I: ('#b3541e', '#f6c391'), W: ('#35682d', '#b5dba6'),
          B: ('#8c2f39', '#eaa9a9'), UNSHARD: ('#6c4ab6', '#6c4ab6'),
          REDUCE_GRAD: ('#c9a227', '#c9a227')}
LINES = ('#1d4e89', '#b3541e', '#35682d', '#8c2f39', '#6c4ab6', '#c9a227', '#333333')


def draw_timelines(found: Sequence[Simulated], out: Path) -> None:
    """A panel for each schedule on one axis of time: what is shorter is faster."""
    from matplotlib.patches import Patch
    num_ranks = found[0].timeline.table.num_ranks
    figure, panels = pyplot().subplots(len(found), 1, sharex=True, squeeze=False, figsize=(
        17, len(found) * (0.34 * num_ranks + 0.62) + 0.5))
    longest = max(each.timeline.makespan for each in found)
    pixels_per_time = 16.2 * figure.dpi / longest
    kinds: dict[str, None] = {}
    for each, panel in zip(found, panels[:, 0], strict=True):
        kinds |= dict.fromkeys(_draw_rows(panel, each.timeline, pixels_per_time))
        timeline = each.timeline
        num_gathers = max(timeline.gathers)
        panel.set_title(
            f'{each.label}:  {100 * timeline.bubble:.1f} % idle,  activations of '
            f'{each.devices_in_flight:g} micro-batches,  {num_gathers} all-gather'
            f'{"" if num_gathers == 1 else "s"} a rank', loc='left', fontsize=10)
        panel.set_xlim(0, longest)
        panel.set_ylim(num_ranks - 0.5, -0.5)
        panel.set_yticks(range(num_ranks), [f'rank {rank}' for rank in range(num_ranks)],
                         fontsize=8)
        panel.tick_params(length=0, labelsize=8)
        panel.spines[:].set_visible(False)
        panel.axvline(timeline.makespan, color='#222222', linewidth=0.8)
    patches = [Patch(color=_shades(kind, 3)[1], label=LABELS[kind]) for kind in LABELS
               if kind in kinds]
    figure.legend(handles=patches, loc='upper right', ncols=len(patches), fontsize=8,
                  frameon=False)
    panels[-1, 0].set_xlabel('time', fontsize=8)
    save_figure(figure, out)


def _draw_rows(panel, timeline: Timeline, pixels_per_time: float) -> set[str]:
    """Draw the tasks of all ranks; the kinds that were drawn."""
    table = timeline.table
    has_collectives = any(timeline.costs.gather) or any(timeline.costs.reduce)
    height = 0.66 if has_collectives else 0.86
    room = 5.5 * len(str(table.num_microbatches - 1)) + 1  # pixels of the longest number
    drawn: set[str] = set()
    for rank, row in enumerate(table.rows):
        panel.barh(rank, timeline.makespan, height=0.86, color='#ececec')
        chunk_of = {stage: chunk for chunk, stage in enumerate(table.stages_of(rank))}
        bars: dict[str, list[tuple[float, float, str]]] = {}
        for action, start, end in zip(row, timeline.starts[rank], timeline.ends[rank],
                                      strict=True):
            if end == start or action.kind not in LABELS:
                continue
            colour = _shades(action.kind, table.num_chunks)[chunk_of[action.stage]]
            bars.setdefault(action.kind, []).append((start, end - start, colour))
            if action.kind in COMPUTE and (end - start) * pixels_per_time > room:
                panel.text((start + end) / 2, rank - (0.86 - height) / 2, str(action.mb),
                           ha='center', va='center_baseline', fontsize=5.5,
                           color='white' if _is_dark(colour) else '#222222')
        for kind, spans in bars.items():
            drawn.add(kind)
            low, tall = (rank - 0.43, height) if kind in COMPUTE else (rank + 0.26, 0.17)
            panel.broken_barh([span[:2] for span in spans], (low, tall), linewidth=0.3,
                              facecolors=[span[2] for span in spans], edgecolors='white')
    return drawn


def _shades(kind: str, num_chunks: int) -> list[str]:
    """From the first chunk's to the last's; that of a single chunk is the middle one."""
    from matplotlib.colors import to_hex, to_rgb
    dark, light = map(to_rgb, SHADES[kind])
    parts = [0.4] if num_chunks == 1 else [chunk / (num_chunks - 1) for chunk in range(num_chunks)]
    return [to_hex([a + part * (b - a) for a, b in zip(dark, light, strict=True)])
            for part in parts]


def _is_dark(colour: str) -> bool:
    from matplotlib.colors import to_rgb
    red, green, blue = to_rgb(colour)
    return 0.3 * red + 0.59 * green + 0.11 * blue < 0.55


def draw_memory(found: Sequence[Simulated], out: Path, *, has_bytes: bool,
                budget_bytes: int | None = None) -> None:
    """Over the step, of the rank of each schedule that needs most.

    Args:
        has_bytes: costs hold measured bytes; else memory is counted in activations of all chunks
            of a rank for one micro-batch.
        budget_bytes: a line.
    """
    figure, panel = pyplot().subplots(figsize=(8, 4))
    scale = 1e6 if has_bytes else 1
    for each, colour in zip(found, LINES * len(found), strict=False):
        peaks = each.timeline.peak_bytes
        rank = peaks.index(max(peaks))
        moments, values = zip(*each.timeline.memory(rank), strict=True)
        if not has_bytes:  # chunks differ in size from schedule to schedule
            scale = each.timeline.table.num_chunks * each.timeline.costs.activation_bytes[0]
        panel.step(moments, [value / scale for value in values], where='post', color=colour,
                   linewidth=1.2, label=f'{each.label}, rank {rank}: '
                   f'{max(peaks) / scale:g}{" MB" if has_bytes else ""}')
    if budget_bytes:
        panel.axhline(budget_bytes / scale, color='#222222', linewidth=0.8, linestyle=':',
                      label='budget')
    panel.set_xlabel('time')
    panel.set_ylabel('memory (MB)' if has_bytes else
                     'activations, in micro-batches of all chunks of a rank')
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    save_figure(figure, out)
