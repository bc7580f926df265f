"""Ways to run a train step with less activation memory, ours and others, one interface.

A ``Method`` runs forward and backward of one batch. It changes nothing that outlasts a step, so
that all methods take turns on one network.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from memory_models import Task
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from vision.memory.core.graph import StepReport
from vision.memory.core.plan import Link
from vision.memory.nn.manager import MemoryBudget

aten = torch.ops.aten
# What a selective checkpoint keeps: matrix products and convolutions, torch's usual advice.
KEPT_OPERATORS = {aten.convolution.default, aten.mm.default, aten.addmm.default, aten.bmm.default,
                  aten.baddbmm.default, aten._scaled_dot_product_flash_attention_for_cpu.default}
MOST_GRAPHS = 6  # forward and backward, of a few shapes
MODELLED_BANDWIDTH = 1e9  # bytes/s: slow enough that swapping has a price, as on a busy PCIe link
IN_TURN = Link(MODELLED_BANDWIDTH, MODELLED_BANDWIDTH, overlaps=False)
BESIDE = Link(MODELLED_BANDWIDTH, MODELLED_BANDWIDTH, overlaps=True)
# Plans for a link that copies in turn with compute, or beside it as a GPU's does; on a CPU the
# copies themselves are made at once either way.
OURS = {'ours recompute': dict(actions='recompute'),
        'ours mixed, 1 GB/s beside': dict(actions='both', link=BESIDE),
        'ours mixed, 1 GB/s in turn': dict(actions='both', link=IN_TURN),
        'ours mixed, measured': dict(actions='both'),
        'ours swap': dict(actions='swap', link=IN_TURN)}
FEW = ['ours swap']  # at one budget, the middle one of those that are asked for
Meters = Sequence[TorchDispatchMode]  # entered around the operators of a step


class Method:
    """The unmanaged step; others derive from it. ``budget`` is a ratio for the reader."""

    warm_steps = 0  # of each batch, before a step is like all that follow

    def __init__(self, name: str = 'unmanaged', budget: float | None = None) -> None:
        self.name, self.budget = name, budget
        self.host_peak_bytes = self.swapped_bytes = 0  # of the last step

    def step(self, task: Task, model: nn.Module, batch: Any, meters: Meters = (),
             after_forward: Callable[[], None] = lambda: None) -> Tensor:
        """Forward and backward; the loss, detached. ``meters`` see the operators."""
        with ExitStack() as stack:
            for meter in meters:
                stack.enter_context(meter)
            stack.enter_context(self.around(task, model))
            loss = task.loss(model, batch)
            after_forward()
            loss.backward()
        return loss.detach()

    def around(self, task: Task, model: nn.Module) -> AbstractContextManager:
        return nullcontext()

    @property
    def report(self) -> StepReport | None:
        """Of the last step, from those that give account of themselves."""
        return None

    def close(self) -> None:
        """Give back what lasts from step to step."""


class Checkpointed(Method):
    """torch.utils.checkpoint around every block.

    Args:
        how: 'non-reentrant', 'reentrant', or 'selective' (non-reentrant, outputs of
            ``KEPT_OPERATORS`` stay).
    """

    def __init__(self, name: str, how: str) -> None:
        super().__init__(name)
        self.how = how

    @contextmanager
    def around(self, task: Task, model: nn.Module) -> Iterator[None]:
        blocks = task.blocks(model)
        for block in blocks:
            block.forward = self.wrapped(block.forward)
        try:
            yield
        finally:
            for block in blocks:
                del block.forward

    def wrapped(self, forward: Callable) -> Callable:
        if self.how == 'reentrant':  # takes no keyword arguments
            return lambda *args, **kwargs: checkpoint(partial(forward, **kwargs), *args,
                                                      use_reentrant=True)
        options = dict(context_fn=partial(create_selective_checkpoint_contexts, keep_products)) \
            if self.how == 'selective' else {}
        return partial(checkpoint, forward, use_reentrant=False, **options)


def keep_products(context: Any, operator: Any, *_, **__) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in KEPT_OPERATORS else \
        CheckpointPolicy.PREFER_RECOMPUTE


class SavedOnCpu(Method):
    """torch.autograd.graph.save_on_cpu, on a machine where the CPU is also the device.

    Torch's own would count its copies as activations here and hand them to backward as they are.
    Ours puts them where the meters do not look (NumPy's memory) and copies them back, as a GPU
    would; like torch's it copies everything, parameters too, and each tensor as often as it is
    saved.
    """

    def around(self, task: Task, model: nn.Module) -> AbstractContextManager:
        self.swapped_bytes = 0
        return saved_tensors_hooks(self.to_host, from_host)

    def to_host(self, tensor: Tensor) -> tuple[np.ndarray, torch.dtype]:
        self.swapped_bytes += tensor.nbytes
        self.host_peak_bytes = self.swapped_bytes  # all of it is there when forward ends
        # The strides stay: a kernel may round differently for another layout.
        known = tensor.detach().view(torch.int16) if tensor.dtype == torch.bfloat16 else \
            tensor.detach()  # NumPy has no bfloat16
        return np.array(known.numpy(), copy=True, order='K'), tensor.dtype


def from_host(held: tuple[np.ndarray, torch.dtype]) -> Tensor:
    values, dtype = held
    return torch.from_numpy(values).clone().view(dtype)


class Compiled(Method):
    """torch.compile with its own activation budget, operators run eagerly.

    Its budget is a ratio of the bytes saved for backward, not of the peak. Dynamo leaves a
    network uncompiled while a dispatch mode is active, so meters are entered inside of the
    compiled graphs; the loss and what stands between graphs are not seen by them. A compiled
    backward returns all gradients at its end, so they count in its peak: compare what it saves.
    """

    warm_steps = 1

    def __init__(self, name: str, budget: float) -> None:
        super().__init__(name, budget)
        self.meters: Meters = ()
        self.compiled: nn.Module | None = None
        self.num_graphs = 0

    def step(self, task: Task, model: nn.Module, batch: Any, meters: Meters = (),
             after_forward: Callable[[], None] = lambda: None) -> Tensor:
        import torch._functorch.config as functorch_config
        if self.compiled is None:
            # Breaks and recompilations, a page for each.
            logging.getLogger('torch._dynamo').setLevel(logging.ERROR)
            self.compiled = torch.compile(model, backend=self.backend())
        self.meters = meters
        with functorch_config.patch(activation_memory_budget=self.budget):
            loss = task.loss(self.compiled, batch)
            after_forward()
            loss.backward()
        self.meters = ()
        if self.num_graphs > MOST_GRAPHS:
            raise NotImplementedError(f'the network falls into {self.num_graphs} graphs; what '
                                      'runs between them has no budget and is not measured')
        return loss.detach()

    def backend(self) -> Callable:
        """'aot_eager', and the meters around each graph."""
        from torch._dynamo.backends.common import aot_autograd
        from torch._functorch.partitioners import min_cut_rematerialization_partition
        return aot_autograd(fw_compiler=self.metered, bw_compiler=self.metered,
                            partition_fn=min_cut_rematerialization_partition,
                            keep_inference_input_mutations=True)

    def metered(self, graph: torch.fx.GraphModule, _: Any) -> Callable:
        self.num_graphs += 1
        def run(args: list) -> Any:
            with ExitStack() as stack:
                for meter in self.meters:
                    stack.enter_context(Through(meter))
                return torch.fx.Interpreter(graph).boxed_run(args)  # frees arguments as it goes
        run._boxed_call = True
        return run


class Through(TorchDispatchMode):
    """Shows operators to a meter that is not entered itself: one that is forgets what it has
    seen when it is left, and a step has several graphs."""

    def __init__(self, meter: TorchDispatchMode) -> None:
        super().__init__()
        self.meter = meter

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.meter.__torch_dispatch__(func, types, args, kwargs)


class Ours(Method):
    """MemoryBudget; ``num_bytes`` is the budget, ``budget`` the ratio that it was made from."""

    warm_steps = 1  # recorded; from the second on a plan decides

    def __init__(self, name: str, budget: float | None, num_bytes: int, *,
                 device: torch.device | str = 'cpu', **options) -> None:
        super().__init__(name, budget)
        self.manager = MemoryBudget(bytes=num_bytes, device=device, **options)

    def around(self, task: Task, model: nn.Module) -> AbstractContextManager:
        return self.manager

    def step(self, *args, **kwargs) -> Tensor:
        loss = super().step(*args, **kwargs)
        self.host_peak_bytes = self.report.host_peak_bytes
        self.swapped_bytes = self.report.swapped_bytes
        return loss

    @property
    def report(self) -> StepReport:
        return self.manager.report()

    def close(self) -> None:
        self.manager.close()


def make_rivals() -> list[Method]:
    """All but ours, the unmanaged step first."""
    return [Method(), Checkpointed('block checkpoint', 'non-reentrant'),
            Checkpointed('block checkpoint, reentrant', 'reentrant'),
            Checkpointed('selective checkpoint', 'selective'), SavedOnCpu('save_on_cpu'),
            *(Compiled('compiler budget', ratio) for ratio in (0.5, 0.3, 0.1))]


def make_ours(budgets: Sequence[float], peak_bytes: int, **options) -> list[Method]:
    """Each form of ours at each budget, ratios of the unmanaged peak."""
    return [Ours(name, ratio, round(ratio * peak_bytes), **form, **options)
            for name, form in OURS.items()
            for ratio in (budgets[len(budgets) // 2:][:1] if name in FEW else budgets)]
