"""A classifier: any registered backbone, global pooling, one linear layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel, BaseModule
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn import functional

from vision.common.core.errors import VisionError
from vision.registry import MODELS


@MODELS.register_module()
class ClsDataPreprocessor(BaseDataPreprocessor):
    """Stacks images, optionally swaps BGR to RGB, normalises.

    Inputs are (3, H, W) per sample, or (C, 3, H, W): C crops of one image, which follow each
    other in the batch; the number of crops of a sample is its metainfo ``num_crops``.

    Args:
        mean, std: per channel, of values 0..255, in the channel order after ``to_rgb``.
        to_rgb: images of the pipeline are BGR; the network wants RGB.
    """

    def __init__(self, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,), *,
                 to_rgb: bool = False, non_blocking: bool = False) -> None:
        super().__init__(non_blocking)
        self.to_rgb = to_rgb
        self.register_buffer('mean', torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, data: dict, training: bool = False) -> dict:
        """One batch on the device: ``inputs`` (B, 3, H, W) float32, crops of an image one after
        the other.

        Raises:
            VisionError: VIS-CONFIG-1221, images of several sizes.
        """
        # Samples stay on the host: MMEngine copies each by itself to a GPU, a label at a time; the
        # loss brings all labels over together.
        images = self.cast_data(data['inputs'])
        if not isinstance(images, Tensor):
            shapes = {tuple(image.shape[-2:]) for image in images}
            if len(shapes) > 1:
                raise VisionError('VIS-CONFIG-1221', f'images of {len(shapes)} sizes in one batch',
                                  where=f'sizes (H, W): {sorted(shapes)[:3]}',
                                  why='padding would change what the network sees',
                                  do='end the pipeline with a resize or crop to one size, or use '
                                  'batch_size=1')
            images = torch.cat([image if image.ndim == 4 else image[None] for image in images])
        elif images.ndim == 5:  # crops, stacked by MMEngine's default_collate
            images = images.flatten(0, 1)
        if self.to_rgb:
            images = images.flip(1)
        images = (images.float() - self.mean) / self.std
        return dict(data, inputs=images, data_samples=data.get('data_samples'))


@MODELS.register_module()
class LinearClsHead(BaseModule):
    """Global average pooling, dropout and a linear layer ``fc``.

    Args:
        num_classes: classes.
        in_channels: channels of the backbone's last map.
        dropout: probability to drop a pooled feature while training.
        label_smoothing: share of the target spread evenly over all classes.
        topk: also report the accuracy of the training batch for these k; () for none.

    Raises:
        VisionError: VIS-CONFIG-1222, ``dropout`` or ``label_smoothing`` outside [0, 1);
            VIS-CONFIG-1223, a k above ``num_classes``.
    """

    def __init__(self, num_classes: int, in_channels: int, *, dropout: float = 0.0,
                 label_smoothing: float = 0.0, topk: Sequence[int] = (),
                 init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg or dict(type='Normal', layer='Linear', std=0.01))
        for name, value in (('dropout', dropout), ('label_smoothing', label_smoothing)):
            if not 0 <= value < 1:
                raise VisionError('VIS-CONFIG-1222', f'{name}={value} is not possible',
                                  where='LinearClsHead', do=f'choose 0 <= {name} < 1')
        if topk and max(topk) > num_classes:
            raise VisionError('VIS-CONFIG-1223', f'top-{max(topk)} of {num_classes} classes',
                              where='LinearClsHead.topk', do='leave out a k above num_classes')
        self.num_classes, self.in_channels = num_classes, in_channels
        self.label_smoothing, self.topk = label_smoothing, topk
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, feats: Tensor | Sequence[Tensor]) -> Tensor:
        """(B, C, H, W), or levels of which the last is used, or (B, C) -> logits (B, K)."""
        feat = feats if isinstance(feats, Tensor) else feats[-1]
        pooled = feat.mean(dim=(2, 3)) if feat.ndim == 4 else feat
        return self.fc(self.dropout(pooled))

    def loss(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Logits (B, K) and labels (B,) int64 -> scalars: ``loss``, the mean cross entropy in
        float32, and ``accuracy_top-k`` in percent for each of ``topk``."""
        losses = dict(loss=functional.cross_entropy(logits.float(), labels,
                                                    label_smoothing=self.label_smoothing))
        for k in self.topk:
            hits = (logits.detach().topk(k).indices == labels[:, None]).any(1)
            losses[f'accuracy_top-{k}'] = 100 * hits.float().mean()
        return losses


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """Image classification on MMEngine.

    Args:
        backbone, neck, head: configs; ``neck`` may be None.
        data_preprocessor: config; ``ClsDataPreprocessor`` by default.
        test_cfg: ``dict(crop_topk=k)``: with several crops per image, each class's score is the
            mean of its k highest crop scores; None takes the mean over all crops.

    Shapes: inputs (B, 3, H, W); ``mode='tensor'`` returns logits (B, num_classes).

    Raises:
        VisionError: VIS-CONFIG-1224, ``test_cfg`` has another key; and where the head reads
            another number of channels than the backbone gives.
    """

    def __init__(self, backbone: dict, head: dict, *, neck: dict | None = None,
                 data_preprocessor: dict | None = None, test_cfg: dict | None = None,
                 init_cfg: dict | None = None) -> None:
        preprocessor = dict(data_preprocessor or {})
        preprocessor.setdefault('type', 'ClsDataPreprocessor')
        super().__init__(MODELS.build(preprocessor), init_cfg)
        unknown = set(test_cfg or {}) - {'crop_topk'}
        if unknown:
            raise VisionError('VIS-CONFIG-1224', f'test_cfg has no {sorted(unknown)[0]!r}',
                              where='ImageClassifier.test_cfg', do='it knows crop_topk')
        self.crop_topk = (test_cfg or {}).get('crop_topk')
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck) if neck else None
        self.head = MODELS.build(head)
        _check_widths(self.backbone if self.neck is None else self.neck, self.head)
        self.classes: tuple[str, ...] | None = None

    def check_dataset(self, metainfo: Mapping, where: str) -> None:
        """The runner shows the data of each loop before the first step. A label above the head's
        classes would end the run in the middle (a GPU with a message about an assertion); splits
        with other classes would give every image another label, and nobody would see it.

        Raises:
            VisionError: VIS-CONFIG-1230 another number of classes than the head,
                VIS-DATA-1219 other classes than those of the data shown before.
        """
        classes = metainfo.get('classes')
        if classes is None:
            return
        if len(classes) != getattr(self.head, 'num_classes', len(classes)):
            raise VisionError('VIS-CONFIG-1230', f'the data has {len(classes)} classes, the head '
                              f'{self.head.num_classes}', where=where,
                              why=f'classes of the data: {_shown(classes)}',
                              do=f'set model.head.num_classes={len(classes)}, or mend the path of '
                              'the data')
        if self.classes is not None and tuple(classes) != self.classes:
            counts = f'{len(self.classes)} classes', f'{len(classes)} classes'
            other = next((pair for pair in zip(self.classes, classes, strict=False)
                          if pair[0] != pair[1]), counts)
            raise VisionError('VIS-DATA-1219', f'class {other[1]!r} stands where the data before '
                              f'has {other[0]!r}', where=where, why='labels are positions in the '
                              'list of classes', do='complete the folders, or give every data set '
                              'the same metainfo=dict(classes=(...))')
        self.classes = tuple(classes)

    def extract_feat(self, inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """inputs (B, 3, H, W) -> what backbone and neck give: a map, or a tuple of levels."""
        feats = self.backbone(inputs)
        return feats if self.neck is None else self.neck(feats)

    def forward(self, inputs: Tensor, data_samples: list[BaseDataElement] | None = None,
                mode: str = 'tensor') -> Tensor | dict | list[BaseDataElement]:
        """inputs (B, 3, H, W) -> 'tensor': logits (B, num_classes); 'loss': scalars by name;
        'predict': the samples with ``pred_score`` and ``pred_label``."""
        return self.finish(self.head(self.extract_feat(inputs)), data_samples, mode)

    def pipeline_stages(self) -> list[tuple[str, Callable[..., Any] | None]]:
        """(name, run) of the backbone's parts, the neck and the head, in order of execution; see
        ``vision.pipeline``. What follows the head is ``finish``.

        Raises:
            VisionError: VIS-CONFIG-1244, the backbone does not say where it can be cut.
        """
        cut = getattr(self.backbone, 'pipeline_stages', None)
        if cut is None:
            raise VisionError('VIS-CONFIG-1244', f'{type(self.backbone).__name__} does not say '
                              'where it can be cut', where='model.backbone', do='PolyNet and '
                              'VisionTransformer do; give this one a method pipeline_stages() '
                              'with the names of its parts, or list all modules as stages of '
                              'the strategy')
        pieces = [(f'backbone.{entry}', None) if isinstance(entry, str) else
                  (f'backbone.{entry[0]}', entry[1]) for entry in cut()]
        if self.neck is not None:
            pieces.append(('neck', _on_levels))
        return [*pieces, ('head', _on_levels)]

    def as_classifier(self, _content: Mapping[str, Any] | None = None, _where: str = ''
                      ) -> nn.Module:
        """Images (B, C, H, W) BGR, 0 to 255, to logits (B, classes), preparation inside; shares
        the weights. As ``FaceRecognizer.as_classifier``, which needs the checkpoint."""
        return _Prepared(self)

    def finish(self, logits: Tensor, data_samples: list[BaseDataElement] | None = None,
               mode: str = 'tensor') -> Tensor | dict | list[BaseDataElement]:
        """What ``forward`` does with the head's logits (B, num_classes), by ``mode``."""
        if mode == 'tensor':
            return logits
        if mode == 'loss':
            labels = torch.cat([sample.gt_label.view(1) for sample in data_samples])
            labels = labels.to(logits.device, non_blocking=True)
            return self.head.loss(logits, labels)
        assert mode == 'predict', mode
        return self.predictions(logits, data_samples)

    def predictions(self, logits: Tensor,
                    data_samples: list[BaseDataElement] | None) -> list[BaseDataElement]:
        """Samples with ``pred_score`` (num_classes,), probabilities, and ``pred_label`` (1,)."""
        if data_samples is None:
            data_samples = [BaseDataElement() for _ in logits]
        counts = [sample.get('num_crops', 1) for sample in data_samples]
        for sample, scores in zip(data_samples, logits.float().softmax(1).split(counts),
                                  strict=True):
            sample.pred_score = self.pooled(scores)
            sample.pred_label = sample.pred_score.argmax().view(1)
        return data_samples

    def pooled(self, scores: Tensor) -> Tensor:
        """(crops, num_classes) -> (num_classes,), by ``test_cfg``.

        Raises:
            VisionError: VIS-CONFIG-1225, ``crop_topk`` is more than there are crops.
        """
        if self.crop_topk is None:
            return scores.mean(0)
        if self.crop_topk > len(scores):
            raise VisionError('VIS-CONFIG-1225', f'crop_topk={self.crop_topk} of {len(scores)} '
                              'crops', where='ImageClassifier.test_cfg',
                              do='lower it, or add MultiCrop to the test pipeline')
        return scores.topk(self.crop_topk, dim=0).values.mean(0)


class _Prepared(nn.Module):
    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.model = model
        self.register_buffer('scale', torch.tensor(1.0))

    def forward(self, images: Tensor) -> Tensor:
        prepare = self.model.data_preprocessor
        images = images[:, [2, 1, 0]] if prepare.to_rgb else images
        images = (images - prepare.mean) / prepare.std
        return self.model(images, mode='tensor') * self.scale


def _on_levels(module: nn.Module, *feats: Tensor) -> Any:
    """Backbones give levels as a tuple, which a pipeline passes tensor by tensor."""
    return module(feats)


def _check_widths(feature: nn.Module, head: nn.Module) -> None:
    given, wanted = getattr(feature, 'out_channels', None), getattr(head, 'in_channels', None)
    given = given[-1] if isinstance(given, list | tuple) and given else given
    if isinstance(given, int) and isinstance(wanted, int) and given != wanted:
        raise VisionError('VIS-CONFIG-1229', f'{type(feature).__name__} gives {given} channels, '
                          f'the head takes {wanted}', where='model.head.in_channels',
                          why="the head reads the last of the backbone's levels",
                          do=f'set in_channels={given} of the head, or other out_indices')


def _shown(names: Sequence[str], num_shown: int = 5) -> str:
    return ', '.join(map(str, names[:num_shown])) + (', ...' if len(names) > num_shown else '')
