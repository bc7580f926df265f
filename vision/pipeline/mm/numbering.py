"""The optimizer of a whole model, and the part of it that a rank steps.

An optimizer's state knows parameters by number. Here they are numbered as in the optimizer of
the whole model, so that a checkpoint of any pipeline is one of a single process.
"""

from __future__ import annotations

from typing import Any

from mmengine.optim import BaseOptimWrapper, OptimWrapperDict
from torch import nn

from vision.common.core.errors import VisionError
from vision.common.mm.checkpoints import other_parameters


class Numbering:
    """Parameters of an optimizer wrapper over the whole model, by group and in order.

    Raises:
        VisionError: VIS-CONFIG-1536 or VIS-CONFIG-1549, several optimizers, or one that
            accumulates gradients itself.
    """

    def __init__(self, wrapper: BaseOptimWrapper, model: nn.Module) -> None:
        if isinstance(wrapper, OptimWrapperDict):
            raise VisionError('VIS-CONFIG-1536', 'several optimizers in a pipeline',
                              where='optim_wrapper', why='one step of the pipeline makes all '
                              'gradients', do='use one optimizer, with paramwise_cfg for groups')
        if getattr(wrapper, '_accumulative_counts', 1) > 1:
            raise VisionError('VIS-CONFIG-1549', 'accumulative_counts in a pipeline',
                              where='optim_wrapper.accumulative_counts', why='the micro-batches '
                              'of a step are accumulated already',
                              do='remove it and raise num_microbatches and batch_size')
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.groups = [[names[id(parameter)] for parameter in group['params']]
                       for group in wrapper.optimizer.param_groups]
        self.order = [name for group in self.groups for name in group]
        self.number = {name: number for number, name in enumerate(self.order)}
        self.own: list[str] = list(self.order)

    def keep(self, wrapper: BaseOptimWrapper, model: nn.Module) -> None:
        """Let the optimizer step the parameters that are left in ``model``, whatever tensors
        they are by now. Groups stay, also empty ones: schedules go by group."""
        now = dict(model.named_parameters())
        assert not wrapper.optimizer.state, 'an optimizer that has stepped'
        for group, names in zip(wrapper.optimizer.param_groups, self.groups, strict=True):
            group['params'] = [now[name] for name in names if name in now]
        self.own = [name for name in self.order if name in now]

    def to_global(self, state: dict[str, Any]) -> dict[str, Any]:
        """State of this rank's optimizer, numbered as in that of the whole model."""
        groups = [dict(group, params=[self.number[name] for name in names])
                  for group, names in zip(state['param_groups'], self.groups, strict=True)]
        entries = {self.number[self.own[place]]: entry
                   for place, entry in state['state'].items()}
        return dict(state, state=entries, param_groups=groups)

    def to_own(self, state: dict[str, Any], filename: str) -> dict[str, Any]:
        """The reverse; what other ranks hold is left out.

        Raises:
            VisionError: VIS-CONFIG-348, the state is of other parameters.
        """
        sizes = [len(group['params']) for group in state['param_groups']]
        if sizes != [len(names) for names in self.groups]:
            raise other_parameters(filename, f'parameters by group: {sizes[:5]} instead of '
                                   f'{[len(names) for names in self.groups][:5]}')
        place = {self.number[name]: i for i, name in enumerate(self.own)}
        own, groups = set(self.own), []
        for group, names in zip(state['param_groups'], self.groups, strict=True):
            groups.append(dict(group, params=[place[self.number[name]] for name in names
                                              if name in own]))
        entries = {place[int(number)]: entry for number, entry in state['state'].items()
                   if int(number) in place}
        return dict(state, state=entries, param_groups=groups)
