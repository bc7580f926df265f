"""Optimizers of ours, and a wrapper that never steps on numbers that are not finite."""

from __future__ import annotations

import torch
from mmengine.optim import OptimWrapper as _OptimWrapper

from vision.common.nn.rmsprop_tf import RMSpropTF
from vision.registry import OPTIM_WRAPPERS, OPTIMIZERS

OPTIMIZERS.register_module(module=RMSpropTF)


@OPTIM_WRAPPERS.register_module()
class OptimWrapper(_OptimWrapper):
    """MMEngine's wrapper; a step with a NaN or infinite gradient is left out and counted.

    After the gradients of all ranks are summed, every rank sees the same numbers: all leave the
    step out or none does. ``NonFiniteHook`` decides when it is too often.

    Attributes:
        num_skipped: steps left out so far; num_skipped_in_row: those since the last good one.
    """

    num_skipped = 0
    num_skipped_in_row = 0

    def update_params(self, loss: torch.Tensor, step_kwargs: dict | None = None,
                      zero_kwargs: dict | None = None) -> None:
        loss = self.scale_loss(loss)
        self.backward(loss)
        if not self.should_update():
            return
        if self._are_gradients_finite():
            self.num_skipped_in_row = 0
            self.step(**(step_kwargs or {}))
        else:
            self.num_skipped += 1
            self.num_skipped_in_row += 1
        self.zero_grad(**(zero_kwargs or {}))

    def _are_gradients_finite(self) -> bool:
        gradients = [p.grad for group in self.optimizer.param_groups for p in group['params']
                     if p.grad is not None]
        if not gradients:
            return True
        # A NaN or infinity anywhere makes the norm so.
        return bool(torch.nn.utils.get_total_norm(gradients).isfinite())
