"""``MemoryBudget``: the steps inside it hold no more activations than a budget allows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vision.common.core.amounts import format_bytes
from vision.common.core.errors import VisionError
from vision.memory.core.graph import StepReport, Trace
from vision.memory.core.plan import Link, Plan, make_plan
from vision.memory.nn.control import Control, Script
from vision.memory.nn.operators import Operator, flat_tensors
from vision.memory.nn.residence import Residence
from vision.memory.nn.step import Clock, CudaClock, Step
from vision.memory.nn.transfer import CudaTransfer, Transfer

ACTIONS = ('both', 'recompute', 'swap')
MODES = ('planned', 'reactive')
VERIFY = ('first', 'always', 'never')
MAX_SCRIPTS = 8  # plans kept, of the signatures that were used last
TIMED_STEPS = 3  # that a plan is followed before it is made again with their times
CHECKED_STEPS = 2  # managed steps in which the bytes of what leaves are summed


class MemoryBudget:
    """Keeps the activations of a training step within a budget; gradients stay as they were.

    Values that autograd saves leave memory and come back before backward reads them: computed
    again, or swapped to the host. DELTA (Tang et al., arXiv:2203.15980) decides which and how;
    a plan of the whole step takes over from the second step of the same shapes on.

        manager = MemoryBudget(ratio=0.4)
        for batch in loader:
            with manager:
                model(batch).backward()
                optimizer.step()

    Args:
        gib, bytes, ratio: the budget, one of them. A ratio is of the peak without a budget, which
            the first step measures: that step must fit as it is. Counted are the storages made
            inside the step: activations, gradients, temporaries; not parameters, not the batch,
            not what an operator takes while it runs.
        actions: 'both', or 'recompute' or 'swap' alone.
        host_bytes: cap of what lies on the host; None: no cap.
        min_bytes: smaller storages stay.
        mode: 'planned', or 'reactive' alone: scores decide in every step.
        verify: 'first': what is to be dropped is computed again and compared in the first step of
            each signature; an operator that gives other bytes is never run twice. 'always', or
            'never'.
        link: the way to the host, for the plans; None: measured once. With a link that is given,
            plans are made for it whatever the real one is.
        device: None: the current CUDA device, or the CPU where there is none.
        log: takes one line an event; default: the logger ``vision.memory``.

    Raises:
        VisionError: VIS-CONFIG-1410: an argument; VIS-CONFIG-1413: swap alone with a host cap of
            zero; VIS-CONFIG-1414: more than the device has. In a step, VIS-CONFIG-1411: below what
            one operator needs; VIS-CONFIG-1412: a compiled model; VIS-RUN-1411, VIS-RUN-1412: a
            value cannot come back as it was.
    """

    def __init__(self, *, gib: float | None = None, ratio: float | None = None,
                 bytes: int | None = None, actions: str = 'both', host_bytes: int | None = None,
                 min_bytes: int = 65536, mode: str = 'planned', verify: str = 'first',
                 link: Link | None = None, device: torch.device | str | None = None,
                 log: Callable[[str], None] | None = None) -> None:
        if sum(value is not None for value in (gib, ratio, bytes)) != 1:
            raise _wrong(f'gib={gib}, ratio={ratio}, bytes={bytes}', 'give one of the three')
        for name, value in (('gib', gib), ('ratio', ratio), ('bytes', bytes)):
            if value is not None and (isinstance(value, bool) or not 0 < value < math.inf):
                raise _wrong(f'{name}={value!r}', f'{name} must be above 0')
        if ratio is not None and ratio > 1:
            raise _wrong(f'ratio={ratio}', 'a ratio of the unmanaged peak is at most 1')
        for name, value, allowed in (('actions', actions, ACTIONS), ('mode', mode, MODES),
                                     ('verify', verify, VERIFY)):
            if value not in allowed:
                raise _wrong(f'{name}={value!r}', f'{name} must be one of {", ".join(allowed)}')
        if min_bytes < 1 or (host_bytes is not None and host_bytes < 0):
            raise _wrong(f'min_bytes={min_bytes}, host_bytes={host_bytes}',
                         'min_bytes must be >= 1, host_bytes >= 0')
        if host_bytes == 0 and actions == 'swap':
            raise VisionError(
                'VIS-CONFIG-1413', "actions='swap' with a host pool of 0 bytes",
                why='nothing could ever leave', do="raise the cap, or use actions='recompute'")
        self.ratio = ratio
        self.budget_bytes = bytes if gib is None else int(gib * 2**30)
        self.actions = 'recompute' if host_bytes == 0 else actions
        self.min_bytes, self.mode, self.verify = min_bytes, mode, verify
        self.device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        if self.device.type == 'cuda' and self.device.index is None:
            self.device = torch.device('cuda', torch.cuda.current_device())
        self._refuse_more_than_there_is()
        kind = CudaTransfer if self.device.type == 'cuda' else Transfer
        self._transfer = kind(self.device, host_bytes, link)
        self._log = log or logging.getLogger('vision.memory').info
        self._operators: dict[int, Operator] = {}
        self._refused: set[str] = set()
        self._verified: set[tuple[Any, int]] = set()  # (operator, moment)
        self._scripts: list[Script] = []
        self._scored: set[int] = set()  # signatures for which scores do better than plans
        self._said: set[str] = set()
        # Where an operator may find no memory, all that is saved must be ready to leave.
        self._records_all = self.device.type == 'cuda'
        self._hooks: list[Any] = []
        self._num_managed = 0
        self._is_timed, self._wants_times = True, False  # operators, as the device took them
        self._step: Step | None = None
        self._control: Control
        self._residence: Residence
        self._trace: Trace | None = None
        self._report = StepReport(budget_bytes=self.budget_bytes)

    # A step

    def __enter__(self) -> MemoryBudget:
        if self._step is not None:
            raise RuntimeError('this MemoryBudget is in a step already: one manager for one '
                               'thread and one step at a time')
        self._notes: list[str] = []
        if self.device.type == 'cuda':
            self._transfer.link  # noqa: B018  measured now, while there is room for its trial
        scripts = self._scripts if self.mode == 'planned' else []
        self._control = Control(budget_bytes=self.budget_bytes, scripts=scripts,
                                actions=self.actions, verify=self.verify,
                                verified=self._verified, log=self._tell,
                                records_all=self._records_all)
        step = Step(self._control, self._operators, self.min_bytes, self.device.type,
                    self._new_clock())
        self._residence = Residence(
            step, self._transfer, self._refused,
            must_check=self.verify == 'always' or (
                self.verify == 'first' and self._num_managed < CHECKED_STEPS))
        self._control.attach(step, self._residence)
        self._transfer.pool.reset_peak()
        step.begin()
        self._step = step
        return self

    def __exit__(self, kind, error, traceback) -> None:
        step, self._step = self._step, None
        step.end()
        is_failed = error is not None
        try:
            if not is_failed:
                self._learn(step)
        finally:
            if is_failed:
                self._residence.abandon(step.nodes)
            if step.close(is_failed=is_failed) and not is_failed:
                self._tell_once('a graph outlives its step: what was dropped of it is made when '
                                'it is asked for, uncounted')
            self._control.detach()
            self._transfer.settle(must_free=math.inf)

    def _new_clock(self) -> Clock:
        """On a GPU only events tell times, and they cost more than that once all are known."""
        is_known = not self._wants_times and bool(self._scripts) and all(
            script.num_used >= TIMED_STEPS for script in self._scripts)
        is_cuda = self.device.type == 'cuda'
        self._is_timed = not is_cuda or (self.mode == 'planned' and not is_known)
        return CudaClock() if is_cuda and self._is_timed else Clock()

    def _learn(self, step: Step) -> None:
        control, residence = self._control, self._residence
        mode = 'unmanaged' if self.budget_bytes is None else \
            'reactive' if control.script is None else 'planned'
        unmanaged_peak = max(step.live, default=0)
        report = StepReport(
            mode=mode, peak_bytes=step.bytes.peak, unmanaged_peak_bytes=unmanaged_peak,
            saved_bytes=step.peak_saved_bytes,
            replayed_calls=residence.replayed_calls, replay_seconds=residence.replay_seconds,
            swapped_bytes=residence.swapped_bytes, swap_seconds=residence.swap_seconds,
            host_peak_bytes=self._transfer.pool.peak_bytes, op_seconds=sum(step.clock.seconds),
            drops=residence.drops, notes=self._notes)
        self._report = report
        if control.has_second_order:
            self._tell_once('a graph was made in backward (create_graph, or a checkpoint inside '
                            'the model): what it saves stays')
        if self.budget_bytes is None and step.reads:
            # Without the optimizer's step, which makes its state the first time and never again.
            peak = max(step.live[:step.backward_end])
            self.budget_bytes = max(int(self.ratio * peak), 1)
            self._tell(f'forward and backward without a budget hold {format_bytes(peak)} at their '
                       f'peak; the budget is {format_bytes(self.budget_bytes)}')
        report.budget_bytes = self.budget_bytes
        if self.budget_bytes is not None:
            self._num_managed += mode != 'unmanaged'
            report.is_over = report.peak_bytes > 1.05 * self.budget_bytes
        if control.is_half_recorded and not self._records_all:
            self._records_all = True  # steps part late here: record all that any plan may need
            return
        if not self._is_timed and (control.script is None
                                   or control.script.num_used < TIMED_STEPS):
            self._wants_times = True  # a step that was not expected: the next one has them
            return
        if control.script is not None:
            self._used(control.script, step)
        elif self.budget_bytes is not None and step.reads and self.mode == 'planned':
            if control.lost_at is not None:
                self._tell_once('a step is another one than those that are planned: scores '
                                'decide in it, and it has a plan from the next time on')
            self._trace = step.trace()
            if self._trace.signature not in self._scored:
                self._plan(step, report)

    def _used(self, script: Script, step: Step) -> None:
        """A step followed this plan; after some of them it is made again: the first step of a
        process is cold, and the times of one step mislead."""
        self._scripts.remove(script)
        script.num_used += 1
        if script.num_used <= TIMED_STEPS:
            script.timed(step.clock.read(), script.horizon if self._control.is_adrift else None)
        if script.num_used == TIMED_STEPS and script.plan.actions:
            plan = self._best_plan(script.trace)
            if plan.peak_bytes <= max(self.budget_bytes, script.plan.peak_bytes):
                self._tell_plan('planned again', script.trace, plan)
                script = Script(script.keys, script.trace, plan, num_used=script.num_used)
        self._scripts.insert(0, script)

    def _best_plan(self, trace: Trace) -> Plan:
        return make_plan(trace, self.budget_bytes, actions=self.actions,
                         link=self._transfer.link, host_bytes=self._transfer.pool.cap_bytes)

    def _plan(self, step: Step, report: StepReport) -> None:
        live = self._trace.live_bytes.copy()
        live[step.backward_end:] = 0  # no plan has a say in what the optimizer takes
        trace, budget = replace(self._trace, live_bytes=live), self.budget_bytes
        plan = self._best_plan(trace)
        need, name = trace.largest_need
        if budget < need:
            raise VisionError(
                'VIS-CONFIG-1411', f'a budget of {format_bytes(budget)} is below what one '
                f'operator needs: {name} reads and makes {format_bytes(need)}', why='its inputs '
                'and outputs are there at the same time', do='raise the budget to '
                f'{format_bytes(plan.peak_bytes)}, the least that was found to do, or make the '
                'batch smaller')
        is_near = plan.peak_bytes <= 1.05 * budget
        if not is_near and report.mode == 'unmanaged':
            return  # the next step shows what scores can do
        if not is_near and report.peak_bytes < plan.peak_bytes:
            self._scored.add(trace.signature)
            self._tell(f'{trace.signature & 0xffff:04x}: the best plan holds '
                       f'{format_bytes(plan.peak_bytes)}, scores '
                       f'{format_bytes(report.peak_bytes)}: scores decide')
            return
        self._tell_plan('planned', trace, plan)
        self._wants_times = False
        if not plan.fits:
            self._tell_once(f'no plan holds {format_bytes(budget)}: the least found is '
                            f'{format_bytes(plan.peak_bytes)}')
        self._scripts.insert(0, Script(step.keys, trace, plan))
        if sum(not script.num_used for script in self._scripts) >= MAX_SCRIPTS:
            self.mode = 'reactive'
            self._tell(f'{MAX_SCRIPTS} plans and no step that was like an earlier one: scores '
                       'decide from now on')
        del self._scripts[MAX_SCRIPTS:]

    def _tell_plan(self, verb: str, trace: Trace, plan: Plan) -> None:
        kinds = list(plan.actions.values())
        extra = plan.extra_seconds / max(trace.op_seconds, 1e-9)
        self._tell(
            f'{verb} {trace.signature & 0xffff:04x}: {kinds.count("drop")} of '
            f'{len(trace.candidates)} values are computed again, {kinds.count("swap")} swapped; '
            f'peak {format_bytes(plan.peak_bytes)} of {format_bytes(trace.peak_bytes)}, '
            f'{extra:.1%} more work')

    # What a user asks

    def report(self) -> StepReport:
        """What the last step did."""
        return self._report

    def trace(self) -> Trace | None:
        """The last step that was recorded for a plan, as it runs without a budget; None in mode
        'reactive'."""
        return self._trace

    def keep(self, module: nn.Module) -> None:
        """Activations made inside this module never leave."""
        def enter(module: nn.Module, args: tuple) -> None:
            if self._step is not None:
                self._step.pins += 1

        def leave(module: nn.Module, args: tuple, output: Any) -> None:
            if self._step is not None:
                self._step.pins -= 1
        self._hook(module, enter, leave)

    def boundary(self, module: nn.Module) -> None:
        """Nothing outside of this module runs again for what is inside, and the other way round:
        its inputs and outputs stay, or are swapped. For units whose parameters are there only
        while the unit runs (FSDP2)."""
        def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self._make_roots((args, kwargs))

        def leave(module: nn.Module, args: tuple, output: Any) -> None:
            self._make_roots(output)
        self._hooks.append(module.register_forward_hook(leave))
        self._hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))

    def _make_roots(self, value: Any) -> None:
        if self._step is not None:
            for tensor in flat_tensors(value):
                self._step.make_root(tensor)

    def name(self, model: nn.Module) -> None:
        """Have values know the module that made them, for reports."""
        for name, module in model.named_modules():
            def enter(module: nn.Module, args: tuple, name: str = name) -> None:
                if self._step is not None:
                    self._step.scopes.append(name)

            def leave(module: nn.Module, args: tuple, output: Any) -> None:
                if self._step is not None:
                    self._step.scopes.pop()
            self._hook(module, enter, leave)

    def _hook(self, module: nn.Module, enter: Callable, leave: Callable) -> None:
        self._hooks.append(module.register_forward_pre_hook(enter))
        self._hooks.append(module.register_forward_hook(leave, always_call=True))

    def close(self) -> None:
        """Take the hooks off, give the host pool back."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._scripts.clear()
        self._transfer.close()

    # Words

    def _tell(self, line: str) -> None:
        self._notes.append(line)
        self._log(line)

    def _tell_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._tell(line)

    def _refuse_more_than_there_is(self) -> None:
        if self.device.type != 'cuda' or self.budget_bytes is None:
            return
        total = torch.cuda.get_device_properties(self.device).total_memory
        if self.budget_bytes > total:
            raise VisionError(
                'VIS-CONFIG-1414', f'a budget of {format_bytes(self.budget_bytes)} on a device of '
                f'{format_bytes(total)}', where=str(self.device),
                why='it would never act before the device is full', do='give less than the '
                'device has left beside parameters, gradients and optimizer state')


def _wrong(came: str, rule: str) -> VisionError:
    return VisionError('VIS-CONFIG-1410', f'MemoryBudget({came})', why=rule,
                       do='MemoryBudget(gib=12), MemoryBudget(ratio=0.4) or '
                       'MemoryBudget(bytes=12_000_000_000)')
