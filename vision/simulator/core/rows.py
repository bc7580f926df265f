"""Predictions of published rows, and what they are worth: by source, single and multi node, order,
choice, memory, scaling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from vision.simulator.core.analytic import predict
from vision.simulator.core.cluster import Cluster
from vision.simulator.core.convnets import (
    MASK_RCNN_PARAMETERS,
    RESNET50_PARAMETERS,
    RETINANET_PARAMETERS,
    ConvWriter,
    mask_rcnn,
    resnet50,
    retinanet,
)
from vision.simulator.core.fit import Pair, fit, halves, score
from vision.simulator.core.graph import Op
from vision.simulator.core.pricing import Group, Prices, with_constants
from vision.simulator.core.published import Case, case_of
from vision.simulator.core.transformers import backward_of

# From a recollection of their table, so they are neither fitted on nor part of the bars.
RECALLED = ('Narayanan',)
# Padded sizes of a batch of two COCO images, short side 640 to 800, long side to 1333: the mean,
# which times are of (our choice, no table has it), and the largest, which peaks are of.
_MEAN_SIZE, _LARGEST_SIZE = (768, 1056), (800, 1344)
# Constants that are fitted, nine, from values of the presets for A100 and H100.
FITTED = ('gemm_share', 'gemm_share_hopper', 'half_size', 'memory_share', 'host_us',
          'intra_share', 'inter_share', 'jitter', 'unlisted')


@dataclass(frozen=True)
class Outcome:
    """A row beside its prediction; ``predicted`` and ``measured`` in the row's metric."""

    case: Case
    half: str
    predicted: float
    measured: float
    seconds: float
    peak_bytes: float

    @property
    def error(self) -> float:
        """(predicted - measured) / measured: positive where more is predicted."""
        return (self.predicted - self.measured) / self.measured

    @property
    def times(self) -> Pair:
        """As times, of which less is better: rates are turned over."""
        if self.case.metric in ('iteration_time', 'peak_memory'):
            return self.predicted, self.measured
        return 1 / self.predicted, 1 / self.measured

    @property
    def memory(self) -> Pair | None:
        """(predicted, measured) peak bytes, where the row has them."""
        if self.case.metric == 'peak_memory':
            return self.predicted, self.measured
        measured = self.case.measured_bytes
        return (self.peak_bytes, measured) if measured else None

    @property
    def workload(self) -> str:
        """A text that is equal for rows that do the same work with as many devices of one kind."""
        row = self.case.row
        return '/'.join(row[name] for name in ('source', 'gpu', 'n_gpus', 'model', 'layers',
                                               'hidden', 'seq_or_img', 'global_batch'))

    def to_dict(self) -> dict[str, Any]:
        """Errors without the figures they are of: those are for their publishers to give."""
        row, memory = self.case.row, self.memory
        return dict(id=row['id'], source=self.case.source, half=self.half, metric=row['metric'],
                    is_multi_node=self.case.is_multi_node, error=round(self.error, 4),
                    memory_error=round(memory[0] / memory[1] - 1, 4) if memory else None,
                    assumed=list(self.case.assumed))


def predict_case(case: Case, constants: Mapping[str, float]) -> tuple[float, float]:
    """(seconds, peak bytes) of a row's step, with fitted constants in place of the preset's."""
    prices = Prices(with_constants(case.cluster, dict(constants)),
                    tf32='TF32' in case.row['precision'])
    if case.decoder is None:
        return _images_step(case, prices)
    prediction = predict(case.decoder, case.strategy, prices)
    return prediction.seconds, prediction.peak_bytes


def predict_rows(rows: Sequence[Mapping[str, str]], presets: Callable[[str], Cluster],
                 constants: Mapping[str, float]) -> list[Outcome]:
    """All rows, sorted by id, none left out."""
    fitted_on = {row['id'] for row in halves(rows)[0]}
    outcomes = []
    for row in rows:
        case = case_of(row, presets)
        seconds, peak_bytes = predict_case(case, constants)
        outcomes.append(Outcome(case, 'fit' if row['id'] in fitted_on else 'held',
                                case.value_of(seconds, peak_bytes), case.measured, seconds,
                                peak_bytes))
    return outcomes


ABLATIONS = ('overlap', 'sharing')


def ablated(case: Case, what: str) -> Case:
    """The case with a part of the model off: 'overlap', all communication stands alone;
    'sharing', every device has its node's adapters for itself."""
    if what == 'overlap':
        return replace(case, strategy=case.strategy and replace(
            case.strategy, is_overlapped=False, is_tensor_overlapped=False))
    links = {name: replace(link, shared_by=1) if name == 'inter' else link
             for name, link in case.cluster.links.items()}
    return replace(case, cluster=replace(case.cluster, links=links))


def ablation_errors(outcomes: Sequence[Outcome], constants: Mapping[str, float]
                    ) -> dict[str, dict[str, dict[str, float]]]:
    """Mean errors of times as they are and with each part off, by source and single or multi node,
    of the sources in which a part changes anything."""
    timed = [each for each in outcomes if each.case.decoder and each.case.source not in RECALLED
             and each.case.metric != 'peak_memory']
    found: dict[str, dict[str, dict[str, float]]] = {}
    for what in ABLATIONS:
        pairs: dict[str, list[tuple[float, float]]] = {}
        for each in timed:
            case = ablated(each.case, what)
            value = case.value_of(*predict_case(case, constants))
            name = f'{case.source}, {"multi" if case.is_multi_node else "single"} node'
            pairs.setdefault(name, []).append((abs(each.error), abs(value / each.measured - 1)))
        found[what] = {
            name: dict(count=len(group), on=round(sum(a for a, _ in group) / len(group), 4),
                       off=round(sum(b for _, b in group) / len(group), 4))
            for name, group in sorted(pairs.items()) if any(abs(a - b) > 1e-6 for a, b in group)}
    return found


