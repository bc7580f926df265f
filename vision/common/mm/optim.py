"""Optimizers of ours, and wrappers that never step on numbers that are not finite."""

from __future__ import annotations

import torch
from mmengine.optim import AmpOptimWrapper as _AmpOptimWrapper
from mmengine.optim import OptimWrapper as _OptimWrapper

from vision.common.core.errors import VisionError
from vision.common.nn.rmsprop_tf import RMSpropTF
from vision.registry import OPTIM_WRAPPERS, OPTIMIZERS

OPTIMIZERS.register_module(module=RMSpropTF)


class _FiniteSteps:
    """A step with a NaN or infinite gradient is left out and counted.

    After the gradients of all ranks are summed, every rank sees the same numbers: all leave the
    step out or none does. ``NonFiniteHook`` decides when it is too often.

    Attributes:
        num_skipped: steps left out so far; num_skipped_in_row: those since the last good one.
        norm_group: ranks that hold other parameters of the same model, as the stages of a
            pipeline do. Norms of gradients are then those of the whole model.
    """

    num_skipped = 0
    num_skipped_in_row = 0
    norm_group: torch.distributed.ProcessGroup | None = None
    _norm: torch.Tensor | None = None  # of this step, so that clipping needs no second one

    def initialize_count_status(self, model: torch.nn.Module, init_counts: int,
                                max_counts: int) -> None:
        """As MMEngine's, without its warning: a checkpoint of ours holds gradients that wait."""
        super().initialize_count_status(model, 0, max_counts)
        self._inner_count = init_counts

    @property
    def is_step_begun(self) -> bool:
        """Do gradients wait for their step?"""
        return self._inner_count % self._accumulative_counts != 0

    def update_params(self, loss: torch.Tensor, step_kwargs: dict | None = None,
                      zero_kwargs: dict | None = None) -> None:
        loss = self.scale_loss(loss)
        self.backward(loss)
        if self.should_update():
            self.finish_step(step_kwargs, zero_kwargs)

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss whose backward gives the gradients that ``finish_step`` expects."""
        return loss

    def finish_step(self, step_kwargs: dict | None = None,
                    zero_kwargs: dict | None = None) -> None:
        """The step from gradients that are there; what comes after backward."""
        if self.is_scaled or self._are_gradients_finite():
            self._step(step_kwargs or {})
        else:
            self.num_skipped += 1
            self.num_skipped_in_row += 1
        self.zero_grad(**(zero_kwargs or {}))

    is_scaled = False

    def _step(self, step_kwargs: dict) -> None:
        self.num_skipped_in_row = 0
        self.step(**step_kwargs)

    def _are_gradients_finite(self) -> bool:
        gradients = [p.grad for group in self.optimizer.param_groups for p in group['params']
                     if p.grad is not None]
        if not gradients and self.norm_group is None:
            return True
        # A NaN or infinity anywhere makes the norm so.
        self._norm = total_norm(gradients, group=self.norm_group)
        return bool(self._norm.isfinite())

    def _clip_grad(self) -> None:
        """As MMEngine's; by the norm of the whole model where ranks hold parts of it."""
        if self.norm_group is None or self.clip_func is not torch.nn.utils.clip_grad_norm_:
            super()._clip_grad()
            return
        parameters = [p for group in self.optimizer.param_groups for p in group['params']
                      if p.requires_grad and p.grad is not None]
        options = dict(self.clip_grad_kwargs)
        max_norm = float(options.pop('max_norm'))
        is_strict = options.pop('error_if_nonfinite', False)
        norm, self._norm = self._norm, None
        if norm is None or options.get('norm_type', 2.0) != 2:
            norm = total_norm([p.grad for p in parameters], group=self.norm_group, **options)
        if is_strict and not norm.isfinite():
            raise RuntimeError(f'the norm of the gradients is {float(norm)}')
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm,
                                             foreach=options.get('foreach'))
        self.message_hub.update_scalar(f'train/{self.grad_name}', float(norm))


