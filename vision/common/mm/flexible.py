"""MMEngine's FlexibleRunner with the guarantees of ExactRunner: DDP or FSDP2 by ``strategy``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.runner import FlexibleRunner
from torch import Tensor

from vision.common.core.errors import VisionError
from vision.common.mm.agreement import decided_by_first, one_for_all
from vision.common.mm.checkpoints import (
    gathered_gradients,
    parameters_of,
    restore_gradients,
)
from vision.common.mm.exact_data import build_dataloader
from vision.common.mm.hooks import of_ours
from vision.common.mm.runner import ExactRuns
from vision.common.mm.strategies import shard_of, sharded_like
from vision.common.nn import checkpoint as io
from vision.common.nn.checkpoint_faults import damaged
from vision.common.nn.checkpoint_folder import (
    ELSEWHERE,
    folder_damage,
    gathered,
    load_folder,
    save_folder,
)
from vision.registry import RUNNERS, STRATEGIES

# Of these entries of a checkpoint each rank has a part where ranks hold different layers.
SPREAD = ('state_dict', 'optimizer', 'ema_state_dict')

@RUNNERS.register_module()
class ExactFlexibleRunner(ExactRuns, FlexibleRunner):
    """MMEngine's ``FlexibleRunner``, made exact; all that it takes, it takes.

    ``strategy=dict(type='DDPStrategy')`` writes and reads the checkpoints of ``ExactRunner``.
    ``strategy=dict(type='FSDP2Strategy', wrap=['ResidualBlock'])`` shards the parameters, and
    writes folders. ``strategy=dict(type='ZeroPPStrategy', pp=4, num_microbatches=16)`` gives each
    rank some of the layers as well (``vision/pipeline``). Each reads what the others wrote, with
    any number of ranks that gives a step as many samples.

    A strategy whose ranks hold different layers (``is_split``) says what lies where:
    ``data_ranks``, ``place_of(key)``, ``optimizer_state``, ``own_optimizer_state``,
    ``checkpoint``; it adds ``meta()`` to a checkpoint, and sees it again in ``go_on_from``.
    """

    def __init__(self, *args, **kwargs) -> None:
        kwargs['optim_wrapper'] = of_ours(kwargs.get('optim_wrapper'))
        self._has_begun = False
        super().__init__(*args, **kwargs)

    @property
    def base_seed(self) -> int:
        """Seed of the run, without the rank."""
        return self._randomness_cfg['seed']

    @property
    def is_sharded(self) -> bool:
        """Whether ranks hold parts of each parameter, so that all of them write a checkpoint."""
        return getattr(self.strategy, 'is_sharded', False)

    @property
    def is_split(self) -> bool:
        """Whether ranks hold different layers."""
        return getattr(self.strategy, 'is_split', False)

    @property
    def data_ranks(self) -> tuple[int, int] | None:
        """(i, n): this rank reads the i-th of n shares of the data; None: each rank has its own
        share."""
        return getattr(self.strategy, 'data_ranks', None)

    def build_dataloader(self, dataloader, seed: int | None = None,
                         diff_rank_seed: bool = False):
        """As MMEngine's; ranks that hold layers of one model read the same samples."""
        return build_dataloader(dataloader, seed, diff_rank_seed, data_ranks=self.data_ranks)

    def build_strategy(self, strategy=None, launcher: str = 'none', **options):
        """As MMEngine's; names are looked up in this project first.

        Raises:
            VisionError: VIS-CONFIG-343, no strategy has the name.
        """
        if strategy is None:
            strategy = dict(type='SingleDeviceStrategy' if launcher == 'none' else 'DDPStrategy')
        if isinstance(strategy, dict):
            strategy = copy.deepcopy(strategy)
            if isinstance(strategy['type'], str):
                name = strategy['type']
                strategy['type'] = STRATEGIES.get(name)
                if strategy['type'] is None:
                    raise VisionError('VIS-CONFIG-343', f'no strategy is called {name!r}',
                                      where='strategy.type', do='DDPStrategy, FSDP2Strategy '
                                      'or ZeroPPStrategy')
        options['env_cfg'] = options.get('env_cfg') or {}
        return super().build_strategy(strategy, launcher, **options)

    def build_optim_wrapper(self, optim_wrapper):
        """As it came: the strategy has built it."""
        return optim_wrapper  # the strategy has built it

    def build_param_scheduler(self, schedulers):
        """As they came: the strategy has built them."""
        return schedulers

    def call_hook(self, fn_name: str, **kwargs) -> None:
        """As MMEngine's, but ``before_run`` comes once: ``load_or_resume`` has called it early."""
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
        """Content whose tensors lie as those of the model do: whole, or this rank's shards.

        Raises:
            VisionError: VIS-CKPT-303, a folder that is damaged; and what ``ExactRuns`` raises of
                files.
        """
        if not self.is_sharded:
            return super().read_checkpoint(path, map_location)
        if path.is_dir():
            with one_for_all():
                if fault := folder_damage(path, (get_rank(), get_world_size())):
                    raise damaged(path, fault)
            content = load_folder(path, place=self._shard_for, map_location=map_location)
        else:
            content = super().read_checkpoint(path, map_location)
        return self._sharded(content, ())

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> bool:
        """As ``ExactRuns``, with what the strategy adds where ranks hold different layers."""
        if self.is_split:
            kwargs['meta'] = dict(kwargs.get('meta') or {}, **self.strategy.meta())
        return super().save_checkpoint(out_dir, filename, *args, **kwargs)

    def optimizer_state(self) -> dict:
        """State of the optimizer, with parameters numbered as in the whole model."""
        state = super().optimizer_state()
        return self.strategy.optimizer_state(state) if self.is_split else state

    def load_optimizer(self, state: dict, filename: str) -> None:
        """Take a state of the whole model, of which a rank may need a part only."""
        if self.is_split:
            state = self.strategy.own_optimizer_state(state, filename)
        super().load_optimizer(state, filename)

    def waiting_buffers(self) -> list:
        """As ``ExactRuns``; [] where ranks hold different layers, whose buffers are in
        ``parts_of_ranks``."""
        return [] if self.is_split else super().waiting_buffers()

    def waiting_kept(self) -> list:
        """As ``ExactRuns``; [] where ranks hold different layers: a step of a pipeline whose
        accumulation has begun keeps the buffers that it has when it goes on."""
        return [] if self.is_split else super().waiting_kept()

    def parts_of_ranks(self) -> dict[str, dict]:
        """Buffers that differ from rank to rank, as BatchNorm's averages do."""
        if not self.is_split or self.strategy.checkpoint == 'full':
            return {}
        own = {name: buffer.cpu() for name, buffer in self._bare_model().named_buffers()}
        return dict(stage_buffers=dict(ranks=[dict(data_ranks=list(self.data_ranks),
                                                   tensors=own)]))

    def restore_buffers(self, content: dict) -> None:
        """Buffers of the rank that had this share of the data; with other shares, all have what
        ``state_dict`` has."""
        if self.is_split:
            self.strategy.go_on_from(content)
        super().restore_buffers(content)
        share = list(self.data_ranks or (get_rank(), get_world_size()))
        own = dict(self._bare_model().named_buffers())
        with torch.no_grad():
            for entry in content.get('stage_buffers', {}).get('ranks', []):
                if entry['data_ranks'] == share:
                    for name in entry['tensors'].keys() & own.keys():
                        own[name].copy_(entry['tensors'][name])

    def _save(self, content: dict, path: Path, parts: dict, **manifest: Any) -> None:
        if not self.is_split:
            super()._save(content, path, parts, **manifest)
            return
        of_stages = dict(spread=SPREAD, is_copy=self.data_ranks[0] > 0)
        if self.strategy.checkpoint == 'folder' or parts:
            save_folder(content, path, parts=parts, **of_stages, **manifest)
            return
        whole = gathered(content, **of_stages)
        decided_by_first(lambda: io.save_checkpoint(whole, path, **manifest))

    def waiting_gradients(self) -> list:
        """Gradients that wait for their step: this rank's shards alone, or those of all ranks on
        rank 0."""
        if not self.is_sharded:
            return gathered_gradients(self.optim_wrapper)
        gradients = [parameter.grad for parameter in parameters_of(self.optim_wrapper)]
        return [gradients] if any(gradient is not None for gradient in gradients) else []

    def restore_gradients(self, ranks: list) -> None:
        """Give this rank's parameters what ``waiting_gradients`` gave."""
        if not self.is_sharded or len(ranks) != 1:
            restore_gradients(self.optim_wrapper, ranks)
            return
        for parameter, gradient in zip(parameters_of(self.optim_wrapper), ranks[0], strict=True):
            parameter.grad = gradient

    def _parameter_at(self, key: tuple) -> Any:
        """The parameter that something in a checkpoint belongs to, by its place there; ELSEWHERE
        if another rank has it."""
        if self.is_split:
            return self.strategy.place_of(key)
        if key[0] in ('state_dict', 'ema_state_dict') and len(key) == 2:
            return dict(self.model.named_parameters()).get(key[1].removeprefix('module.'))
        if key[:2] == ('optimizer', 'state') or key[0] == 'gradients':
            number = int(key[2])
            parameters = parameters_of(self.optim_wrapper)
            return parameters[number] if number < len(parameters) else None
        return None

    def _shard_for(self, key: tuple, like: Tensor) -> Any:
        parameter = self._parameter_at(key)
        if parameter is None or parameter is ELSEWHERE:
            return parameter
        return sharded_like(like, parameter)

    def _sharded(self, content: Any, key: tuple) -> Any:
        """The content with this rank's shards in place of whole tensors of sharded parameters."""
        if isinstance(content, dict):
            if len(key) >= 4:
                return content
            parts = {name: self._sharded(value, (*key, str(name)))
                     for name, value in content.items()}
            return {name: part for name, part in parts.items() if part is not ELSEWHERE}
        if isinstance(content, list):
            return [self._sharded(value, (*key, str(number)))
                    for number, value in enumerate(content)]
        if isinstance(content, Tensor) and not hasattr(content, 'placements'):
            parameter = self._parameter_at(key)
            if parameter is ELSEWHERE:
                return ELSEWHERE
            if hasattr(parameter, 'placements') and parameter.shape == content.shape \
                    and content.ndim:
                return shard_of(content, parameter)
        return content
