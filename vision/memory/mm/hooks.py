"""A training step under a budget, as a hook of MMEngine's runners."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from vision.common.core.amounts import format_bytes, parse_budget
from vision.common.core.errors import VisionError
from vision.memory.core.graph import StepReport
from vision.memory.nn.manager import MemoryBudget
from vision.memory.nn.torch_private import set_compiler_budget
from vision.registry import HOOKS

# They run backward themselves, or free the storage of parameters within a step.
OWN_BACKWARD = ('DeepSpeedStrategy', 'ColossalAIStrategy', 'FSDPStrategy', 'ZeroPPStrategy')
# Backends of torch.compile that ask the compiler's partitioner what to save for backward.
PARTITIONED = ('inductor', 'aot_eager')


@HOOKS.register_module()
class ActivationMemoryHook(Hook):
    """Holds each training step of a run within a budget; its results stay what they are.

    ``runner.model.train_step`` is replaced, while a run trains, by one that works inside
    ``vision.memory.nn.manager.MemoryBudget``: forward, backward and optimizer step of whatever
    the model does there (several backward passes, mixed precision, a ``train_step`` of its own).
    Validation and test are left alone. Each step writes ``train/mem_peak``, ``train/mem_saved``
    (gigabytes: the peak, and how far it is below that of the step without a budget),
    ``train/replay_ms`` (operators that ran again) and ``train/swap_gb`` (copied to the host) for
    the logger to print. A config says ``activation_memory=dict(budget=...)`` with these arguments,
    instead of naming the hook.

    With ``compile`` a ratio becomes the compiler's own budget, which is of what it saves for
    backward, not of the peak; then nothing is managed here, and no scalar is written.

    Args:
        budget: '12GB', or a ratio such as 0.4 of the peak of forward and backward in the first
            step, which runs without a budget; of storages made there, gradients included.
        host_budget: most that may lie on the host, such as '32GB'; None: no cap.
        actions: 'recompute', 'swap' or 'both'.
        verify: replays that are compared with the original: 'first' of each operator, 'always',
            'never'.
        mode: 'planned' from the second step of a kind on, or 'reactive'.
        min_bytes: smaller tensors stay.
        ignore: names of modules, such as 'backbone.stem': what is made in them stays.
        report_interval: steps between two lines in the log that say what a step did.

    Raises:
        VisionError: VIS-CONFIG-1436 or VIS-CONFIG-1440, no budget, or no interval from 1 on;
            VIS-CONFIG-1435, a host budget that cannot be; what ``parse_budget`` refuses. Before
            the first step VIS-CONFIG-1437, a second hook of this kind; VIS-CONFIG-1430,
            VIS-CONFIG-1431 and VIS-CONFIG-1433, a run that it cannot manage; VIS-CONFIG-1432, a
            name in ``ignore`` that is no module's; and what ``MemoryBudget`` refuses.
    """

    priority = 'NORMAL'  # its scalars are there before LoggerHook (BELOW_NORMAL) reads them

    def __init__(self, budget: str | int | float | None = None,
                 host_budget: str | int | None = None, actions: str = 'both',
                 verify: str = 'first', mode: str = 'planned', min_bytes: int = 65536,
                 ignore: Sequence[str] = (), report_interval: int = 50) -> None:
        if budget is None:
            raise VisionError('VIS-CONFIG-1436', 'no budget is given', where='activation_memory',
                              do="activation_memory=dict(budget='12GB'), or a ratio: budget=0.4")
        if not isinstance(report_interval, int) or report_interval < 1:
            raise VisionError('VIS-CONFIG-1440', f'report_interval is {report_interval!r}',
                              where='activation_memory', do='a number of steps, from 1 on')
        self.budget = parse_budget(budget)
        self.host_bytes = _host_bytes(host_budget, actions)
        self.actions, self.ignore, self.report_interval = actions, tuple(ignore), report_interval
        self.options = dict(ratio=self.budget.ratio, bytes=self.budget.bytes, actions=actions,
                            host_bytes=self.host_bytes, min_bytes=min_bytes, mode=mode,
                            verify=verify)
        self.manager: MemoryBudget | None = None
        self._restore: list[Callable[[], Any]] = []

    def before_train(self, runner) -> None:
        """Put the model's ``train_step`` under the budget, or hand the ratio to the compiler."""
        self._refuse_others(runner)
        if compile_options := _compile_options(runner):
            self._hand_to_compiler(runner, compile_options)
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        kept = find_modules(model, self.ignore)
        _tell_checkpointed(model, runner.logger)
        # Where the model is: a run on the CPU may see a GPU.
        device = next((parameter.device for parameter in model.parameters() if parameter.is_cuda),
                      'cpu')
        self.manager = MemoryBudget(log=lambda line: runner.logger.info(f'memory: {line}'),
                                    device=device, **self.options)
        self._restore.append(self.manager.close)
        for module in kept:
            self.manager.keep(module)
        if getattr(runner, 'is_sharded', False):
            from torch.distributed.fsdp import FSDPModule
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    # Outside of its turn a unit holds no parameters to run an operator with.
                    self.manager.boundary(module)
        self._restore.append(replace_train_step(runner.model, self.manager))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Write the step's scalars, and every ``report_interval`` steps a line to the log."""
        if self.manager is None:
            return
        report = self.manager.report()
        for name, value in scalars(report).items():
            runner.message_hub.update_scalar(f'train/{name}', value)
        if self.every_n_train_iters(runner, self.report_interval):
            runner.logger.info(f'memory: step {runner.iter + 1}: {describe(report)}')

    def after_train(self, runner) -> None:
        """Give the model its own ``train_step`` back and free the host pool."""
        self.close_run(runner)

    def close_run(self, runner) -> None:
        """Leave the model and the process as they were; our runners call it when a run fails."""
        while self._restore:
            self._restore.pop()()
        self.manager = None

    def _refuse_others(self, runner) -> None:
        if sum(isinstance(hook, ActivationMemoryHook) for hook in runner.hooks) > 1:
            raise VisionError('VIS-CONFIG-1437', 'two ActivationMemoryHooks in one run',
                              where='activation_memory, custom_hooks',
                              why='a step can be held within one budget alone',
                              do='keep activation_memory and remove the hook')
        if runner.cfg.get('activation_checkpointing') is not None:
            raise VisionError(
                'VIS-CONFIG-1431', 'activation_memory together with activation_checkpointing',
                where='activation_checkpointing', why='what checkpointing hides cannot be '
                'managed; and it updates the averages of BatchNorm twice',
                do='remove activation_checkpointing: the budget finds what to compute again')
        name = type(getattr(runner, 'strategy', None)).__name__
        if name in OWN_BACKWARD:
            raise VisionError('VIS-CONFIG-1433', f'activation_memory with {name}',
                              where='strategy', why='it runs the backward pass, or moves '
                              'parameters, in a way of its own',
                              do='DDPStrategy or FSDP2Strategy; or remove activation_memory')

    def _hand_to_compiler(self, runner, options: dict) -> None:
        backend = options.get('backend', 'inductor')
        hindrance = ''
        if self.budget.ratio is None:
            hindrance = 'the compiler takes a ratio only, and of what it saves, not of the peak'
        elif self.actions == 'swap' or self.host_bytes is not None or self.ignore:
            hindrance = 'the compiler only computes again: no swap, no host_budget, no ignore'
        elif backend not in PARTITIONED:
            hindrance = f'the backend {backend!r} does not choose what is saved for backward'
        if hindrance:
            raise VisionError('VIS-CONFIG-1430', 'activation_memory in a run that is compiled',
                              where='compile', why=hindrance,
                              do='compile=False; or a ratio alone, as budget=0.5, and the '
                              f'backend {" or ".join(PARTITIONED)}')
        before = set_compiler_budget(self.budget.ratio)
        self._restore.append(lambda: set_compiler_budget(before))
        runner.logger.info(
            f'memory: the run is compiled, so that budget={self.budget.ratio} is the '
            "compiler's own (activation_memory_budget): a ratio of the bytes that it saves for "
            'backward, not of the peak')