def fit_rows(rows: Sequence[Mapping[str, str]], presets: Callable[[str], Cluster]
             ) -> dict[str, float]:
    """The constants of ``FITTED`` from times of transformers in the first half of the rows."""
    cases = [case for case in (case_of(row, presets) for row in halves(rows)[0])
             if case.decoder and case.metric != 'peak_memory' and case.source not in RECALLED]
    ampere, hopper = presets('a100-dgx'), presets('h100')
    start = dict(gemm_share=ampere.device.gemm_share[''],
                 gemm_share_hopper=hopper.device.gemm_share[''],
                 half_size=ampere.device.half_size, memory_share=ampere.device.memory_share,
                 host_us=ampere.overheads.host * 1e6, intra_share=ampere.links['intra'].share,
                 inter_share=ampere.links['inter'].share, jitter=ampere.overheads.jitter,
                 unlisted=ampere.overheads.unlisted)
    assert set(start) == set(FITTED)

    def predict_all(constants: Mapping[str, float]) -> list[Pair]:
        return [(case.value_of(*predict_case(case, constants)), case.measured) for case in cases]

    return fit(predict_all, start)


def summary(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Scores of times by source, and of vTrain's rows and all others by single and multi node; of
    memory; what was recalled stands apart."""
    outcomes = list(outcomes)
    timed = [each for each in outcomes if each.case.metric != 'peak_memory']
    sound = [each for each in timed if each.case.source not in RECALLED]
    groups: dict[str, list[Outcome]] = {}
    for each in timed:
        name = each.case.source
        groups.setdefault(f'{name} (recalled)' if name in RECALLED else name, []).append(each)
    transformers = [each for each in sound if each.case.decoder]
    for name, is_multi in (('single node', False), ('multi node', True)):
        group = [each for each in transformers if each.case.is_multi_node == is_multi]
        groups[f'transformers, {name}'] = group
        groups[f'vTrain, {name}'] = [each for each in group if each.case.source == 'vTrain']
    scores = {name: asdict(score([each.times for each in group],
                                 [each.workload for each in group]))
              for name, group in groups.items() if group}
    return dict(times=scores, memory=_memory(outcomes), scaling=_scaling(outcomes))


def _memory(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    found: dict[str, list[Outcome]] = {}
    for each in outcomes:
        if each.memory:
            found.setdefault(each.case.source, []).append(each)
    scores = {name: asdict(score([each.memory for each in group]))
              for name, group in found.items()}
    wrong = [each.case.row['id'] for group in found.values() for each in group
             if each.memory[0] > each.case.cluster.device.memory_bytes]
    return dict(by_source=scores, said_not_to_fit_though_it_ran=wrong)


def _scaling(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Rates on several devices from the measured one of one device and the predicted ratio."""
    images = [each for each in outcomes if each.case.metric == 'images_per_s']
    rows = []
    for one in images:
        for more in images:
            names = ('model', 'gpu', 'precision', 'micro_batch')
            if one.case.num_devices == 1 < more.case.num_devices and all(
                    one.case.row[name] == more.case.row[name] for name in names):
                predicted = one.measured * more.predicted / one.predicted
                rows.append(dict(id=more.case.row['id'], precision=more.case.row['precision'],
                                 error=round(predicted / more.measured - 1, 4)))
    return rows


def _images_step(case: Case, prices: Prices) -> tuple[float, float]:
    """Data-parallel step of a vision model: forward, backward, gradients beside it, SGD."""
    images = int(case.row['micro_batch'])
    write, parameters = _network(case, images, _MEAN_SIZE)
    largest, _ = _network(case, images, _LARGEST_SIZE)
    forward = write.ops
    # Detectors train with stem and first stage frozen.
    is_detector = case.source == 'mmdetection'
    backward = backward_of([op for op in forward if not (
        is_detector and op.name.startswith(('stem', 'stage0')))])
    compute = prices.seconds(forward) + prices.seconds(backward)
    group = Group(case.num_devices, min(case.num_devices, 8))
    reduce = prices.all_reduce(4 * parameters, group)
    slowdown = prices.cluster.overheads.slowdown
    # The first bucket goes when most of the backward is to come, the last when nothing is.
    exposed = 0.1 * reduce + slowdown * 0.9 * reduce
    optimizer = prices.device_seconds(Op('sgd', '', 'elementwise', 0.0, 20.0 * parameters))
    seconds = (compute + exposed + optimizer) * prices.waiting(case.num_devices)
    overheads = prices.cluster.overheads
    # Weights, gradients, momentum; and workspace of convolutions, of which cuDNN gets its best.
    live = 12 * parameters + largest.saved + max(op.output_bytes for op in largest.ops) * 2
    return seconds, live * (1 + overheads.fragmentation)


def _network(case: Case, images: int, size: tuple[int, int]) -> tuple[ConvWriter, int]:
    model, dtype = case.row['model'], case.row['precision']
    if 'Mask R-CNN' in model:
        return mask_rcnn(images, *size), MASK_RCNN_PARAMETERS
    if 'RetinaNet' in model:
        return retinanet(images, *size), RETINANET_PARAMETERS
    return resnet50(images, dtype='float16' if 'AMP' in dtype else 'float32'), \
        RESNET50_PARAMETERS
