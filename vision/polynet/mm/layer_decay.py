"""Learning rates that fall with the distance from the head."""

from __future__ import annotations

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from vision.common.core.errors import VisionError
from vision.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LearningRateDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Layer-wise learning-rate decay (named and configured as in MMPretrain).

    In ``paramwise_cfg``, beside all that MMEngine's default constructor knows:
    ``layer_decay_rate`` in (0, 1]. A parameter of depth d out of n gets its learning rate times
    ``rate ** (n - 1 - d)``: heads and necks the full rate, the stem the lowest. Depths come from
    the backbone's ``get_layer_depth(name, prefix)``. Parameters with the same settings share one
    group, so that the optimizer steps in few calls.

    Raises:
        VisionError: VIS-CONFIG-060, no rate in (0, 1]; VIS-CONFIG-067, no module with
            ``get_layer_depth``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        # Here, not in add_params: without paramwise_cfg MMEngine never calls that.
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise VisionError('VIS-CONFIG-060', f'layer_decay_rate={rate!r} is not in (0, 1]',
                              where='optim_wrapper.paramwise_cfg', do='give e.g. 0.9')
        self.rate = rate

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '',
                   is_dcn_module: int | float | None = None) -> None:
        """Append the groups of ``module`` to ``params``; once those of the whole model are there,
        scale their learning rates by depth and merge groups with equal settings."""
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix == '':  # the whole model; MMEngine calls this again for each part of it
            params[:] = merged(self.scaled(params, module))

    def scaled(self, params: list[dict], model: nn.Module) -> list[dict]:
        """The same groups with learning rates by depth; each must hold one parameter.

        Raises:
            VisionError: VIS-CONFIG-067, no module of the model has ``get_layer_depth``.
        """
        name, backbone = next(((name, part) for name, part in model.named_modules()
                               if hasattr(part, 'get_layer_depth')), (None, None))
        if backbone is None:
            raise VisionError('VIS-CONFIG-067', f'{type(model).__name__} has no backbone with '
                              'depths', why='no module has get_layer_depth',
                              do='use a PolyNet, or leave the constructor out')
        depths = {id(param): backbone.get_layer_depth(full, f'{name}.' if name else '')
                  for full, param in model.named_parameters()}
        for group in params:
            depth, num_depths = depths[id(group['params'][0])]
            group['lr'] = group.get('lr', self.base_lr) * self.rate ** (num_depths - 1 - depth)
        return params


def merged(groups: list[dict]) -> list[dict]:
    """One group for all that differ in their parameters alone, in the order of their first."""
    found: dict[tuple, dict] = {}
    for group in groups:
        key = tuple(sorted((name, value) for name, value in group.items() if name != 'params'))
        first = found.setdefault(key, group | dict(params=[]))
        first['params'] += group['params']
    return list(found.values())