def replace_train_step(model: nn.Module, manager: MemoryBudget) -> Callable[[], None]:
    """Let ``model.train_step`` work inside the manager; call what comes back to undo it."""
    own = vars(model).get('train_step')  # somebody else's replacement
    train_step = model.train_step

    @wraps(train_step)
    def managed(*args, **kwargs):
        with manager:
            return train_step(*args, **kwargs)

    def restore() -> None:
        if own is None:
            del model.train_step
        else:
            model.train_step = own

    model.train_step = managed
    return restore


def find_modules(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The modules of these names.

    Raises:
        VisionError: VIS-CONFIG-1432, with names that are near.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    for name in names:
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=3)
            raise VisionError('VIS-CONFIG-1432', f'the model has no module {name!r}',
                              where='activation_memory.ignore',
                              do=f'did you mean {" or ".join(near)}?' if near else
                              'its parts are: ' + ', '.join(n for n, _ in model.named_children()))
    return [modules[name] for name in names]


def scalars(report: StepReport) -> dict[str, float]:
    """What the log prints of a step: gigabytes (1e9 bytes) and milliseconds."""
    saved_bytes = max(0, report.unmanaged_peak_bytes - report.peak_bytes)
    return dict(mem_peak=report.peak_bytes / 1e9, mem_saved=saved_bytes / 1e9,
                replay_ms=report.replay_seconds * 1e3, swap_gb=report.swapped_bytes / 1e9)


