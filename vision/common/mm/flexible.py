"""MMEngine's FlexibleRunner with the guarantees of ExactRunner: DDP or FSDP2 by ``strategy``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.dist import get_rank, get_world_size
from mmengine.runner import FlexibleRunner
from torch import Tensor

from vision.common.core.errors import VisionError
from vision.common.mm.agreement import one_for_all
from vision.common.mm.checkpoints import (
    gathered_gradients,
    parameters_of,
    restore_gradients,
)
from vision.common.mm.hooks import of_ours
from vision.common.mm.runner import ExactRuns
from vision.common.mm.strategies import shard_of, sharded_like
from vision.common.nn.checkpoint_folder import folder_damage, load_folder
from vision.registry import RUNNERS, STRATEGIES


@RUNNERS.register_module()
class ExactFlexibleRunner(ExactRuns, FlexibleRunner):
    """MMEngine's ``FlexibleRunner``, made exact; all that it takes, it takes.

    ``strategy=dict(type='DDPStrategy')`` writes and reads the checkpoints of ``ExactRunner``.
    ``strategy=dict(type='FSDP2Strategy', wrap=['ResidualBlock'])`` shards the parameters, and
    writes folders. Either reads what the other wrote, with any number of ranks that gives a step
    as many samples.
    """

    def __init__(self, *args, **kwargs) -> None:
        kwargs['optim_wrapper'] = of_ours(kwargs.get('optim_wrapper'))
        self._has_begun = False
        super().__init__(*args, **kwargs)

    @property
    def base_seed(self) -> int:
        return self._randomness_cfg['seed']

    @property
    def is_sharded(self) -> bool:
        return getattr(self.strategy, 'is_sharded', False)

    def build_strategy(self, strategy=None, launcher: str = 'none', **options):
        """As MMEngine's; names are looked up in this project first."""
        if strategy is None:
            strategy = dict(type='SingleDeviceStrategy' if launcher == 'none' else 'DDPStrategy')
        if isinstance(strategy, dict):
            strategy = copy.deepcopy(strategy)
            if isinstance(strategy['type'], str):
                name = strategy['type']
                strategy['type'] = STRATEGIES.get(name)
                if strategy['type'] is None:
                    raise VisionError('VIS-CONFIG-343', f'no strategy is called {name!r}',
                                      where='strategy.type', do='DDPStrategy or FSDP2Strategy')
        options['env_cfg'] = options.get('env_cfg') or {}
        return super().build_strategy(strategy, launcher, **options)

    def build_optim_wrapper(self, optim_wrapper):
        return optim_wrapper  # the strategy has built it

    def build_param_scheduler(self, schedulers):
        return schedulers

    def call_hook(self, fn_name: str, **kwargs) -> None:
        if fn_name == 'before_run' and self._has_begun:
            return
        super().call_hook(fn_name, **kwargs)

    def load_or_resume(self) -> None:
        """As ``ExactRuns``; before it, hooks make what they want to find in a checkpoint."""
        # MMEngine calls this later here than in its Runner: EMAHook would have no model to load.
        self.call_hook('before_run')
        self._has_begun = True
        super().load_or_resume()
        if self._train_loop is not None and hasattr(self.optim_wrapper, 'initialize_count_status'):
            self.optim_wrapper.initialize_count_status(
                self.model, self.train_loop.iter, self.train_loop.max_iters)

    def read_checkpoint(self, path: Path, map_location: str | Callable = 'cpu') -> dict[str, Any]:
        """Content whose tensors lie as those of the model do: whole, or this rank's shards."""
        if not self.is_sharded:
            return super().read_checkpoint(path, map_location)
        if path.is_dir():
            with one_for_all():
                if fault := folder_damage(path, (get_rank(), get_world_size())):
                    raise VisionError('VIS-CKPT-303', f'checkpoint {path.name} is damaged',
                                      where=str(path), why=fault, do='use an earlier checkpoint')
            content = load_folder(path, place=self._shard_for, map_location=map_location)
        else:
            content = super().read_checkpoint(path, map_location)
        return self._sharded(content, ())

    def waiting_gradients(self) -> list:
        if not self.is_sharded:
            return gathered_gradients(self.optim_wrapper)
        gradients = [parameter.grad for parameter in parameters_of(self.optim_wrapper)]
        return [gradients] if any(gradient is not None for gradient in gradients) else []

    def restore_gradients(self, ranks: list) -> None:
        if not self.is_sharded or len(ranks) != 1:
            restore_gradients(self.optim_wrapper, ranks)
            return
        for parameter, gradient in zip(parameters_of(self.optim_wrapper), ranks[0], strict=True):
            parameter.grad = gradient

    def _parameter_at(self, key: tuple) -> Tensor | None:
        """The parameter that something in a checkpoint belongs to, by its place there."""
        if key[0] in ('state_dict', 'ema_state_dict') and len(key) == 2:
            return dict(self.model.named_parameters()).get(key[1].removeprefix('module.'))
        if key[:2] == ('optimizer', 'state') or key[0] == 'gradients':
            number = int(key[2])
            parameters = parameters_of(self.optim_wrapper)
            return parameters[number] if number < len(parameters) else None
        return None

    def _shard_for(self, key: tuple, like: Tensor) -> Tensor | None:
        parameter = self._parameter_at(key)
        return None if parameter is None else sharded_like(like, parameter)

    def _sharded(self, content: Any, key: tuple) -> Any:
        """The content with this rank's shards in place of whole tensors of sharded parameters."""
        if isinstance(content, dict):
            return {name: self._sharded(value, (*key, str(name)))
                    for name, value in content.items()} if len(key) < 4 else content
        if isinstance(content, list):
            return [self._sharded(value, (*key, str(number)))
                    for number, value in enumerate(content)]
        if isinstance(content, Tensor) and not hasattr(content, 'placements'):
            parameter = self._parameter_at(key)
            if parameter is not None and parameter.shape == content.shape and content.ndim:
                return shard_of(content, parameter)
        return content
