"""Where a recorded step's peak comes from, and pictures of plans under budgets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision.common.core.amounts import format_bytes, parse_budget
from vision.common.core.errors import VisionError
from vision.common.core.figures import pyplot, save_figure
from vision.memory.core.graph import Trace
from vision.memory.core.plan import Plan

COLOURS = ('#1769aa', '#2e8540', '#d1730f', '#8e44ad', '#c0392b', '#16a085')


@dataclass(frozen=True)
class Holder:
    """Values of one module, operator and shape that are there at the peak."""

    where: str
    operator: str
    shape: tuple[int, ...]
    num_bytes: int
    count: int


def peak_holders(trace: Trace) -> list[Holder]:
    """Largest first: what forward made and is there right after the operator of the peak. What
    backward makes has no module; it is the rest of the peak."""
    if not len(trace.live_bytes):
        return []
    peak = int(trace.live_bytes.argmax())
    groups: dict[tuple, list[int]] = defaultdict(list)
    for value in trace.values:
        if value.born <= peak <= value.death:
            groups[value.where, trace.calls[value.call].name, value.shape].append(value.num_bytes)
    holders = [Holder(*key, sum(sizes), len(sizes)) for key, sizes in groups.items()]
    return sorted(holders, key=lambda holder: -holder.num_bytes)


def budgets_of(texts: Sequence[str], trace: Trace) -> list[tuple[str, int]]:
    """(as it was given, bytes) of ratios of the unmanaged peak ('0.4') or amounts ('12GB').

    Raises:
        VisionError: VIS-CONFIG-1452, one operator alone needs more.
    """
    amounts = [(text, parse_budget(_number(text))) for text in texts]
    budgets = [(text, amount.bytes if amount.bytes is not None
                else round(amount.ratio * trace.peak_bytes)) for text, amount in amounts]
    need, name = trace.largest_need
    for text, num_bytes in budgets:
        if num_bytes < need:
            raise VisionError('VIS-CONFIG-1452', f'the budget {text} is less than what one '
                              'operator needs', where='--budget',
                              why=f'{name} reads and makes {format_bytes(need)}, and the budget '
                              f'is {format_bytes(num_bytes)}',
                              do='give a larger budget, or a smaller --batch')
    return budgets


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def extra_time(plan: Plan, trace: Trace) -> float:
    """Of the step's operators' time."""
    return plan.extra_seconds / max(trace.op_seconds, 1e-9)


def draw_live(trace: Trace, plans: Sequence[tuple[str, int, Plan]], out: Path) -> None:
    """Write a picture of live bytes over the step, without a budget and under each plan.

    Args:
        plans: (budget as written, its bytes, plan) of each budget.
    """
    figure, panel = pyplot().subplots(figsize=(8, 3.8))
    moments = np.arange(len(trace.live_bytes))
    panel.fill_between(moments, trace.live_bytes / 1e6, color='#bbbbbb', step='mid',
                       label='without a budget')
    for (text, num_bytes, plan), colour in zip(plans, COLOURS * len(plans), strict=False):
        panel.step(moments, plan.live_bytes / 1e6, where='mid', color=colour, linewidth=1.2,
                   label=f'{text}: {plan.peak_bytes / 1e6:.0f} MB')
        panel.axhline(num_bytes / 1e6, color=colour, linewidth=0.7, linestyle=':')
    panel.set_xlabel('operator of the step: forward, backward, optimizer')
    panel.set_ylabel('live bytes (MB)')
    _finish(figure, [panel], out)


def draw_trade_off(trace: Trace, curve: Sequence[Plan], out: Path) -> None:
    """Write a picture of extra time over peak, both as shares of the unmanaged step."""
    figure, panel = pyplot().subplots(figsize=(5.2, 3.8))
    points = sorted({(plan.peak_bytes / trace.peak_bytes, extra_time(plan, trace))
                     for plan in curve})
    panel.plot(*zip(*points, strict=True), 'o-', color=COLOURS[0], markersize=4,
               label='as planned')
    panel.set_xlabel('peak, of the unmanaged')
    panel.set_ylabel("extra time, of the operators'")
    panel.set_ylim(bottom=0)
    _finish(figure, [panel], out)


def _finish(figure, panels, out: Path) -> None:
    for panel in panels:
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    save_figure(figure, out)
