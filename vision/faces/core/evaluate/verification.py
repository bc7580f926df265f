"""Face verification: are two pictures of one person?

Distances are squared L2 between unit embeddings, d = 2 - 2 cos, in [0, 4]. A pair is accepted when
its distance is below the threshold. The ten-fold protocol is LFW's (Huang et al., 2007, tech.
report 07-49): for each fold the threshold that does best on the other nine decides this one. The
grid 0, 0.01, ..., 3.99 is the one in common use for embeddings.

True accept rate at a false accept rate f, over n impostor pairs: the threshold is the (k+1)-th
best impostor score, k = floor(f n), and only better scores are accepted, so at most k impostors
pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vision.common.core.errors import VisionError

THRESHOLDS = np.arange(0, 4, 0.01)
PAIRS_AT_ONCE = 1 << 14  # of a list: their embeddings are gathered, 64 MB for 512 numbers each
NUM_BINS = 1 << 16  # of a streamed pass over all scores; the second pass is exact in one bin


@dataclass(frozen=True)
class TenFold:
    """Accuracy of each fold at the threshold of the others.

    Shapes: accuracies (F,) in [0, 1]; thresholds (F,) squared L2 distances in [0, 4].
    """

    accuracies: np.ndarray
    thresholds: np.ndarray

    @property
    def mean(self) -> float:
        """Mean of the folds' accuracies, in [0, 1]."""
        return float(self.accuracies.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the folds' accuracies, over F."""
        return float(self.accuracies.std())


@dataclass(frozen=True)
class TarAtFar:
    """Shares of the genuine and of the impostor pairs that score better than ``threshold``."""

    tar: float
    far: float
    threshold: float


def unit_rows(embeddings: np.ndarray, *, first_row: int = 0) -> np.ndarray:
    """Embeddings (N, d) of any length -> (N, d) float32 rows of length one.

    Args:
        first_row: where a block begins in what it is a part of, for the message.

    Raises:
        VisionError: VIS-DATA-1063 names the first row that is zero or not finite.
    """
    embeddings = np.asarray(embeddings, dtype=np.float32)
    norms = np.sqrt(np.einsum('nd,nd->n', embeddings, embeddings, dtype=np.float64))
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        raise VisionError('VIS-DATA-1063', f'{len(bad)} of {len(norms)} embeddings are zero or '
                          f'not finite, first: row {first_row + bad[0]}',
                          why='such a row has no direction to compare',
                          do='look at that image and at the weights of the embedder')
    found = np.empty(embeddings.shape, dtype=np.float32)
    # In pieces of NumPy's own: the whole in float64 would be twice the result.
    return np.divide(embeddings, norms[:, None], out=found, casting='same_kind')


def pair_distances(embeddings: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared L2 distances (N,) float64, in [0, 4], of pairs of embeddings (M, d), unit rows.

    Args:
        first, second: (N,) positions of both rows of each pair.
    """
    found = np.empty(len(first))
    for top in range(0, len(first), PAIRS_AT_ONCE):
        rows = slice(top, top + PAIRS_AT_ONCE)
        difference = embeddings[first[rows]].astype(np.float64) - embeddings[second[rows]]
        found[rows] = (difference**2).sum(axis=1)
    return found


def pair_cosines(embeddings: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosines (N,) float32 of pairs of embeddings (M, d), unit rows, given by first and second
    (N,): half the memory and time of ``pair_distances``, for millions of them."""
    found = np.empty(len(first), dtype=np.float32)
    for top in range(0, len(first), PAIRS_AT_ONCE):
        rows = slice(top, top + PAIRS_AT_ONCE)
        np.einsum('nd,nd->n', embeddings[first[rows]], embeddings[second[rows]], out=found[rows])
    return found


def ten_fold(distances: np.ndarray, same: np.ndarray, folds: np.ndarray, *,
             thresholds: np.ndarray = THRESHOLDS) -> TenFold:
    """Accuracy by folds; the threshold of a fold is the first best one on all the other folds.

    Args:
        distances, same, folds: (N,) of each pair; any number of folds from two.
        thresholds: (T,) to choose from.

    Raises:
        VisionError: VIS-DATA-1111, fewer than two folds.
    """
    distances, same = np.asarray(distances), np.asarray(same, dtype=bool)
    names = np.unique(folds)
    if len(names) < 2:
        raise VisionError('VIS-DATA-1111', f'{len(names)} fold', why='the threshold of a fold is '
                          'chosen on other folds', do='use a pair list with several folds')
    correct = np.stack([_correct_counts(distances[folds == name], same[folds == name], thresholds)
                        for name in names])
    sizes = np.array([(folds == name).sum() for name in names])
    others = correct.sum(axis=0) - correct
    chosen = others.argmax(axis=1)
    accuracies = correct[np.arange(len(names)), chosen] / sizes
    return TenFold(accuracies, np.asarray(thresholds)[chosen])


def _correct_counts(distances: np.ndarray, same: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Pairs judged rightly at each threshold, (T,): same and below it, or different and not."""
    accepted_same = np.searchsorted(np.sort(distances[same]), thresholds, side='left')
    accepted_other = np.searchsorted(np.sort(distances[~same]), thresholds, side='left')
    return accepted_same + (~same).sum() - accepted_other


def allowed_accepts(far: float, num_impostors: int) -> int:
    """Impostors that may pass at this rate.

    Raises:
        VisionError: VIS-DATA-1064 when the rate is below one in all of them.
    """
    allowed = math.floor(far * num_impostors + 1e-9)
    if not 0 < far <= 1 or allowed < 1:
        raise VisionError('VIS-DATA-1064', f'a false accept rate of {far:g} over {num_impostors} '
                          'impostor pairs', why='one accepted pair is already more than that',
                          do='ask for a rate of at least one in the number of impostor pairs')
    return allowed


def measurable(rates: Sequence[float], num_impostors: int) -> list[float]:
    """Those of the rates that so many impostors can tell: one of them may pass."""
    return [rate for rate in rates if math.floor(rate * num_impostors + 1e-9) >= 1]


def tar_at_far(genuine: np.ndarray, impostor: np.ndarray, far: float) -> TarAtFar:
    """Exact rate from the scores of all genuine and all impostor pairs, (N,) and (M,); greater is
    more alike.

    Raises:
        VisionError: see ``allowed_accepts``; VIS-DATA-1112 when there is no genuine pair.
    """
    genuine, impostor = np.asarray(genuine), np.asarray(impostor)
    allowed = allowed_accepts(far, len(impostor))
    if not len(genuine):
        raise no_genuine()
    threshold = -math.inf if allowed >= len(impostor) else float(
        np.partition(impostor, len(impostor) - 1 - allowed)[len(impostor) - 1 - allowed])
    return TarAtFar(float((genuine > threshold).mean()), float((impostor > threshold).mean()),
                    threshold)


class ScoreHistogram:
    """Counts of genuine and impostor scores in equal bins, filled block by block.

    Args:
        low, high: range of the scores; what lies outside counts in the first or last bin.
        keep: bins whose scores are kept too, so that a threshold inside them is exact.
    """

    def __init__(self, *, low: float = -1.0, high: float = 1.0, num_bins: int = NUM_BINS,
                 keep: Sequence[int] = ()) -> None:
        self.low, self.high, self.num_bins = low, high, num_bins
        self.counts = np.zeros((2, num_bins), dtype=np.int64)  # impostor, genuine
        self.kept: dict[int, tuple[list, list]] = {int(b): ([], []) for b in keep}

    def add(self, scores: np.ndarray, same: np.ndarray) -> None:
        """Count scores (N,) of pairs that are ``same`` (N,) or not."""
        place = (np.asarray(scores, dtype=np.float64) - self.low) / (self.high - self.low)
        bins = np.clip(place * self.num_bins, 0, self.num_bins - 1).astype(np.int64)
        joint = np.bincount(bins + self.num_bins * same, minlength=2 * self.num_bins)
        self.counts += joint.reshape(2, self.num_bins)
        for wanted, lists in self.kept.items():
            inside = bins == wanted
            for kind in (0, 1):
                lists[kind].append(scores[inside & (same == bool(kind))])

    def critical_bin(self, far: float) -> int:
        """Bin of the threshold for this rate; -1 when every impostor may pass."""
        impostors = self.counts[0]
        allowed = allowed_accepts(far, int(impostors.sum()))
        from_top = np.cumsum(impostors[::-1])
        place = int(np.searchsorted(from_top, allowed, side='right'))
        return self.num_bins - 1 - place

    def tar_at_far(self, far: float) -> TarAtFar:
        """Exact rate; the scores of the critical bin must have been kept."""
        if not self.counts[1].sum():
            raise no_genuine()
        place = self.critical_bin(far)
        if place < 0:
            return TarAtFar(1.0, 1.0, -math.inf)
        above = self.counts[:, place + 1:].sum(axis=1)
        impostor, genuine = (np.concatenate(scores) for scores in self.kept[place])
        rank = allowed_accepts(far, int(self.counts[0].sum())) - int(above[0])
        threshold = float(np.sort(impostor)[::-1][rank])
        accepted = above + [(impostor > threshold).sum(), (genuine > threshold).sum()]
        far_seen, tar = accepted / self.counts.sum(axis=1)
        return TarAtFar(float(tar), float(far_seen), threshold)


def all_pairs_tar(embeddings: np.ndarray, labels: np.ndarray, fars: Sequence[float], *,
                  block: int = 1024) -> list[TarAtFar]:
    """TAR at each FAR over all pairs i < j of embeddings (N, d), unit rows with labels (N,),
    without the N x N matrix.

    Two passes over blocks of cosines: the first finds the bin of each threshold, the second looks
    inside these bins, so the result is that of the whole matrix at ``block**2`` scores of memory
    (and the scores of the few critical bins).
    """
    coarse = ScoreHistogram()
    for scores, same in _score_blocks(embeddings, labels, block):
        coarse.add(scores, same)
    fine = ScoreHistogram(keep=sorted({coarse.critical_bin(far) for far in fars} - {-1}))
    for scores, same in _score_blocks(embeddings, labels, block):
        fine.add(scores, same)
    return [fine.tar_at_far(far) for far in fars]


def _score_blocks(embeddings: np.ndarray, labels: np.ndarray,
                  block: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cosines and sameness of the pairs i < j, block by block."""
    labels = np.asarray(labels)
    for top in range(0, len(labels), block):
        rows = slice(top, top + block)
        for left in range(top, len(labels), block):
            columns = slice(left, left + block)
            scores = embeddings[rows] @ embeddings[columns].T
            same = labels[rows, None] == labels[None, columns]
            if left == top:
                upper = np.triu_indices(len(scores), k=1)
                yield scores[upper], same[upper]
            else:
                yield scores.ravel(), same.ravel()


def no_genuine(where: str = '') -> VisionError:
    """VIS-DATA-1112: no two pictures of one person."""
    return VisionError('VIS-DATA-1112', 'no pair of one person', where=where,
                       why='a true accept rate needs some',
                       do='use a list that has pairs of one person, or bring a second picture of '
                       'somebody')
