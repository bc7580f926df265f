"""Face identification: who is this, and is it anybody we know?

A gallery entry is one enrolled embedding; an identity may have several, its score is that of its
best one. Closed set: a probe is found at rank k when fewer than k other identities score at least
as well as its own (ties count against it). Open set: the threshold lets at most a share FPIR of
the probes without identity in the gallery pass; TPIR is the share of the others that are ranked
first with a score above it (ISO/IEC 19795-1; NIST FRVT 1:N reports its complement FNIR).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vision.common.core.errors import VisionError
from vision.faces.core.evaluate.verification import pair_cosines, tar_at_far, unit_rows

BLOCK = 256  # probes scored at a time: the memory is BLOCK x gallery scores
SCORES_AT_ONCE = 1 << 24  # of probes and distractors: 64 MB
Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Ranking:
    """What each probe met in the gallery.

    Attributes:
        best_score: (N,) score of its best identity, whoever that is.
        best_label: (N,) int64 label of that identity.
        rank: (N,) int64 rank of the probe's own identity, from 1; 0 when it was not found (not in
            the gallery, or beyond what an approximate search returned).
        is_mated: (N,) bool: its identity is in the gallery.
    """

    best_score: np.ndarray
    best_label: np.ndarray
    rank: np.ndarray
    is_mated: np.ndarray


def rank_exactly(gallery: np.ndarray, gallery_labels: np.ndarray, probes: np.ndarray,
                 probe_labels: np.ndarray, *, block: int = BLOCK) -> Ranking:
    """Every probe against every gallery entry, in blocks of ``block`` probes.

    Args:
        gallery, gallery_labels: (M, d) unit rows and (M,) whose they are; an identity may have
            several.
        probes, probe_labels: (N, d) unit rows and (N,) whose they are.

    Raises:
        VisionError: no probe, or no gallery.
    """
    order = np.argsort(gallery_labels, kind='stable')
    names, starts = np.unique(np.asarray(gallery_labels)[order], return_index=True)
    if not len(names) or not len(probes):
        raise _nothing(len(probes), len(names))
    gallery, probe_labels = gallery[order], np.asarray(probe_labels)
    own = np.minimum(np.searchsorted(names, probe_labels), len(names) - 1)
    is_mated = names[own] == probe_labels
    best_score, best_label = np.empty(len(probes)), np.empty(len(probes), dtype=np.int64)
    rank = np.zeros(len(probes), dtype=np.int64)
    for top in range(0, len(probes), block):
        rows = slice(top, top + block)
        scores = np.maximum.reduceat(probes[rows] @ gallery.T, starts, axis=1)
        here = np.arange(len(scores))
        best = scores.argmax(axis=1)
        best_score[rows], best_label[rows] = scores[here, best], names[best]
        found = (scores >= scores[here, own[rows], None]).sum(axis=1)  # itself included
        rank[rows] = np.where(is_mated[rows], found, 0)
    return Ranking(best_score, best_label, rank, is_mated)


def rank_by_search(search: Search, gallery_labels: np.ndarray, probes: np.ndarray,
                   probe_labels: np.ndarray, *, depth: int) -> Ranking:
    """The same from an index that returns the ``depth`` best entries of a probe.

    Args:
        search: probes (N, d), depth -> scores (N, depth), best first, and entries (N, depth), -1
            where there is none.
    """
    gallery_labels, probe_labels = np.asarray(gallery_labels), np.asarray(probe_labels)
    if not len(gallery_labels) or not len(probes):
        raise _nothing(len(probes), len(gallery_labels))
    scores, entries = search(probes, min(depth, len(gallery_labels)))
    labels = np.where(entries >= 0, gallery_labels[entries], -1)
    rank = np.zeros(len(probes), dtype=np.int64)
    for row, own in enumerate(probe_labels):
        places = np.flatnonzero((labels[row] == own) & (entries[row] >= 0))
        if len(places):
            level = scores[row, places[0]]
            rivals = labels[row, (scores[row] >= level) & (entries[row] >= 0)]
            rank[row] = len(set(rivals.tolist()) | {int(own)})
    return Ranking(scores[:, 0].astype(float), labels[:, 0], rank,
                   np.isin(probe_labels, gallery_labels))


def rank_k(ranking: Ranking, k: int) -> float:
    """Share of the mated probes found among the k best identities."""
    ranks = ranking.rank[ranking.is_mated]
    if not len(ranks):
        raise _nothing(0, 0)
    return float(((ranks >= 1) & (ranks <= k)).mean())


def tpir_at_fpir(ranking: Ranking, fpirs: Sequence[float]) -> list[float]:
    """True positive identification rate at each false positive one; unmated probes are needed.

    Raises:
        VisionError: VIS-DATA-1113, all probes or none have their identity in the gallery;
            VIS-DATA-1064, a rate that so few unmated probes cannot tell.
    """
    mated = ranking.is_mated
    if mated.all() or not mated.any():
        raise VisionError('VIS-DATA-1113', f'{mated.sum()} probes with and {(~mated).sum()} '
                          'without identity in the gallery',
                          why='open-set identification needs both',
                          do='leave some identities of the probes out of the gallery')
    found = np.where(ranking.rank == 1, ranking.best_score, -np.inf)[mated]
    return [tar_at_far(found, ranking.best_score[~mated], fpir).tar for fpir in fpirs]


def rank1_among_distractors(probes: np.ndarray, labels: np.ndarray, distractors: np.ndarray,
                            sizes: Sequence[int]) -> list[float]:
    """MegaFace's first challenge (Kemelmacher-Shlizerman et al., CVPR 2016), for each set size.

    Each ordered pair of pictures of one person is a question: is the second found by the first
    among the first ``size`` distractors? It is when no distractor scores at least as well (ties
    count against it). Scores are computed in blocks of ``SCORES_AT_ONCE``; distractors may be
    memory-mapped, as many as the disk holds.

    Args:
        probes: (N, d) unit rows; labels: (N,) who they are.
        distractors: (D, d) rows of any length, nobody of the probes.
        sizes: of the sets, at most D.

    Raises:
        VisionError: see ``refuse_sizes``; VIS-DATA-1063 for a row without direction.
    """
    first, second = mates(labels)
    refuse_sizes(len(first), len(distractors), sizes)
    scores = pair_cosines(probes, first, second)
    best, place, rates = np.full(len(probes), -np.inf, dtype=np.float32), 0, {}
    step = max(1, SCORES_AT_ONCE // len(probes))
    for size in sorted(set(sizes)):
        while place < size:
            end = min(size, place + step)
            block = unit_rows(distractors[place:end], first_row=place)
            np.maximum(best, (probes @ block.T).max(axis=1), out=best)
            place = end
        rates[size] = float((scores > best[first]).mean())
    return [rates[size] for size in sizes]


def refuse_sizes(num_mates: int, num_distractors: int, sizes: Sequence[int]) -> None:
    """VIS-DATA-1114 for sizes outside of 1..num_distractors, or without pairs of one person."""
    if not num_mates or not sizes or not 1 <= min(sizes) <= max(sizes) <= num_distractors:
        raise VisionError('VIS-DATA-1114', f'{num_mates} pairs of one person among '
                          f'{", ".join(map(str, sizes))} of {num_distractors} distractors',
                          why='a person needs two pictures, a set at least one distractor',
                          do='bring more pictures, or ask for smaller sets')


def mates(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P,) positions of first and second of all ordered pairs of different pictures of one person.

    Args:
        labels: (N,) who is on each picture.
    """
    order = np.argsort(labels, kind='stable')
    _, starts, counts = np.unique(np.asarray(labels)[order], return_index=True, return_counts=True)
    # Each picture meets all of its person's, itself included, which is then left out.
    own_start, own_count = np.repeat(starts, counts), np.repeat(counts, counts)
    first = np.repeat(np.arange(len(order)), own_count)
    within = np.arange(len(first)) - np.repeat(np.cumsum(own_count) - own_count, own_count)
    second = own_start[first] + within
    is_other = first != second
    return order[first[is_other]], order[second[is_other]]


def exact_search(gallery: np.ndarray, probes: np.ndarray,
                 depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The best of a gallery (N, d) for each probe (M, d): the judge of approximate indexes.

    Returns:
        scores (M, K), inner products, best first, and their positions in the gallery (M, K); K is
        ``depth``, or N where that is less.
    """
    depth = min(depth, len(gallery))
    scores, entries = [], []
    for top in range(0, len(probes), BLOCK):
        block = probes[top:top + BLOCK] @ gallery.T
        part = np.argpartition(-block, depth - 1, axis=1)[:, :depth]
        values = np.take_along_axis(block, part, axis=1)
        order = np.argsort(-values, axis=1, kind='stable')
        scores.append(np.take_along_axis(values, order, axis=1))
        entries.append(np.take_along_axis(part, order, axis=1))
    return np.concatenate(scores), np.concatenate(entries)


def _nothing(num_probes: int, num_gallery: int) -> VisionError:
    return VisionError('VIS-DATA-1067', f'{num_probes} probes against {num_gallery} identities',
                       why='there is nothing to compare', do='check the folders of both')
