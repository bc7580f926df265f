"""Stochastic paths from some point of the training on."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from vision.common.core.errors import VisionError
from vision.polynet.mm.backbone import PolyNet
from vision.registry import HOOKS


@HOOKS.register_module()
class PathDropHook(Hook):
    """No path is dropped before ``begin``; from then on the backbone's ``path_drop_rate`` holds.

    Stochastic paths (arXiv:1611.05725) are a means against over-fitting, so they may wait until it
    shows. Validation while training uses the evaluation factors of the same moment. A checkpoint
    from before ``begin`` has never seen a dropped path: test it with ``path_drop_rate=0``, later
    ones with the config as it is. After a resume the state follows from the step alone.

    Args:
        begin: first epoch (or iteration) with dropped paths, counted from 0.
        by_epoch: whether ``begin`` is an epoch.

    Raises:
        VisionError: VIS-CONFIG-061, ``begin`` below 0; VIS-CONFIG-068, a model without paths to
            drop.
    """

    priority = 'NORMAL'

    def __init__(self, begin: int, *, by_epoch: bool = True) -> None:
        if begin < 0:
            raise VisionError('VIS-CONFIG-061', f'begin={begin} is below 0', where='PathDropHook',
                              do='give the first epoch or iteration, counted from 0')
        self.begin, self.by_epoch = begin, by_epoch
        self.backbones: list[PolyNet] = []

    def before_train(self, runner) -> None:
        """Find the PolyNets of the model and set their paths to what holds at this step.

        Raises:
            VisionError: VIS-CONFIG-068, none of them has ``path_drop_rate`` above 0.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.backbones = [part for part in model.modules() if isinstance(part, PolyNet)]
        if not any(any(backbone.path_drops) for backbone in self.backbones):
            raise VisionError('VIS-CONFIG-068', 'there is no path to drop', where='PathDropHook',
                              why=f'the model has {len(self.backbones)} PolyNets, none with '
                              'path_drop_rate > 0', do='set path_drop_rate of the backbone, or '
                              'remove the hook')
        self._switch(runner)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Let paths drop from ``begin`` on; read from the step, so that a resume needs no
        state."""
        self._switch(runner)

    def _switch(self, runner) -> None:
        now = runner.epoch if self.by_epoch else runner.iter
        for backbone in self.backbones:
            backbone.enable_path_drop(now >= self.begin)
