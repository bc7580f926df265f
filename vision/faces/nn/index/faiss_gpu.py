"""Searches on the GPU where faiss-gpu is installed: a copy of an index answers there.

The index itself stays in host memory, where its rows can be changed; FAISS' GPU indexes cannot
change single rows. Written to FAISS' documented interface and tested with a stand-in.
"""

from __future__ import annotations

from types import ModuleType

import torch

from vision.common.core.errors import VisionError

KINDS = ('ivf',)  # FAISS has no GPU form of hnsw, lsh and midx; nested cells stay on the CPU too
MOST = 2048  # results of a query, and probed lists, of FAISS' GPU indexes


def has_gpu(faiss: ModuleType) -> bool:
    """Is this faiss-gpu, and does it see a GPU?"""
    return hasattr(faiss, 'StandardGpuResources') and faiss.get_num_gpus() > 0


def require_gpu(faiss: ModuleType) -> None:
    if not has_gpu(faiss):
        raise VisionError('VIS-ENV-1043', 'this FAISS cannot use a GPU',
                          where='selector.search_on', why='the package faiss-cpu is installed, '
                          'or no GPU is visible', do="install faiss-gpu, or search_on='cpu'")


class GpuCopy:
    """A copy of a filled index on this process's GPU, for searches only."""

    def __init__(self, faiss: ModuleType, index: object) -> None:
        self._resources = faiss.StandardGpuResources()  # has to outlive the copy
        device = torch.cuda.current_device() if torch.cuda.is_available() else 0
        try:
            self._index = faiss.index_cpu_to_gpu(self._resources, device, index)
        except RuntimeError as error:  # FAISS' class for all faults, also of memory
            raise VisionError('VIS-ENV-1043', f'the index does not go to GPU {device}',
                              where='selector.search_on', why=str(error).strip().split('\n')[0],
                              do="search_on='cpu'") from error

    def search(self, queries, num: int):
        return self._index.search(queries, num)
