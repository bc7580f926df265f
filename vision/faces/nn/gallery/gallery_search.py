"""Approximate search over gallery rows: candidates from a FAISS index, scores from the rows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vision.faces.core.evaluate.identification import Search
from vision.faces.nn.index.faiss_index import build_index, make_spec

BLOCK = 1024  # probes scored at a time


def index_search(gallery: Tensor, *, kind: str, **options) -> Search:
    """A search for ``core.identification`` over unit rows (M, d).

    Args:
        kind, options: see ``IndexSpec``.
    """
    index = build_index(make_spec(kind, gallery.shape[1], **options), gallery)

    def search(probes: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        blocks = [_best(gallery, index, torch.from_numpy(probes[top:top + BLOCK]), depth)
                  for top in range(0, len(probes), BLOCK)]
        scores, entries = (np.concatenate(part) for part in zip(*blocks, strict=True))
        return scores, entries

    return search


def _best(gallery: Tensor, index, probes: Tensor, depth: int) -> tuple[np.ndarray, np.ndarray]:
    entries = index.search(probes, depth)
    scores = torch.einsum('nd,nkd->nk', probes, gallery[entries.clamp(min=0)])
    scores = scores.masked_fill(entries < 0, -torch.inf)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return scores.numpy(), entries.gather(1, order).numpy()
