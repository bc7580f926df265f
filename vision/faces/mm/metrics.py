"""Metrics of recognition: embeddings are collected here, the numbers come from ``core``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.evaluator import BaseMetric

from vision.common.core.errors import VisionError
from vision.faces.core.data.pairs import random_pairs
from vision.faces.core.evaluate.identification import (
    Ranking,
    rank_by_search,
    rank_exactly,
    rank_k,
    tpir_at_fpir,
)
from vision.faces.core.evaluate.questions import PairQuestion
from vision.faces.core.evaluate.verification import pair_distances, unit_rows
from vision.registry import METRICS


class _EmbeddingMetric(BaseMetric):
    """Brings the embeddings of all ranks together: each picture once, in the data set's order."""

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            label = sample['gt_label']
            self.results.append((sample['sample_idx'], int(label), sample['is_gallery'],
                                 sample['embedding'].float().cpu().numpy()))

    def evaluate(self, size: int) -> dict[str, float]:
        """Ranks may hold unequal parts and repeat pictures; MMEngine's gathering would cut."""
        rows = {row[0]: row for part in all_gather_object(self.results) for row in part}
        self.results.clear()
        metrics = [None]
        if is_main_process():
            metrics = [{f'{self.prefix}/{name}': value for name, value in
                        self.compute_metrics([rows[key] for key in sorted(rows)]).items()}]
        broadcast_object_list(metrics)
        return metrics[0]

    def compute_metrics(self, results: list) -> dict[str, float]:
        wanted = self.dataset_meta['num_samples']
        if len(results) != wanted:
            raise VisionError('VIS-RUN-1081', f'{len(results)} embeddings of {wanted} pictures',
                              where=type(self).__name__, why='a result on a part of the pictures '
                              'is not the result', do='use a sampler that serves every picture')
        _, labels, is_gallery, embeddings = zip(*results, strict=True)
        return self.measure(unit_rows(np.stack(embeddings)), np.array(labels),
                            np.array(is_gallery))

    def measure(self, embeddings: np.ndarray, labels: np.ndarray,
                is_gallery: np.ndarray) -> dict[str, float]:
        raise AssertionError('each metric measures its own')


@METRICS.register_module()
class VerificationMetric(_EmbeddingMetric):
    """Ten-fold accuracy and TAR at FAR (``core.verification``).

    The pairs are those of the data set (``FacePairs``, ``FaceBin``); for labelled pictures
    ``num_pairs`` of each kind are drawn with ``seed``.
    """

    default_prefix = 'verification'

    def __init__(self, fars: Sequence[float] = (1e-2,), *, num_pairs: int = 3000, seed: int = 0,
                 collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.fars, self.num_pairs, self.seed = tuple(fars), num_pairs, seed

    def measure(self, embeddings: np.ndarray, labels: np.ndarray,
                is_gallery: np.ndarray) -> dict[str, float]:
        """Embeddings (N, d) unit rows and labels (N,) -> accuracy and its deviation in [0, 1],
        threshold (squared L2), ``tar@FAR``; ``is_gallery`` plays no part."""
        pairs = self.dataset_meta.get('pairs') or random_pairs(labels, self.num_pairs,
                                                               seed=self.seed)
        found = PairQuestion(pairs, self.fars).measure(
            pair_distances(embeddings, pairs.first, pairs.second))
        metrics = dict(accuracy=found['accuracy'], std=found['std'],
                       threshold=float(np.mean(found['fold_thresholds'])))
        return metrics | {f'tar@{rate["far"]:g}': rate['tar'] for rate in found['tar_at_far']}


@METRICS.register_module()
class IdentificationMetric(_EmbeddingMetric):
    """Rank-k and TPIR at FPIR; the data set says which pictures are the gallery.

    Args:
        ranks: closed set, over the probes whose identity is in the gallery.
        fpirs: open set; needs probes without identity in the gallery.
        stranger_share: of the enrolled identities so many are drawn with ``seed`` and left out of
            the gallery, all their pictures being probes: for data sets that enrol everybody.
        index: None: exact search in blocks. A dict(kind='ivf', ...) of ``nn.faiss_index``:
            approximate search; candidates are scored exactly, an identity that the index misses
            counts as not found.
        depth: candidates per probe of an approximate search.

    Raises:
        VisionError: VIS-CONFIG-1116, ``stranger_share`` outside [0, 1).
    """

    default_prefix = 'identification'

    def __init__(self, ranks: Sequence[int] = (1, 5), *, fpirs: Sequence[float] = (),
                 stranger_share: float = 0.0, seed: int = 0, index: dict | None = None,
                 depth: int = 64, collect_device: str = 'cpu',
                 prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if not 0 <= stranger_share < 1:
            raise VisionError('VIS-CONFIG-1116', f'stranger_share={stranger_share}',
                              where='IdentificationMetric', why='somebody must be in the gallery',
                              do='give a share from 0 below 1')
        self.ranks, self.fpirs = tuple(ranks), tuple(fpirs)
        self.stranger_share, self.seed = stranger_share, seed
        self.index, self.depth = index, depth

    def measure(self, embeddings: np.ndarray, labels: np.ndarray,
                is_gallery: np.ndarray) -> dict[str, float]:
        """Embeddings (N, d) unit rows, labels (N,) and is_gallery (N,) bool -> shares in [0, 1]:
        ``rankK`` and ``tpir@FPIR``."""
        is_gallery = is_gallery & ~np.isin(labels, self._strangers(labels[is_gallery]))
        ranking = self._rank(embeddings[is_gallery], labels[is_gallery], embeddings[~is_gallery],
                             labels[~is_gallery])
        metrics = {f'rank{k}': rank_k(ranking, k) for k in self.ranks}
        rates = tpir_at_fpir(ranking, self.fpirs) if self.fpirs else []
        return metrics | {f'tpir@{fpir:g}': rate
                          for fpir, rate in zip(self.fpirs, rates, strict=True)}

    def _strangers(self, enrolled: np.ndarray) -> np.ndarray:
        names = np.unique(enrolled)
        count = round(self.stranger_share * len(names))
        return np.random.default_rng(self.seed).choice(names, count, replace=False)

    def _rank(self, gallery: np.ndarray, names: np.ndarray, probes: np.ndarray,
              labels: np.ndarray) -> Ranking:
        if self.index is None:
            return rank_exactly(gallery, names, probes, labels)
        from vision.faces.nn.gallery.gallery_search import index_search
        search = index_search(torch.from_numpy(gallery), **self.index)
        return rank_by_search(search, names, probes, labels, depth=self.depth)
