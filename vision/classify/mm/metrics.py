"""Top-k accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.evaluator import BaseMetric

from vision.common.core.errors import VisionError
from vision.registry import METRICS


@METRICS.register_module()
class TopKAccuracy(BaseMetric):
    """Share of images, in percent, whose class is among the k highest scores.

    Of equal scores the true class counts as the last: a constant output gets no hit by its
    order.

    Args:
        topk: the k to report, as ``accuracy/top1`` and so on.

    Raises:
        VisionError: VIS-CONFIG-1226, a k below 1 or none; VIS-CONFIG-1223, once the classes are
            known, a k above their number.
    """

    default_prefix = 'accuracy'

    def __init__(self, topk: int | Sequence[int] = (1, 5), *, collect_device: str = 'cpu',
                 prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.topk = (topk,) if isinstance(topk, int) else tuple(topk)
        if not self.topk or min(self.topk) < 1:
            raise VisionError('VIS-CONFIG-1226', f'topk={topk} is not possible',
                              where='TopKAccuracy', do='give numbers from 1, e.g. topk=(1, 5)')

    @BaseMetric.dataset_meta.setter
    def dataset_meta(self, metainfo: dict) -> None:
        """Given by the loop before the first step: a k that is impossible is told then, not after
        epochs of training."""
        classes = metainfo.get('classes')
        if classes is not None and len(classes) < max(self.topk):
            raise self._too_few(len(classes))
        self._dataset_meta = metainfo

    def _too_few(self, num_classes: int) -> VisionError:
        return VisionError('VIS-CONFIG-1209', f'top-{max(self.topk)} of {num_classes} classes',
                           where='TopKAccuracy.topk', do='leave out a k above num_classes: '
                           'val_evaluator=dict(topk=(1,)), and test_evaluator likewise')

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keeps one number an image: how many classes score at least as high as the true one."""
        for sample in data_samples:
            scores, label = sample['pred_score'], int(sample['gt_label'])
            if len(scores) < max(self.topk):
                raise self._too_few(len(scores))
            is_number = bool(torch.isfinite(scores).all())
            rank = int((scores >= scores[label]).sum()) if is_number else len(scores) + 1
            self.results.append(rank)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """``topK`` in percent for each k, from the ranks of all images."""
        ranks = torch.tensor(results)
        return {f'top{k}': 100 * float((ranks <= k).float().mean()) for k in self.topk}
