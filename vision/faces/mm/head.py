"""The training head: margin softmax over the active classes, whose rows live in a store."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from mmengine.model import BaseModule
from torch import Tensor

from vision.common.core.errors import VisionError
from vision.faces.nn.head.gather import batch_sizes, gather_batch, gather_labels
from vision.faces.nn.head.margins import build_margin
from vision.faces.nn.head.selective import selective_loss, wrong_head
from vision.faces.nn.store.ranks import check_ranks
from vision.faces.nn.store.side_stream import LaterAnswer
from vision.registry import MODELS

DTYPES = {None: None, 'float16': torch.float16, 'bfloat16': torch.bfloat16}


@MODELS.register_module()
class ActiveClassHead(BaseModule):
    """Selective softmax over very many classes (arXiv:1801.01687; the selectors are ours).

    Class rows are no parameters of the model: a ``ClassStore`` holds them (on the device, in host
    memory, or spread over ranks) and steps only those that were active. ``ActiveClassHook`` must
    be among the config's hooks: it makes that step after each backward pass, with the learning
    rate of the model's first parameter group, and keeps rows and selector in checkpoints.
    Memory is taken when training begins, so that a config with a million classes also builds
    where it is only tested.

    Args:
        num_classes: identities in the training data, labels 0 to num_classes - 1.
        in_channels: length of the embedding.
        margin: ``type`` and options of a class of ``vision.faces.nn.head.margins``.
        selector: ``type`` (full, random, oracle, forest, ivf, faiss, device), ``num_active`` and
            options of ``build_selector``.
        store: options of ``build_store``: backend, optimizer.
        num_subcentres: rows per class; the nearest of them counts (sub-centre ArcFace).
        is_cosine: False: inner products, with a plain ``Softmax``.
        correction: 'none' or 'sampled': each random row stands for those that were not drawn
            (``selective_loss``).
        lr_mult: learning rate of the rows over that of the model.
        matmul_dtype: 'float16' or 'bfloat16' for the products of features and rows.
        spare_classes: the data may have fewer identities than ``num_classes`` (a comparison at a
            fixed size, identities to come). Without it that is taken for a slip: rows without
            pictures cost memory and time, and change what random selection draws.
    """

    def __init__(self, num_classes: int, in_channels: int, *, margin: dict | None = None,
                 selector: dict | None = None, store: dict | None = None,
                 num_subcentres: int = 1, is_cosine: bool = True, correction: str = 'none',
                 lr_mult: float = 1.0, matmul_dtype: str | None = None,
                 spare_classes: bool = False,
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg)
        margin = dict(margin or dict(type='ArcFace'))
        self.selector_config = dict(selector or dict(type='full'))
        self.store_config = dict(store or {})
        _check(num_classes, num_subcentres, correction, self.selector_config, matmul_dtype)
        self.num_classes, self.dim = num_classes, in_channels
        self.spare_classes = spare_classes
        self.margin = build_margin(margin.pop('type', 'ArcFace'), **margin)
        self.num_subcentres, self.is_cosine = num_subcentres, is_cosine
        self.correction, self.lr_mult = correction, lr_mult
        self.matmul_dtype = DTYPES[matmul_dtype]
        self.store = self.selector = self.group = None
        self.step = 0  # set by the hook, so that a resumed run goes on counting
        self.pending: tuple[Tensor, Tensor] | None = None
        self._doubt: tuple[LaterAnswer, Tensor, list[int]] | None = None

    def build(self, device: torch.device | str, seed: int = 0, *, is_filled: bool = True) -> None:
        """Take the memory of the rows and make the selector; every rank must come here.

        Args:
            is_filled: False: no new rows are drawn, ``load_rows_state`` is next.
        """
        if self.store is not None:
            return
        # Here, not above: a recogniser that is only used needs neither rows nor an index.
        from vision.faces.nn.select.build import build_selector
        from vision.faces.nn.store.class_store import build_store
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.group = dist.group.WORLD
        self.store = build_store(self.num_classes * self.num_subcentres, self.dim, seed=seed,
                                 device=device, group=self.group,
                                 rows_per_class=self.num_subcentres, is_filled=is_filled,
                                 **self.store_config)
        options = dict(dict(scale=self.margin.scale), **self.selector_config)
        self.selector = build_selector(options.pop('type'), self.store, seed=seed,
                                       is_cosine=self.is_cosine, target=self.margin.target,
                                       num_centres=self.num_subcentres, **options)

    def require_data(self, num_identities: int | None, num_samples: int) -> None:
        """Refuse training data before any step of it; every rank must come here.

        Args:
            num_identities: of the data set; None: it does not say.

        Raises:
            VisionError: VIS-DATA-1015, more identities than classes; VIS-CONFIG-1806, fewer,
                and the head does not say that it may; VIS-DIST-1024, on every
                rank, when ranks read different data.
        """
        if self.group is not None:
            check_ranks(self.group, self.store.device, num_identities=num_identities or 0,
                        num_samples=num_samples)
        if num_identities is not None and num_identities > self.num_classes:
            raise VisionError('VIS-DATA-1015', f'the data set has {num_identities} identities',
                              where='train_dataloader.dataset', why=f'the head has '
                              f'{self.num_classes} classes', do='set model.head.num_classes='
                              f'{num_identities}')
        if num_identities is not None and num_identities < self.num_classes \
                and not self.spare_classes:
            raise VisionError('VIS-CONFIG-1806', f'the head has {self.num_classes} classes, the '
                              f'data {num_identities} identities',
                              where='model.head.num_classes', why='rows without pictures cost '
                              'memory and time and are drawn among the others',
                              do=f'set model.head.num_classes={num_identities}, or '
                              'model.head.spare_classes=True if the rest is to come')

    def prefetch(self, labels: Tensor) -> None:
        """Begin what the labels decide, while the backbone works; the loss is the same without.

        Random rows are drawn by a thread; a store in host memory fetches them and own classes.
        Every rank must come here.

        Args:
            labels: (B,) int64 of this rank, those of the next ``loss``.

        Raises:
            VisionError: VIS-DATA-1014, on every rank, a label outside the classes.
        """
        self.build(labels.device)
        if not self.store.fetches_ahead and not self.selector.draws_from_labels:
            return
        sizes = batch_sizes(labels, self.group)
        labels = gather_labels(labels, self.group, sizes)
        self._check_labels(labels, sizes)
        labels = labels * self.num_subcentres
        self.selector.expect(labels, self.step)
        if self.store.fetches_ahead:
            known = self.selector.known_rows(labels, self.step)
            self.store.prefetch(self._with_all_centres(known))

    def loss(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Losses and figures of one step.

        Args:
            features: (B, d) of this rank, not normalised.
            labels: (B,) int64.

        Raises:
            VisionError: VIS-DATA-1014, a label outside the classes (with a selector that never
                waits it is raised by ``step_rows`` and ``drop_step``); VIS-CONFIG-1012, the rows
                of the step before were never updated; what the selector says. What one rank has
                to say is raised on every one.
        """
        self.build(features.device)
        self._settle_doubt()
        if self.pending is not None and self.training:
            raise VisionError('VIS-CONFIG-1012', 'the rows of the last step were never updated',
                              where='custom_hooks', why='class rows are stepped by a hook',
                              do="add dict(type='ActiveClassHook') to custom_hooks")
        sizes = batch_sizes(labels, self.group)
        features, labels = gather_batch(features, labels, self.group, sizes=sizes,
                                        gradient_factor=len(sizes))
        is_step = self.training and torch.is_grad_enabled()
        if is_step and self.selector.never_waits:
            self._doubt = LaterAnswer(self._is_bad(labels).any()), labels, sizes
        else:
            self._check_labels(labels, sizes)
        # In half precision other rows would be chosen, and those of an index built here and in a
        # thread, which knows no autocast, would not be the same.
        with torch.autocast(features.device.type, enabled=False):
            rows, columns, counts, stats = self._select(features.detach().float(), labels)
        weights = self.store.pull(rows, is_checked=True)
        result = selective_loss(
            features, weights, columns, self.margin, is_cosine=self.is_cosine,
            num_subcentres=self.num_subcentres, correction=self.correction,
            expected_counts=counts, group=self.group, matmul_dtype=self.matmul_dtype)
        if is_step:
            self.pending = rows, weights
        figures = stats | dict(target_probability=result.target_probability.mean(),
                               num_active=len(rows) // self.num_subcentres)
        return dict(loss=result.loss, **{
            name: value.float() if isinstance(value, Tensor) else
            torch.full((), float(value), device=features.device)
            for name, value in figures.items()})

    def step_rows(self, lr: float, gradient_scale: float = 1.0) -> None:
        """One optimizer step on the rows of the last loss, after its backward pass.

        Args:
            gradient_scale: what the loss was multiplied by before the backward pass.

        Raises:
            VisionError: VIS-DATA-1014, a label of the step was outside the classes, where ``loss``
                has not looked; no row has changed.
        """
        rows, weights = self.pending
        self.pending = None
        self._settle_doubt()
        gradient = weights.grad if gradient_scale == 1 else weights.grad / gradient_scale
        self.store.push(rows, gradient, lr=lr * self.lr_mult)
        self.selector.after_update(rows, self.step)

    def drop_step(self) -> None:
        """Leave the rows of the last loss as they are: its gradients were not finite.

        Raises:
            VisionError: as ``step_rows``.
        """
        self.pending = None
        self._settle_doubt()

    def rows_state(self, *, is_exact: bool = True) -> dict[str, Any]:
        """Rows, optimizer and selector of this rank; the run is not changed by it.

        States of several ranks are joined by joining their lists, ``stores`` and ``selectors``.

        Args:
            is_exact: with the lists of an index, and the snapshot of one under way, so that what
                is loaded selects as this head does.
        """
        return dict(num_classes=self.num_classes, dim=self.dim,
                    num_subcentres=self.num_subcentres, selector_kind=self._selector_kind,
                    stores=[self.store.state_dict()],
                    selectors=[self.selector.state_dict(is_exact=is_exact)])

    def load_rows_state(self, state: dict[str, Any], *, with_selector: bool = True) -> None:
        """Take what ``rows_state`` gave on all ranks, joined; also on another number of them.

        Of memory-mapped stores only the rows of this rank are read. One process takes the tensors
        of a state that one process saved as they are, and reads a row when it becomes active.

        Args:
            with_selector: go on with its index and decisions, too: their steps are those of the
                run that made them.

        Raises:
            VisionError: VIS-CKPT-1017, they are another kind of selector's.
        """
        kind = state.get('selector_kind', self._selector_kind)
        if with_selector and kind != self._selector_kind:
            raise VisionError('VIS-CKPT-1017', f'the run had the selector {kind}, now it has '
                              f'{self._selector_kind}', where='model.head.selector',
                              why='a resumed run goes on with its index and decisions',
                              do='resume with the config that wrote the checkpoint, or begin a '
                              'new run from its weights and rows: load_from')
        self.store.load_ranges(state['stores'], takes_tensors=True)
        world = 1 if self.group is None else dist.get_world_size(self.group)
        rank = 0 if self.group is None else dist.get_rank(self.group)
        if not with_selector:
            return
        if len(state['selectors']) == world:
            self.selector.load_state_dict(state['selectors'][rank])
        else:  # what was decided holds on every rank; an index has other rows now
            from vision.faces.nn.select.build import without_index
            self.selector.load_state_dict(without_index(state['selectors'][0]))

    def fits(self, state: dict[str, Any]) -> bool:
        """Are these the rows of as many classes and as many dimensions?"""
        return all(state[name] == getattr(self, name)
                   for name in ('num_classes', 'dim', 'num_subcentres'))

    @property
    def _selector_kind(self) -> str:
        kind = self.selector_config['type']
        return f'{kind}, adaptive' if 'adaptive' in self.selector_config else kind

    def _select(self, features: Tensor, labels: Tensor
                ) -> tuple[Tensor, Tensor, Tensor | None, dict]:
        """Row ids (M * K,), columns (B,) of the classes, expected counts, figures to log."""
        k = self.num_subcentres
        selection = self.selector.select(features, labels * k, self.step)
        if k == 1:
            counts = selection.expected_counts if self.correction == 'sampled' else None
            return selection.rows, selection.columns, counts, selection.stats
        rows = self._with_all_centres(selection.rows)
        own = selection.rows[selection.columns.clamp(min=0)] // k
        columns = torch.searchsorted(rows[::k] // k, own)
        return rows, columns.where(selection.columns >= 0, -1), None, selection.stats

    def _with_all_centres(self, rows: Tensor) -> Tensor:
        """The selector knows rows only: a class is active with all its rows if any was chosen."""
        k = self.num_subcentres
        if k == 1:
            return rows
        classes = torch.unique(rows // k)
        return (classes[:, None] * k + torch.arange(k, device=classes.device)).flatten()

    def _settle_doubt(self) -> None:
        doubt, self._doubt = self._doubt, None
        if doubt is not None and doubt[0]:
            self._check_labels(*doubt[1:])

    def _is_bad(self, labels: Tensor) -> Tensor:
        return (labels < 0) | (labels >= self.num_classes)

    def _check_labels(self, labels: Tensor, sizes: list[int]) -> None:
        """Look at the labels of all ranks, so that all raise what one would have to."""
        is_bad = self._is_bad(labels)
        if not bool(is_bad.any()):
            return
        first = int(is_bad.nonzero()[0])
        rank = next(r for r in range(len(sizes)) if first < sum(sizes[:r + 1]))
        raise VisionError('VIS-DATA-1014', f'{int(is_bad.sum())} of {len(labels)} labels are '
                          f'no class, the first is {int(labels[first])}',
                          where='gt_label' if self.group is None else f'gt_label of rank {rank}',
                          why=f'the head has {self.num_classes} classes, 0 to '
                          f'{self.num_classes - 1}', do='set head.num_classes to the number '
                          'of identities of the data set')


def _check(num_classes: int, num_subcentres: int, correction: str, selector: dict,
           matmul_dtype: str | None) -> None:
    fault = ''
    if num_classes < 2 or num_subcentres < 1:
        fault = f'num_classes={num_classes}, num_subcentres={num_subcentres}: at least 2 and 1'
    elif matmul_dtype not in DTYPES:
        fault = f'matmul_dtype={matmul_dtype!r}: float16, bfloat16 or None'
    elif 'type' not in selector:
        fault = 'a selector without type'
    elif correction == 'sampled' and num_subcentres > 1:
        fault = "correction='sampled' with sub-centres: how likely a class was drawn is not " \
                'known there'
    elif correction == 'sampled' and (selector['type'] == 'full'
                                      or selector.get('random_frac') == 0):
        fault = "correction='sampled' where no row is drawn at random"
    if fault:
        raise wrong_head(fault, where='model.head')
