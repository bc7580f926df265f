"""What a protocol asks, and the answer that embeddings give: one object for each kind.

A question is built from its lists, and refuses there whatever it would refuse in the end: rates
that so few pairs cannot tell, templates without pictures, people without a second picture. So the
hours of embedding come after it. Then ``paths`` names the pictures, and ``answer`` takes their
embeddings, (N, d) in the same order and of any length, and gives plain numbers for a report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError
from vision.faces.core.data.image_lists import LabelledPaths
from vision.faces.core.data.pairs import PairList
from vision.faces.core.evaluate.identification import (
    mates,
    rank1_among_distractors,
    rank_exactly,
    rank_k,
    refuse_sizes,
    tpir_at_fpir,
)
from vision.faces.core.evaluate.protocols import (
    Templates,
    pool_templates,
    read_ijb,
    read_ijb_subjects,
)
from vision.faces.core.evaluate.verification import (
    all_pairs_tar,
    allowed_accepts,
    measurable,
    pair_cosines,
    pair_distances,
    tar_at_far,
    ten_fold,
    unit_rows,
)

PAIR_FARS = (1e-3, 1e-2)
FPIRS, RANKS = (0.01, 0.1), (1, 5, 10)
LARGE_FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
GALLERIES = {'ijbb': ('S1', 'S2'), 'ijbc': ('G1', 'G2')}  # as the lists are published


class PairQuestion:
    """Ten folds, and TAR at FAR over all pairs: LFW, CFP, AgeDB, CALFW, CPLFW, lists of one's own.

    Args:
        fars: None: those of ``PAIR_FARS`` that so many impostor pairs can tell.
        threshold: a cosine that was chosen elsewhere, to be measured too.
    """

    def __init__(self, pairs: PairList, fars: Sequence[float] | None = None,
                 threshold: float | None = None) -> None:
        self.pairs, self.paths, self.threshold = pairs, pairs.paths, threshold
        self.num_impostors = int((~pairs.same).sum())
        self.fars = measurable(PAIR_FARS, self.num_impostors) if fars is None else list(fars)
        self.measure(np.zeros(len(pairs)))

    def answer(self, embeddings: np.ndarray) -> dict:
        return self.measure(pair_distances(unit_rows(embeddings), self.pairs.first,
                                           self.pairs.second))

    def measure(self, distances: np.ndarray) -> dict:
        """From squared L2 (N,) of the pairs."""
        same = self.pairs.same
        folds = ten_fold(distances, same, self.pairs.folds)
        rates = [tar_at_far(-distances[same], -distances[~same], far) for far in self.fars]
        return dict(accuracy=folds.mean, std=folds.std, num_pairs=len(same),
                    fold_accuracies=folds.accuracies.tolist(),
                    fold_thresholds=[round(float(value), 4) for value in folds.thresholds],
                    tar_at_far=[dict(far=far, tar=rate.tar, threshold=-rate.threshold)
                                for far, rate in zip(self.fars, rates, strict=True)],
                    **self._at_threshold(1 - distances / 2))

    def _at_threshold(self, cosines: np.ndarray) -> dict:
        if self.threshold is None:
            return {}
        same, is_accepted = self.pairs.same, cosines >= self.threshold
        return dict(at_cosine=dict(
            cosine=self.threshold, accuracy=float((is_accepted == same).mean()),
            true_accept_rate=float(is_accepted[same].mean()),
            false_accept_rate=float(is_accepted[~same].mean())))


@dataclass(frozen=True)
class Gallery1N:
    """One search of all probes: ids of templates, and whose they are."""

    name: str
    gallery: np.ndarray
    subjects: np.ndarray


class TemplateQuestion:
    """IJB-B or IJB-C: 1:1 over template pairs; 1:N of mixed probes in each of two galleries.

    1:N follows the protocol (Maze et al., 2018): each gallery alone, probes of the other gallery's
    subjects being strangers to it; the means over both are the result.

    Args:
        meta: folder of the lists; 1:N is asked where NAME_1N_*.csv are there too.
        name: 'ijbb' or 'ijbc'.
        fars, fpirs, ranks: None: the usual ones, as far as the lists can tell.
        with_scores: each picture counts by the score of its detection.
    """

    def __init__(self, meta: Path, name: str, *, fars: Sequence[float] | None = None,
                 fpirs: Sequence[float] | None = None, ranks: Sequence[int] | None = None,
                 with_scores: bool = False) -> None:
        self.templates: Templates = read_ijb(meta, name)
        self.paths, self.with_scores = self.templates.paths, with_scores
        self.ranks = RANKS if ranks is None else tuple(ranks)
        self.num_impostors = int((~self.templates.same).sum())
        self.fars = measurable(LARGE_FARS, self.num_impostors) if fars is None else list(fars)
        for far in self.fars:
            allowed_accepts(far, self.num_impostors)
        if self.templates.same.sum() == 0:
            raise VisionError('VIS-DATA-1062', 'no pair of one person', where=str(meta),
                              why='a true accept rate needs some', do='get the lists again')
        self.galleries, self.probes, self.probe_subjects = [], None, None
        lists = [Path(meta) / f'{name}_1N_{part}.csv' for part in (
            *(f'gallery_{side}' for side in GALLERIES[name]), 'probe_mixed')]
        self.missing_1n = [path.name for path in lists if not path.is_file()]
        self.fpirs = list(fpirs or ())
        if not self.missing_1n:
            self._read_1n(lists, fpirs)
        elif fpirs or ranks or len(self.missing_1n) < len(lists):
            raise VisionError('VIS-DATA-1073', f'lists of 1:N are missing: '
                              f'{", ".join(self.missing_1n)}', where=str(meta),
                              why='identification needs two galleries and the probes',
                              do='put them beside the other lists')

    def _read_1n(self, lists: list[Path], fpirs: Sequence[float] | None) -> None:
        *galleries, probes = [read_ijb_subjects(path) for path in lists]
        self.probes = self.templates.places(probes[0], str(lists[-1]))
        self.probe_subjects = probes[1]
        num_strangers = []
        for path, (ids, subjects) in zip(lists[:-1], galleries, strict=True):
            is_mated = np.isin(self.probe_subjects, subjects)
            if is_mated.all() or not is_mated.any():
                raise VisionError('VIS-DATA-1067', f'{is_mated.sum()} of {len(is_mated)} probes '
                                  'have their subject in the gallery', where=str(path),
                                  why='open-set identification needs both kinds',
                                  do='get the lists again from their publisher')
            num_strangers.append(int((~is_mated).sum()))
            self.galleries.append(Gallery1N(path.stem.rpartition('_')[2],
                                            self.templates.places(ids, str(path)), subjects))
        self.fpirs = measurable(FPIRS, min(num_strangers)) if fpirs is None else self.fpirs
        for fpir in self.fpirs:
            allowed_accepts(fpir, min(num_strangers))

    def answer(self, embeddings: np.ndarray) -> dict:
        lists = self.templates
        weights = lists.detection_scores if self.with_scores else None
        _, pooled = pool_templates(embeddings, lists.templates, lists.media, weights=weights)
        scores = pair_cosines(pooled, lists.first, lists.second)
        genuine, impostor = scores[lists.same], scores[~lists.same]
        rates = [tar_at_far(genuine, impostor, far) for far in self.fars]
        row = dict(num_pairs=len(scores), num_templates=len(pooled), tar_at_far=[
            dict(far=far, tar=rate.tar, threshold=rate.threshold)
            for far, rate in zip(self.fars, rates, strict=True)])
        if self.galleries:
            row['identification'] = self._identify(pooled)
        return row

    def _identify(self, pooled: np.ndarray) -> list[dict]:
        """A row for each gallery, then their mean."""
        rows = []
        for part in self.galleries:
            ranking = rank_exactly(pooled[part.gallery], part.subjects, pooled[self.probes],
                                   self.probe_subjects)
            rates = tpir_at_fpir(ranking, self.fpirs) if self.fpirs else []
            rows.append(dict(gallery=part.name, **{f'rank{k}': rank_k(ranking, k)
                                                   for k in self.ranks},
                             **{f'tpir@{fpir:g}': rate
                                for fpir, rate in zip(self.fpirs, rates, strict=True)}))
        mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]
                if key != 'gallery'}
        return [*rows, dict(gallery='mean', **mean)]


class DistractorQuestion:
    """MegaFace: rank-1 of each picture's mates among more and more distractors.

    Args:
        found: pictures of the people who are looked for.
        num_distractors: pictures of others.
        sizes: None: 10, 100, ... and all of them.
    """

    def __init__(self, found: LabelledPaths, num_distractors: int,
                 sizes: Sequence[int] | None = None) -> None:
        self.paths, self.labels = found.paths, found.labels
        self.sizes = list(sizes) if sizes else [*(10**power for power in range(
            1, len(str(num_distractors))) if 10**power < num_distractors), num_distractors]
        self.num_questions = len(mates(self.labels)[0])
        refuse_sizes(self.num_questions, num_distractors, self.sizes)

    def answer(self, embeddings: np.ndarray, distractors: np.ndarray) -> dict:
        """Embeddings (N, d) and distractors (D, d), rows of any length, also memory-mapped."""
        rates = rank1_among_distractors(unit_rows(embeddings), self.labels, distractors,
                                        self.sizes)
        return dict(num_questions=self.num_questions, rank1=[
            dict(distractors=size, rate=rate)
            for size, rate in zip(self.sizes, rates, strict=True)])


class AllPairsQuestion:
    """TAR at FAR over every pair of a set, the way InsightFace's MFR compares.

    Args:
        fars: None: those of ``LARGE_FARS`` that so many impostor pairs can tell.
    """

    def __init__(self, found: LabelledPaths, fars: Sequence[float] | None = None) -> None:
        self.paths, self.labels = found.paths, found.labels
        counts = np.bincount(self.labels).astype(object)  # whole numbers of any size
        self.num_genuine = int((counts * (counts - 1) // 2).sum())
        self.num_impostors = len(self.labels) * (len(self.labels) - 1) // 2 - self.num_genuine
        self.fars = measurable(LARGE_FARS, self.num_impostors) if fars is None else list(fars)
        for far in self.fars:
            allowed_accepts(far, self.num_impostors)
        if not self.num_genuine:
            raise VisionError('VIS-DATA-1062', 'no pair of one person', why='a true accept rate '
                              'needs some', do='bring a second picture of somebody')

    def answer(self, embeddings: np.ndarray) -> dict:
        rates = all_pairs_tar(unit_rows(embeddings), self.labels, self.fars)
        return dict(num_pairs=self.num_genuine + self.num_impostors, tar_at_far=[
            dict(far=far, tar=rate.tar, threshold=rate.threshold)
            for far, rate in zip(self.fars, rates, strict=True)])
