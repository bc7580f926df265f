"""What ties the head's rows to a run: their step, their learning rate, their checkpoint."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper

from vision.common.core.errors import VisionError
from vision.faces.mm.head import ActiveClassHead
from vision.registry import HOOKS


@HOOKS.register_module()
class ActiveClassHook(Hook):
    """Steps the active rows of ``ActiveClassHead`` after each backward pass, and saves them.

    The learning rate is the current one of the model's first parameter group times
    ``head.lr_mult``. A step that the model's optimizer did not make (gradients not finite, or a
    too large loss scale, falling or fixed) is left out here too. Checkpoints get an entry
    ``active_class`` with the rows: of several ranks, each writes its own into a file, and reads of
    all files, which are memory-mapped, what it needs. So a run goes on with any number of ranks,
    and no rank ever holds the rows of another.

    Args:
        is_exact: a run resumed by as many ranks equals the run that wrote the checkpoint and went
            on, bit for bit, with every selector: the checkpoint has the index, too, about half as
            much again as the rows in fp16 codes, and as much again while one is being built.
            Without it a resumed run fills its index from the rows of the checkpoint.
    """

    priority = 'NORMAL'  # after NonFiniteHook, before the schedulers and the checkpoints

    def __init__(self, is_exact: bool = True) -> None:
        self.is_exact = is_exact
        self._loaded: dict[str, Any] | None = None
        self._scale, self._has_stepped = 1.0, False
        self._watch = None

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep the checkpoint's rows for ``before_train``, when there is a store for them."""
        self._loaded = checkpoint.get('active_class')

    def before_train(self, runner) -> None:
        """Make the class rows, from the checkpoint where it fits, and compare the data with them.

        Raises:
            VisionError: VIS-CONFIG-1013, gradients are accumulated; VIS-CKPT-1011, a resumed run
                whose checkpoint lacks the rows; and what ``head.require_data`` refuses.
        """
        head = self._head(runner)
        self._watch = runner.optim_wrapper.optimizer.register_step_post_hook(self._see_step)
        if getattr(runner.optim_wrapper, '_accumulative_counts', 1) != 1:
            raise VisionError('VIS-CONFIG-1013', 'accumulative_counts with ActiveClassHead',
                              where='optim_wrapper', why='rows are stepped after each batch, the '
                              'model would be after several', do='remove accumulative_counts; a '
                              'larger batch needs more ranks or a smaller backbone')
        loaded, self._loaded = self._loaded, None
        is_loaded = loaded is not None and head.fits(loaded)
        head.build(next(runner.model.parameters()).device, runner.seed, is_filled=not is_loaded)
        dataset = runner.train_dataloader.dataset
        head.require_data((getattr(dataset, 'metainfo', None) or {}).get('num_classes'),
                          len(dataset))
        if is_loaded:
            head.load_rows_state(loaded, with_selector=runner.iter > 0)
            runner.logger.info(f'class rows: {head.num_classes} from the checkpoint')
        elif runner.iter > 0:
            raise VisionError('VIS-CKPT-1011', 'the checkpoint has not the rows of '
                              f'{head.num_classes} classes', where='active_class',
                              why='a resumed run needs the rows it had' if loaded is None else
                              f'it has {loaded["num_classes"]} classes, {loaded["dim"]} '
                              f'dimensions, {loaded["num_subcentres"]} rows a class',
                              do='begin a new run from its weights: load_from instead of resume')
        else:
            runner.logger.info(f'class rows: {head.num_classes} new ones')

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Tell the head which step this is, and keep the loss scale that holds in it."""
        self._head(runner).step = runner.iter
        self._scale = _loss_scale(runner.optim_wrapper)
        self._has_stepped = False

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Step the active rows if the optimizer has stepped, else drop their gradients."""
        head, wrapper = self._head(runner), runner.optim_wrapper
        if self._has_stepped:
            head.step_rows(wrapper.param_groups[0]['lr'], self._scale)
        else:
            head.drop_step()

    def after_train(self, runner) -> None:
        """Look at the optimizer no more."""
        self._watch.remove()

    def _see_step(self, optimizer, *_) -> None:
        """Called when the optimizer's ``step`` was: wrappers and scalers leave steps out by not
        calling it, and no scale need fall. Fused optimizers are called and look themselves."""
        overflow = getattr(optimizer, 'found_inf', None)
        self._has_stepped = overflow is None or not bool(overflow)

    def checkpoint_part(self, runner) -> tuple[str, dict[str, Any]]:
        """Called by ExactRunner on every rank, for what this rank has for itself."""
        return 'active_class', self._head(runner).rows_state(is_exact=self.is_exact)

    @staticmethod
    def _head(runner) -> ActiveClassHead:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        head = getattr(model, 'head', None)
        if not isinstance(head, ActiveClassHead):
            raise VisionError('VIS-CONFIG-1016', 'ActiveClassHook without ActiveClassHead',
                              where='custom_hooks', do="remove the hook, or give the model "
                              "head=dict(type='ActiveClassHead', ...)")
        return head


def _loss_scale(wrapper) -> float:
    """Factor on the loss of mixed precision."""
    return wrapper.loss_scaler.get_scale() if isinstance(wrapper, AmpOptimWrapper) else 1.0
