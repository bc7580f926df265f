"""The lists of an inverted FAISS index as plain tensors, for checkpoints: read and put back whole.

Codes and order of the lists are kept as they are, so the index that is put back answers as the
other did, ties and all. FAISS' own files are not used: its reader trusts what it reads.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from torch import Tensor


def read_lists(faiss: ModuleType, index) -> dict[str, Tensor]:
    """Copies of an IVF index's contents.

    Returns:
        lengths (n,) int32 of the lists, ids (C,) int32 and codes (C, bytes) uint8 list by list,
        ranges float32 of a scalar quantiser (none for other codes).
    """
    lists, size = index.invlists, index.code_size
    lengths = np.array([lists.list_size(number) for number in range(index.nlist)], np.int32)
    ids = np.empty(lengths.sum(), np.int32)
    codes = np.empty((len(ids), size), np.uint8)
    end = 0
    for number, length in enumerate(lengths.tolist()):
        start, end = end, end + length
        if length:
            ids[start:end] = faiss.rev_swig_ptr(lists.get_ids(number), length)
            codes[start:end] = faiss.rev_swig_ptr(lists.get_codes(number),
                                                  length * size).reshape(length, size)
    ranges = faiss.vector_to_array(index.sq.trained) if hasattr(index, 'sq') else np.empty(0)
    return dict(lengths=torch.from_numpy(lengths), ids=torch.from_numpy(ids),
                codes=torch.from_numpy(codes), ranges=torch.from_numpy(ranges.astype(np.float32)))


def fault_of_lists(state: dict, num_lists: int, code_size: int, num_ranges: int) -> str:
    """What is wrong with what ``read_lists`` should have given, or ''."""
    wanted = dict(lengths=torch.int32, ids=torch.int32, codes=torch.uint8, ranges=torch.float32)
    if any(not isinstance(state.get(name), Tensor) or state[name].dtype != dtype
           for name, dtype in wanted.items()):
        return 'its lists are not the tensors that they should be'
    lengths, ids, codes, ranges = (state[name] for name in wanted)
    if lengths.shape != (num_lists,) or bool((lengths < 0).any()) or ids.ndim != 1 \
            or int(lengths.long().sum()) != len(ids) or codes.shape != (len(ids), code_size):
        return f'its lists do not fit {num_lists} centroids and codes of {code_size} bytes'
    if not torch.equal(ids.long().sort().values, torch.arange(len(ids))):
        return 'its lists do not hold every row once'
    if ranges.shape != (num_ranges,) or not ranges.isfinite().all():
        return 'the ranges of its codes are damaged'
    return ''


def fill_lists(faiss: ModuleType, index, state: dict[str, Tensor]) -> None:
    """Fill an empty IVF index with what ``read_lists`` gave; ``fault_of_lists`` found no fault.

    Args:
        state: lengths (n,), ids (C,) in the order of the lists, codes (C, bytes of a code), ranges
            of the codes.
    """
    ids = state['ids'].numpy().astype(np.int64)
    codes = np.ascontiguousarray(state['codes'].numpy())
    if hasattr(index, 'sq'):
        faiss.copy_array_to_vector(state['ranges'].numpy(), index.sq.trained)
    lists, end = index.invlists, 0
    for number, length in enumerate(state['lengths'].tolist()):
        start, end = end, end + length
        lists.resize(number, length)  # exactly the memory it needs
        if length:
            lists.update_entries(number, 0, length, faiss.swig_ptr(ids[start:end]),
                                 faiss.swig_ptr(codes[start:end]))
    index.ntotal = len(ids)
    index.set_direct_map_type(faiss.DirectMap.Array)