def describe(report: StepReport) -> str:
    """A step in one line."""
    text = f'{report.mode}, peak {format_bytes(report.peak_bytes)}'
    if report.unmanaged_peak_bytes:
        text += f' of {format_bytes(report.unmanaged_peak_bytes)} without a budget'
    if report.budget_bytes is not None:
        text += f', budget {format_bytes(report.budget_bytes)}'
        text += ' (passed)' if report.is_over else ''
    share = report.replay_seconds / report.op_seconds if report.op_seconds else 0.0
    return text + (f'; {report.replayed_calls} operators ran again '
                   f'({share:.1%} of the operators\' time), '
                   f'{format_bytes(report.swapped_bytes)} went to the host')


def _host_bytes(host_budget: str | int | None, actions: str) -> int | None:
    if host_budget is None:
        return None
    if host_budget == 0 and not isinstance(host_budget, bool):
        return 0
    num_bytes = parse_budget(host_budget).bytes
    if num_bytes is None:
        raise VisionError('VIS-CONFIG-1435', f'host_budget is {host_budget!r}, a ratio',
                          where='activation_memory.host_budget',
                          do="an amount, such as '32GB', or None for no cap")
    if actions == 'recompute':
        raise VisionError('VIS-CONFIG-1439', f'host_budget={host_budget!r} with '
                          "actions='recompute'", where='activation_memory.host_budget',
                          why='nothing goes to the host', do="remove it, or actions='both'")
    return num_bytes


def _compile_options(runner) -> dict | None:
    """Options of torch.compile where the run is compiled, with MMEngine's reading of the key."""
    options = runner.cfg.get('compile')
    if options is None or options is False or (options is not True and options.get('disable')):
        return None
    return dict(backend='inductor') | (dict(options) if options is not True else {})


def _tell_checkpointed(model: nn.Module, logger) -> None:
    names = [name or type(module).__name__ for name, module in model.named_modules()
             if getattr(module, 'with_cp', False) or getattr(module, 'uses_checkpoint', False)]
    if names:
        logger.warning(
            f'memory: {len(names)} modules recompute by themselves (with_cp), {names[0]} first: '
            'right, but what they hide cannot be managed. Without with_cp the budget finds what '
            'to compute again')