def total_norm(gradients: list[torch.Tensor], norm_type: float = 2.0, *,
               foreach: bool | None = None,
               group: torch.distributed.ProcessGroup | None = None) -> torch.Tensor:
    """Norm of gradients, a scalar, those of ``group``'s other ranks included; shards are brought
    together.

    Every rank of the group must come here, also one that has no gradient.

    Args:
        gradients: of any shapes.
        norm_type: 2 or another power, or inf for the largest number.
    """
    if gradients:
        norm = torch.nn.utils.get_total_norm(gradients, norm_type, foreach=foreach)
        norm = getattr(norm, 'full_tensor', lambda: norm)().float()
    else:
        norm = torch.zeros((), device=torch.device('cuda', torch.cuda.current_device())
                           if torch.cuda.is_available() else 'cpu')
    if group is None:
        return norm
    if norm_type == float('inf'):
        torch.distributed.all_reduce(norm, torch.distributed.ReduceOp.MAX, group)
        return norm
    power = norm ** norm_type
    torch.distributed.all_reduce(power, torch.distributed.ReduceOp.SUM, group)
    return power ** (1 / norm_type)


@OPTIM_WRAPPERS.register_module()
class OptimWrapper(_FiniteSteps, _OptimWrapper):
    """MMEngine's wrapper and options; steps that are not finite are left out and counted."""


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(_FiniteSteps, _AmpOptimWrapper):
    """MMEngine's mixed precision and options, on a CPU too; a step that is not finite counts.

    In bfloat16, which has the range of float32, the loss is not scaled. In float16 the scale
    falls whenever a step overflowed, which is usual; such a step counts in a row only when the
    scale has fallen below one.

    Args:
        dtype: 'bfloat16' or 'float16'; default: float16 on a GPU, bfloat16 on a CPU, which has
            no other.
        loss_scale: as MMEngine's, for float16.

    Raises:
        VisionError: VIS-CONFIG-332, float16 on a CPU; VIS-CONFIG-349, a scale for bfloat16.
    """

    def __init__(self, loss_scale: str | float | dict = 'dynamic',
                 dtype: str | torch.dtype | None = None, use_fsdp: bool = False, **kwargs) -> None:
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype)
        is_on_gpu = torch.cuda.is_available()
        dtype = dtype or (torch.float16 if is_on_gpu else torch.bfloat16)
        if dtype == torch.float16 and not is_on_gpu:
            raise VisionError('VIS-CONFIG-332', 'mixed precision in float16 on a CPU',
                              where='optim_wrapper.dtype', why='a CPU computes in bfloat16 or '
                              'float32', do="dtype='bfloat16', or leave it out")
        self.is_scaled = dtype == torch.float16
        if not self.is_scaled and loss_scale != 'dynamic':
            raise VisionError('VIS-CONFIG-349', f'loss_scale={loss_scale} with {dtype}',
                              where='optim_wrapper.loss_scale', why='only losses in float16 are '
                              'scaled', do='remove loss_scale')
        if self.is_scaled:
            super().__init__(loss_scale=loss_scale, dtype=dtype, use_fsdp=use_fsdp, **kwargs)
        else:  # MMEngine's __init__ asks for a GPU, for the scaler that bfloat16 does not need
            _OptimWrapper.__init__(self, **kwargs)
            self.loss_scaler = torch.amp.GradScaler(enabled=False)
            self._scale_update_param, self.cast_dtype = None, dtype

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """The scalar loss times the scale of float16; in bfloat16 as it is."""
        return self.loss_scaler.scale(loss)

    def _step(self, step_kwargs: dict) -> None:
        before = self.loss_scaler.get_scale()
        self.step(**step_kwargs)
        scale = self.loss_scaler.get_scale()
        self.num_skipped += scale < before
        self.num_skipped_in_row = self.num_skipped_in_row + 1 if scale < min(before, 1) else 0
