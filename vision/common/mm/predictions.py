"""Predictions written by a test, and judged later without the network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, barrier, is_main_process
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import init_default_scope

from vision.common.core.errors import VisionError
from vision.common.core.predictions import (
    read_predictions,
    require_predictions_name,
    write_predictions,
)
from vision.registry import DATASETS, METRICS

# What tells samples apart, first found: a sampler may give a rank one twice.
_IDENTITIES = (('video_id', 'frame_id'), ('img_id',), ('sample_idx',), ('img_path',))


@METRICS.register_module()
class DumpPredictions(BaseMetric):
    """Writes the predictions of a test to ``out_file_path`` (.json or .npz); measures nothing.

    MMEngine's ``DumpResults`` in a form that can be read without running anything. Each sample is
    written once, whichever and however many ranks it came from.

    Args:
        about: further plain values for the file.
    """

    default_prefix = 'dump'

    def __init__(self, out_file_path: str, about: dict | None = None,
                 collect_device: str = 'cpu') -> None:
        super().__init__(collect_device=collect_device)
        self.path, self.about = require_predictions_name(out_file_path), dict(about or {})

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the samples of a batch as plain values."""
        self.results += [plain_sample(sample) for sample in data_samples]

    def evaluate(self, size: int) -> dict[str, float]:
        """MMEngine's gathering would cut to ``size``, which may be a number of videos."""
        ranks = all_gather_object(list(self.results))  # a copy, where there is one rank
        self.results.clear()
        if is_main_process():
            # Samplers deal samples out in turn.
            rows = chain.from_iterable(zip_longest(*ranks))
            samples = list({_identity(row): row for row in rows if row is not None}.values()) \
                if len(ranks) > 1 else ranks[0]
            classes = (self.dataset_meta or {}).get('classes')
            write_predictions(self.path, samples, **self.about,
                              classes=None if classes is None else list(classes))
        barrier()
        return {}

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Not called: ``evaluate`` writes the file and measures nothing.

        Raises:
            AssertionError: always.
        """
        raise AssertionError('evaluate() does all')


def plain_sample(sample: dict) -> dict:
    """A sample as metrics get it, with arrays in place of tensors and of mmdet's boxes."""
    return {name: _plain(value) for name, value in sample.items()}


def _plain(value: Any) -> Any:
    value = getattr(value, 'tensor', value)  # mmdet's box types wrap a tensor
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if hasattr(value, 'items'):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return value if not isinstance(value, Path) else str(value)


def as_tensors(sample: dict) -> dict:
    """The inverse of ``plain_sample``: what metrics expect."""
    return {name: as_tensors(value) if isinstance(value, dict) else
            torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
            for name, value in sample.items()}


def _identity(sample: dict) -> tuple:
    for names in _IDENTITIES:
        if all(name in sample for name in names):
            return tuple(sample[name] for name in names)
    return (id(sample),)


def with_dump(config: Config, path: Path, **about: Any) -> None:
    """Let the test of a config write its predictions to ``path``."""
    evaluators = evaluators_of(config)
    about = dict(config=str(config.filename), **about)
    # First, so that they are there even where a metric fails.
    config.test_evaluator = [dict(type='vision.DumpPredictions', out_file_path=str(path),
                                  about=about), *evaluators]


def require_parts(config: Config, *keys: str) -> None:
    """Refuse (VIS-CONFIG-1790) a config that lacks one of these keys, or has None there."""
    if missing := [key for key in keys if not config.get(key)]:
        raise VisionError('VIS-CONFIG-1790', f'the config has no {" and no ".join(missing)}',
                          where=str(config.filename), why='this command reads them',
                          do='write a config with this one as _base_ that has them; '
                          'configs/_base_/datasets shows their form')


def evaluators_of(config: Config) -> list[dict]:
    """What the test is judged by."""
    require_parts(config, 'test_dataloader', 'test_evaluator')
    found = config.test_evaluator
    return [found] if isinstance(found, dict) else list(found)


def evaluation_dataset(config: Config):
    """The data set of ``test_dataloader``, built and loaded."""
    init_default_scope(config.get('default_scope') or 'vision')
    require_parts(config, 'test_dataloader')
    dataset = DATASETS.build(config.test_dataloader['dataset'])
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    return dataset


def evaluate_predictions(config: Config, path: Path | str) -> dict[str, float]:
    """What ``test_evaluator`` says of predictions that ``DumpPredictions`` wrote: the metrics
    that the test itself printed.

    Raises:
        VisionError: VIS-DATA-1782, they are those of other data; and what reading them raises.
    """
    samples, about = read_predictions(path)
    evaluators = evaluators_of(config)
    dataset = evaluation_dataset(config)
    require_same_data(samples, about, dataset, str(path))
    evaluator = Evaluator(evaluators)
    evaluator.dataset_meta = dataset.metainfo
    return evaluator.offline_evaluate([as_tensors(sample) for sample in samples])


def require_same_data(samples: Sequence[dict], about: dict, dataset, where: str) -> None:
    """Refuse predictions (VIS-DATA-1782) of other classes, or another number of samples."""
    classes = dataset.metainfo.get('classes')
    known = about.get('classes')
    fault = ''
    if classes is not None and known is not None and tuple(classes) != tuple(known):
        fault = f'classes {_shown(known)}; the data set of the config has {_shown(classes)}'
    wanted = num_samples(dataset)
    if not fault and len(samples) != wanted:
        fault = f'{len(samples)} samples; the data set of the config has {wanted}'
    if fault:
        raise VisionError('VIS-DATA-1782', f'the predictions are of {fault}', where=where,
                          why='they would be judged against what they are not of',
                          do='give the config, and the --cfg-options, that vision test was given')


def num_samples(dataset) -> int:
    """Of a test: frames where a data set counts videos."""
    if hasattr(dataset, 'get_len_per_video'):
        return sum(dataset.get_len_per_video(video) for video in range(len(dataset)))
    return len(dataset)


def _shown(names: Iterable[str], num_shown: int = 4) -> str:
    names = list(names)
    return ', '.join(map(str, names[:num_shown])) + (', ...' if len(names) > num_shown else '')
