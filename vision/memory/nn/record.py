"""One step of a training, recorded whole: forward, backward and optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vision.common.core.errors import VisionError
from vision.memory.core.graph import Trace
from vision.memory.nn.manager import MemoryBudget
from vision.memory.nn.tracker import LiveMemory


def record_step(model: nn.Module, batch: Any, optimizer: Any) -> tuple[Trace, int]:
    """(the recorded step, its peak in bytes by a tracker that knows nothing of plans).

    Args:
        model: has MMEngine's ``train_step(batch, optimizer)``.
        optimizer: MMEngine's wrapper, or a dict of them; its gradients are kept from now on.

    Raises:
        VisionError: VIS-RUN-1451, the step was not recorded.
    """
    def step() -> None:
        model.train_step(batch, optimizer)

    step()  # makes gradients and optimizer state, which stay from step to step
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    _keep_gradients(optimizer)
    with LiveMemory() as live:
        step()
    manager = MemoryBudget(ratio=1.0, device=next(model.parameters()).device)
    manager.name(model)
    with manager:
        step()
    trace = manager.trace()
    manager.close()
    if trace is None:
        raise VisionError('VIS-RUN-1451', 'the step was not recorded as a whole',
                          where=type(model).__name__, why='the recorder says why in its log',
                          do='look at the lines above; torch.compile and create_graph cannot '
                          'be recorded')
    return trace, live.peak_bytes


def _keep_gradients(optimizer: Any) -> None:
    """Zero gradients instead of dropping them, so that none is made in the recorded step."""
    wrappers = optimizer.values() if hasattr(optimizer, 'optim_wrappers') else [optimizer]
    for wrapper in wrappers:
        inner = wrapper.optimizer
        zero = inner.zero_grad
        inner.zero_grad = lambda *_, zero=zero, **__: zero(set_to_none=False)
