"""Recognition as a model of MMEngine: images to embeddings, and the loss that trains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn import functional

from vision.common.core.errors import VisionError
from vision.faces.nn.backbones.embedder import Embedder, embed
from vision.registry import MODELS


@MODELS.register_module()
class FaceRecognizer(BaseModel):
    """Backbone, optional neck, and a head that is used in training only.

    Args:
        backbone: images to embeddings, or to maps that ``neck`` turns into embeddings.
        neck: see ``EmbeddingNeck``.
        head: see ``ActiveClassHead``; None where nothing is trained.
        flip_fusion: add the embedding of the mirrored image, in 'tensor' and 'predict'.
        data_preprocessor: default ``ImgDataPreprocessor`` without mean and std.

    Modes: 'tensor' gives embeddings (B, d) of length 1; 'loss' the head's losses, from
        ``gt_label`` of the data samples; 'predict' the data samples, each with ``embedding`` (d,).
    """

    checkpoint_optional_prefixes = ('head.',)  # an embedder's weights begin a new training

    def __init__(self, backbone: dict, neck: dict | None = None, head: dict | None = None, *,
                 flip_fusion: bool = False, data_preprocessor: dict | None = None,
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(data_preprocessor or dict(type='mmengine.ImgDataPreprocessor'), init_cfg)
        self.backbone = MODELS.build(backbone)
        self.neck = None if neck is None else MODELS.build(neck)
        self.head = None if head is None else MODELS.build(head)
        self.flip_fusion = flip_fusion

    def forward(self, inputs: Tensor, data_samples: Sequence[BaseDataElement] | None = None,
                mode: str = 'tensor') -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """inputs (B, C, H, W), as the preprocessor gives them -> by ``mode``, see above."""
        if mode == 'loss':
            return self._loss(inputs, data_samples)
        assert mode in ('tensor', 'predict'), mode
        embeddings = embed(self.features, inputs, with_flip=self.flip_fusion)
        if mode == 'tensor':
            return embeddings
        samples = data_samples or [BaseDataElement() for _ in embeddings]
        for sample, embedding in zip(samples, embeddings, strict=True):
            sample.embedding = embedding
        return list(samples)

    def features(self, inputs: Tensor) -> Tensor:
        """inputs (B, C, H, W) -> embeddings (B, d) as the backbone leaves them; their length
        carries quality."""
        out = self.backbone(inputs)
        return out if self.neck is None else self.neck(out)

    def embedder(self) -> nn.Module:
        """The network for use and export, image preparation inside; shares the weights."""
        prepare = self.data_preprocessor
        has_mean = getattr(prepare, '_enable_normalize', False)
        made = Embedder(_Features(self), with_flip=self.flip_fusion,
                        mean=prepare.mean.flatten().tolist() if has_mean else None,
                        std=prepare.std.flatten().tolist() if has_mean else None,
                        swaps_channels=getattr(prepare, '_channel_conversion', False))
        return made.to(next(self.parameters()).device)

    def as_classifier(self, content: Mapping[str, Any], where: str) -> nn.Module:
        """Images (B, C, H, W), 0 to 255, to logits (B, classes): the head's rows of a checkpoint
        are the classes that it was trained on.

        Args:
            content: of the checkpoint; its other weights are in the model already.

        Raises:
            VisionError: VIS-CKPT-1745, it has no rows, or those of another head.
        """
        rows = content.get('active_class')
        if self.head is None or rows is None or not self.head.fits(rows) \
                or self.head.num_subcentres > 1:
            raise VisionError('VIS-CKPT-1745', 'the checkpoint has not the rows of this head',
                              where=where, why='a recogniser classifies by the rows that its head '
                              'learned', do='give a checkpoint of the training itself (iter_N.pth '
                              'of vision train), and the config that it was trained with')
        self.head.build('cpu', is_filled=False)
        self.head.load_rows_state(rows, with_selector=False)
        made = RowClassifier(self.embedder(), self.head.store.snapshot(torch.float32),
                             self.head.margin.scale)
        return made.to(next(self.parameters()).device)

    def _loss(self, inputs: Tensor, samples: Sequence[BaseDataElement] | None
              ) -> dict[str, Tensor]:
        if self.head is None:
            raise VisionError('VIS-CONFIG-1006', 'this FaceRecognizer has no head and cannot be '
                              'trained', where='model.head', do="add head=dict(type="
                              "'ActiveClassHead', ...)")
        labels = torch.cat([sample.gt_label.reshape(1) for sample in samples])
        labels = labels.to(inputs.device, torch.int64)
        if hasattr(self.head, 'prefetch'):
            self.head.prefetch(labels)  # rows travel while the backbone works
        return self.head.loss(self.features(inputs), labels)


class RowClassifier(nn.Module):
    """Cosines to the rows (classes, d) of all classes, times ``scale``."""

    def __init__(self, embedder: nn.Module, rows: Tensor, scale: float) -> None:
        super().__init__()
        self.embedder = embedder
        self.register_buffer('rows', functional.normalize(rows).t().contiguous())
        self.register_buffer('scale', torch.tensor(float(scale)))

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, H, W) -> logits (B, number of rows), cosines times ``scale``."""
        return self.embedder(images) @ self.rows * self.scale


class _Features(nn.Module):
    def __init__(self, model: FaceRecognizer) -> None:
        super().__init__()
        self.backbone, self.neck = model.backbone, model.neck or nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.neck(self.backbone(inputs))
