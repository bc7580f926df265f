"""A classifier of a config and its weights: its own preparation, its own network."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from torch import nn

from vision.common.core.errors import VisionError
from vision.common.mm.launch import read_config
from vision.common.nn.checkpoint import class_names, load_state
from vision.registry import MODELS, TRANSFORMS

READERS = ('ReadImage', 'LoadImageFromFile')  # first steps of a pipeline; pictures are read here
PACKERS = ('PackInputs', 'PackFaceInputs')


class ConfigClassifier:
    """Pictures to probabilities, as the config's test says, in torch.

    Args:
        config: path of a config of an ``ImageClassifier``.
        content: of the checkpoint.
        where: its path, for errors.
        classes: names in label order, where the checkpoint does not name them.

    Raises:
        VisionError: VIS-CONFIG-1746 another model, or one without a test pipeline, VIS-CONFIG-1747
            names that do not fit, and what reading config and weights raises.
    """

    def __init__(self, config: Path, content: Mapping[str, Any], where: str, *,
                 device: torch.device | str = 'cpu', classes: Sequence[str] | None = None) -> None:
        settings = settings_of(config)
        self.model = build_model(settings, content, where).to(device)
        if not hasattr(self.model, 'predictions'):
            raise no_classifier(str(config))
        self.pipeline = test_pipeline(settings, str(config))
        self.classes = names_of(content, self.model.head.num_classes, where, classes)

    @torch.inference_mode()
    def __call__(self, images_bgr: Sequence[np.ndarray]) -> np.ndarray:
        """Pictures (H, W, 3) uint8 BGR -> (N, K) float64, one after the other."""
        rows = []
        for image in images_bgr:
            packed = self.pipeline(dict(img=image, img_shape=image.shape[:2],
                                        ori_shape=image.shape[:2]))
            sample, = self.model.test_step(dict(inputs=[packed['inputs']],
                                                data_samples=[packed['data_samples']]))
            rows.append(sample.pred_score.double().cpu().numpy())
        return np.stack(rows)


def settings_of(config: Path) -> Config:
    """The config with everything that it inherits, checked as a training checks it."""
    return read_config(argparse.Namespace(config=str(config), cfg_options=None, local_rank=0,
                                          launcher='none', work_dir=None))


def build_model(settings: Config, content: Mapping[str, Any], where: str) -> nn.Module:
    """The model of a config with the weights of a checkpoint, in evaluation mode."""
    model_settings = settings.get('model')
    if not model_settings:
        raise no_classifier(str(settings.filename))
    # Building imports every room, and libraries print notices then: stdout is for results.
    with DefaultScope.overwrite_default_scope('vision'), redirect_stdout(sys.stderr):
        model = MODELS.build(model_settings)
    load_state(model, content['state_dict'], where=where)
    return model.eval()


def test_pipeline(settings: Config, where: str) -> Compose:
    """From ``img`` on: the steps of the test data set behind the one that reads."""
    with DefaultScope.overwrite_default_scope('vision'):
        return Compose([TRANSFORMS.build(step) for step in test_steps(settings, where)])


def test_steps(settings: Config, where: str) -> list[dict]:
    """Steps of a config's test pipeline, without those that read pictures; ``where`` names the
    config.

    Raises:
        VisionError: it has no test data set with a pipeline.
    """
    loader = settings.get('test_dataloader') or settings.get('val_dataloader') or {}
    steps = (loader.get('dataset') or {}).get('pipeline')
    if not steps:
        raise no_classifier(where)
    return [dict(step) for step in steps if kind_of(step) not in READERS]


def kind_of(step: Mapping) -> str:
    """Class name of a step, without its scope."""
    return str(step['type']).rpartition('.')[2]


def names_of(content: Mapping[str, Any], number: int, where: str,
             classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """Given names, or those of the checkpoint, or 'class 0' and so on.

    Raises:
        VisionError: another number of names than of classes.
    """
    named = class_names(content)
    names = tuple(classes or named or (f'class {label}' for label in range(number)))
    if len(names) != number:
        raise VisionError('VIS-CONFIG-1747', f'{len(names)} names for {number} classes',
                          where='classes' if classes else where, why='a name for each class, in '
                          'label order', do='give classes=[...] with all of them')
    return names


def no_classifier(where: str) -> VisionError:
    """The error, not raised, of a config that describes no classifier.

    Returns:
        VisionError: with ``where`` in its text.
    """
    return VisionError('VIS-CONFIG-1746', f'{where} describes no classifier', where='model.type, '
                       'test_dataloader', why='wanted are an ImageClassifier (for an export a '
                       'FaceRecognizer too) and a test data set whose pipeline prepares pictures',
                       do='use one of configs/classify or configs/polynet')
