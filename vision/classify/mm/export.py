"""A trained classifier as one ONNX file that needs nothing else: network, preparation, names."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import DefaultScope
from torch import nn

from vision.classify.core.probabilities import calibrate
from vision.classify.mm.inference import (
    PACKERS,
    READERS,
    build_model,
    kind_of,
    names_of,
    no_classifier,
    settings_of,
    test_steps,
)
from vision.classify.runtime.onnx_classifier import OnnxClassifier
from vision.classify.runtime.preparation import check_steps, prepare
from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import load_checkpoint
from vision.common.nn.onnx_export import export_onnx
from vision.registry import DATASETS
from vision.zoo import resolve

# Of logits, which reach 30: float32 of both libraries differs by 1e-4, float16 rows by 1e-2.
TOLERANCE, TOLERANCE_HALF = 1e-2, 0.1
HALF_FROM = 100_000  # numbers: rows of very many classes, not the convolutions
SEED = 0


@dataclass(frozen=True)
class Exported:
    """What came out: ``difference`` of a logit; ``accuracy`` in percent, of ``num_images``."""

    difference: float
    num_classes: int
    num_images: int = 0
    accuracy: dict[str, float] | None = None
    unknown_accuracy: float | None = None


def export_classifier(config: Path, checkpoint: str, target: Path, *, half_rows: bool = False,
                      classes: Sequence[str] | None = None, class_means: bool = False,
                      unknown: str | None = None,
                      data_root: str | None = None, num_calibration: int = 1000,
                      num_test: int = 0) -> Exported:
    """Write the file, and measure it where that is asked for.

    Args:
        checkpoint: .pth, .safetensors or zoo:NAME.
        half_rows: large matrices as float16: half the file.
        classes: names in label order, where the checkpoint does not name them.
        class_means: a recogniser's classes are those of its training data set, each the mean
            embedding of its pictures, prepared as in the test, and not the rows that its head
            learned: better where a class was met a few times only, and ``data_root`` may have
            classes that it was not trained on.
        unknown: OPTION=VALUE,... of the test data set that make it one of pictures of no class,
            e.g. ``split=unseen``: the file gets a place for what is unknown, and probabilities
            fitted on ``num_calibration`` pictures of each kind. None: neither.
        data_root: of the test data set, in place of the config's.
        num_test: pictures of the test data set, beside those, that the written file is measured
            on; 0: none.

    Raises:
        VisionError: VIS-DATA-1831 a class without pictures, VIS-CONFIG-1738 a preparation that a
            file cannot hold, VIS-RUN-1007 a graph that differs, VIS-CKPT-1745, VIS-CONFIG-1746,
            VIS-CONFIG-1747, VIS-CONFIG-1748.
    """
    path = resolve(checkpoint)
    content = load_checkpoint(path)
    settings = settings_of(config)
    if data_root is not None:
        settings.test_dataloader.dataset.data_root = data_root
        settings.train_dataloader.dataset.data_root = data_root
    model = build_model(settings, content, str(path))
    if not hasattr(model, 'as_classifier'):
        raise no_classifier(str(config))
    module = model.as_classifier(content, str(path))
    steps = [step for step in test_steps(settings, str(config)) if kind_of(step) not in PACKERS]
    steps = [dict(step, type=kind_of(step)) for step in steps]
    steps = json.loads(json.dumps(steps))
    check_steps(steps, str(config))
    if class_means:
        train = _Pictures(settings.train_dataloader.dataset, {}, steps)
        known = train.dataset.metainfo
        classes = classes or known.get('classes')
        names = names_of({} if classes else content, known['num_classes'], str(path), classes)
        _take_means(module, train, names)
    else:
        names = names_of(content, model.head.num_classes, str(path), classes)
    metadata = dict(task='classify', names=json.dumps(names), preparation=json.dumps(steps),
                    gives='logits')
    rng = np.random.default_rng(SEED)
    held_out = _Pictures(settings.test_dataloader.dataset, {}, steps)
    order = rng.permutation(len(held_out))
    if unknown is not None:
        others = _Pictures(settings.test_dataloader.dataset, _options(unknown), steps)
        metadata['unknown_logit'] = str(_fit(
            module, held_out, order[:num_calibration], others,
            rng.permutation(len(others))[:num_calibration]))
        order = order[num_calibration:]
    samples = [held_out.batch(order[:count]) for count in (2, 1, 5)]
    difference = export_onnx(module, samples, target, output='logits', metadata=metadata,
                             tolerance=TOLERANCE_HALF if half_rows else TOLERANCE,
                             half_from=HALF_FROM if half_rows else None)
    if not num_test:
        return Exported(difference, len(names))
    network = OnnxClassifier(target)
    chosen = np.sort(order[:num_test])
    accuracy = _accuracy(network, held_out, chosen)
    rejected = None
    if unknown is not None:
        strangers = rng.permutation(len(others))[num_calibration:num_calibration + num_test]
        rejected = 100 * float(np.mean([
            row.argmax() == len(names) for row in _rows(network, others, strangers)]))
    return Exported(difference, len(names), len(chosen), accuracy, rejected)


class _Pictures:
    """A data set before any preparation, and with that of the test."""

    def __init__(self, settings: Mapping, changes: Mapping[str, Any], steps: list[dict]) -> None:
        self.steps = steps
        dataset = dict(settings, **changes)
        dataset['pipeline'] = [step for step in dataset['pipeline']
                               if kind_of(step) in (*READERS, *PACKERS)]
        with DefaultScope.overwrite_default_scope('vision'):
            self.dataset = DATASETS.build(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def raw(self, index: int) -> tuple[np.ndarray, int]:
        """(H, W, C) uint8 as it is read, and its label."""
        packed = self.dataset[int(index)]
        image = packed['inputs'].numpy().transpose(1, 2, 0)
        return np.ascontiguousarray(image), int(packed['data_samples'].gt_label)

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        """(B, C, h, w) float32, prepared."""
        return torch.from_numpy(np.stack([prepare(self.raw(i)[0], self.steps) for i in indices]))

    def labels(self, indices: Sequence[int]) -> np.ndarray:
        return np.array([self.raw(i)[1] for i in indices])


@torch.no_grad()  # tensors of inference_mode could not be traced afterwards
def _take_means(module: nn.Module, train: _Pictures, names: Sequence[str]) -> None:
    """Mean embeddings, of length one, in place of the rows (d, K)."""
    sums = torch.zeros(len(names), module.rows.shape[0])
    for part in np.array_split(np.arange(len(train)), max(1, len(train) // 256)):
        pairs = [train.raw(i) for i in part]
        planes = np.stack([prepare(image, train.steps) for image, _ in pairs])
        sums.index_add_(0, torch.tensor([label for _, label in pairs]),
                        module.embedder(torch.from_numpy(planes)))
    if not (has_pictures := sums.abs().sum(dim=1) > 0).all():
        lacking = [names[i] for i in torch.nonzero(~has_pictures)[:3]]
        raise VisionError('VIS-DATA-1831', f'{int((~has_pictures).sum())} classes have no '
                          f'training picture, such as {", ".join(lacking)}', where='--class-means',
                          why='a class is the mean of its pictures', do='leave --class-means out')
    module.rows = torch.nn.functional.normalize(sums).t().contiguous()


@torch.inference_mode()
def _fit(module: nn.Module, known: _Pictures, known_rows: np.ndarray, unknown: _Pictures,
         unknown_rows: np.ndarray) -> float:
    """The unknown's logit; the scale goes into the module."""
    logits = [np.concatenate([module(data.batch(part)).numpy() for part in np.array_split(
        rows, max(1, len(rows) // 64))]) for data, rows in ((known, known_rows),
                                                            (unknown, unknown_rows))]
    scale, unknown_logit = calibrate(logits[0], known.labels(known_rows), logits[1])
    module.scale *= scale
    return unknown_logit


def _rows(network: OnnxClassifier, data: _Pictures, indices: np.ndarray):
    for part in np.array_split(indices, max(1, len(indices) // 64)):
        yield from network([data.raw(i)[0] for i in part])


def _accuracy(network: OnnxClassifier, data: _Pictures, indices: np.ndarray
              ) -> dict[str, float]:
    """Percent of the pictures whose class is the first, or among the first five; unknown is
    wrong."""
    labels, ranks = data.labels(indices), []
    for row, label in zip(_rows(network, data, indices), labels, strict=True):
        ranks.append(int((row >= row[label]).sum()))
    return {f'top{k}': 100 * float((np.array(ranks) <= k).mean()) for k in (1, 5)}


def _options(text: str) -> dict[str, Any]:
    options = {}
    for part in text.split(','):
        name, equals, value = part.partition('=')
        if not (name and equals and value):
            raise VisionError('VIS-CONFIG-1748', f'--unknown {text!r}', why='it changes options '
                              'of the test data set', do='e.g. --unknown split=unseen')
        try:
            options[name.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name.strip()] = value
    return options
