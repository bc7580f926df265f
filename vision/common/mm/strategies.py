"""How a model is spread over ranks: whole on each (DDP), or its parameters in shards (FSDP2)."""

from __future__ import annotations

import copy

import torch
from mmengine._strategy import DDPStrategy as _DDPStrategy
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_distributed
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from torch import Tensor, nn

from vision.common.core.errors import VisionError
from vision.common.mm.agreement import join_ranks
from vision.registry import STRATEGIES


@STRATEGIES.register_module()
class DDPStrategy(_DDPStrategy):
    """MMEngine's strategy and options; processes also run on CPUs."""

    is_sharded = False

    def _setup_distributed(self, launcher: str = 'pytorch', backend: str = 'nccl', **options):
        join_ranks(launcher, backend, **options)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        require_ranks(type(self).__name__)
        if torch.cuda.is_available() or self.model_wrapper is not None:
            return super()._wrap_model(model)
        # MMEngine names a GPU for each process; SyncBN has no CPU form.
        return MMDistributedDataParallel(module=revert_sync_batchnorm(model),
                                         broadcast_buffers=False)


@STRATEGIES.register_module()
class FSDP2Strategy(DDPStrategy):
    """Parameters, gradients and optimizer state in shards over all ranks (``fully_shard``).

    Each rank keeps a part of every parameter and gathers the whole one where it is used. Values
    are those of DDP up to rounding. With ``accumulative_counts`` gradients are reduced after
    every batch: what waits for its step is then sharded as well, takes no more memory, and is in
    the checkpoint for any number of ranks; ``no_sync`` would keep whole gradients on each.

    Args:
        wrap: names of module classes that are gathered one at a time, such as the blocks of a
            backbone; parameters outside of them are gathered together.
        param_dtype: 'bfloat16' or 'float16' of gathered parameters; the shards that are stepped
            stay float32, and gradients are reduced in float32. None: no change.
        **options: of MMEngine's ``DDPStrategy``, without ``model_wrapper``.

    Raises:
        VisionError: VIS-CONFIG-354, a name in ``wrap`` that no module has; VIS-DIST-344, there
            is no group of ranks.
    """

    is_sharded = True

    def __init__(self, *, wrap: list[str] | tuple[str, ...] = (), param_dtype: str | None = None,
                 **options) -> None:
        super().__init__(**options)
        self.wrap, self.param_dtype = tuple(wrap), param_dtype

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        require_ranks(type(self).__name__)
        known = {type(module).__name__ for module in model.modules()}
        if unknown := sorted(set(self.wrap) - known):
            raise VisionError('VIS-CONFIG-354', f'no module of the model is a {unknown[0]}',
                              where='strategy.wrap', do='name classes of its modules: '
                              + ', '.join(sorted(known)[:20]))
        pristine = copy.deepcopy(model).to('meta')
        model = model.to(get_device())
        model = self.convert_model(model) if torch.cuda.is_available() \
            else revert_sync_batchnorm(model)
        self._shard(model)
        # FSDP2 refuses to be copied; averaged weights (EMAHook) need a second model.
        model.__deepcopy__ = lambda memo: self._twin(pristine, model)
        return model

    def _shard(self, model: nn.Module) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
        dtype = self.param_dtype and getattr(torch, self.param_dtype)
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32) \
            if dtype else MixedPrecisionPolicy()
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
        # The root, too, gives its parameters back after a forward pass: hooks that read them
        # between steps, such as EMAHook, then meet shards always.
        options = dict(mesh=init_device_mesh(device, (get_world_size(),)), mp_policy=policy,
                       reshard_after_forward=True)
        for module in reversed(list(model.modules())):
            if type(module).__name__ in self.wrap and module is not model:
                fully_shard(module, **options)
        fully_shard(model, **options)

    def _twin(self, pristine: nn.Module, model: nn.Module) -> nn.Module:
        """A second model, sharded like the first, of the same values."""
        twin = copy.deepcopy(pristine)
        self._shard(twin)
        twin.to_empty(device=next(model.buffers(), next(model.parameters())).device)
        with torch.no_grad():
            for own, other in zip(twin.parameters(), model.parameters(), strict=True):
                own.copy_(other)
            for own, other in zip(twin.buffers(), model.buffers(), strict=True):
                own.copy_(other)
        return twin


def require_ranks(name: str) -> None:
    """Raises VIS-DIST-344 where this process was started alone."""
    if not is_distributed():
        raise VisionError('VIS-DIST-344', f'{name} in a process that was started alone',
                          where='strategy', why='it spreads a model over the ranks of a group',
                          do='bash tools/dist_train.sh CONFIG NUM_PROCESSES, of which there may '
                          'be one')


def sharded_like(tensor: Tensor, parameter: Tensor) -> Tensor | None:
    """An empty shard for a tensor of the parameter's shape, None for one of another shape."""
    if not hasattr(parameter, 'placements') or parameter.shape != tensor.shape:
        return None
    return torch.empty_like(parameter.detach(), dtype=tensor.dtype)


def shard_of(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank has whole, as a DTensor of its whole shape that
    is spread as ``parameter`` is."""
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh,
                             parameter.placements, src_data_rank=None)
