"""RMSProp as TensorFlow computes it: epsilon inside the square root.

torch's RMSprop divides by ``sqrt(v) + eps``, TensorFlow by ``sqrt(v + eps)``. With a large eps,
as recipes of Inception networks have it, these are different optimizers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.optim import Optimizer

from vision.common.core.errors import VisionError


class RMSpropTF(Optimizer):
    """v = alpha v + (1 - alpha) g^2;  m = momentum m + lr g / sqrt(v + eps);  w = w - m.

    Args:
        lr: learning rate; it is inside the momentum buffer, so that a change of lr acts on new
            gradients only, as in TensorFlow.
        alpha: decay of the mean square.
        momentum: 0 for none.
        eps: added to the mean square.
        weight_decay: L2 term added to the gradient.
        initial_square: v before the first step; 1 as in TensorFlow 1, which makes first steps
            small, where torch begins with 0.

    Raises:
        VisionError: VIS-CONFIG-1231, a value out of its range.
    """

    def __init__(self, params, lr: float = 0.01, *, alpha: float = 0.9, momentum: float = 0.0,
                 eps: float = 1e-10, weight_decay: float = 0.0,
                 initial_square: float = 1.0) -> None:
        if lr < 0 or not 0 <= alpha < 1 or not 0 <= momentum < 1 or eps < 0 or initial_square < 0:
            raise VisionError('VIS-CONFIG-1231', f'lr={lr}, alpha={alpha}, momentum={momentum}, '
                              f'eps={eps}, initial_square={initial_square}', where='RMSpropTF',
                              why='no value is negative; alpha and momentum are below 1',
                              do='mend optim_wrapper.optimizer in the config')
        super().__init__(params, dict(lr=lr, alpha=alpha, momentum=momentum, eps=eps,
                                      weight_decay=weight_decay, initial_square=initial_square))

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Step every parameter that has a gradient; gives what ``closure`` gave, None
        without one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group['params']:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state['square'] = torch.full_like(parameter, group['initial_square'])
            if group['momentum'] > 0:
                state['velocity'] = torch.zeros_like(parameter)
        if group['weight_decay']:
            gradient = gradient.add(parameter, alpha=group['weight_decay'])
        square = state['square']
        square.mul_(group['alpha']).addcmul_(gradient, gradient, value=1 - group['alpha'])
        root = square.add(group['eps']).sqrt_()
        if group['momentum'] > 0:
            state['velocity'].mul_(group['momentum']).addcdiv_(gradient, root, value=group['lr'])
            parameter.sub_(state['velocity'])
        else:
            parameter.addcdiv_(gradient, root, value=-group['lr'])
