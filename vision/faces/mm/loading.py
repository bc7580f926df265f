"""A config and a checkpoint to an embedder, and many pictures to embeddings."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from vision import zoo
from vision.common.core.errors import VisionError
from vision.common.mm.safe_files import is_data_config, read_safely
from vision.common.nn.checkpoint import load_checkpoint, load_state
from vision.registry import MODELS


def load_embedder(config: str | Path, checkpoint: str, *, with_flip: bool | None = None,
                  device: str = 'cpu') -> nn.Module:
    """Embedder of a ``FaceRecognizer`` in evaluation mode; the head is not built.

    Args:
        checkpoint: .pth, .safetensors or zoo:NAME.
        with_flip: flip fusion; None: as the config says.

    Raises:
        VisionError: VIS-CONFIG-1083 for a config without a recogniser, VIS-ENV-1084 when the
            device is not there, and what reading weights raises.
    """
    if not Path(config).is_file():
        raise VisionError('VIS-CONFIG-1083', f'there is no config {config}',
                          do='give one of configs/faces')
    path = Path(config)
    settings = (read_safely(path) if is_data_config(path) else Config.fromfile(path)
                ).get('model') or {}
    if settings.get('type') not in ('FaceRecognizer', 'vision.FaceRecognizer'):
        raise VisionError('VIS-CONFIG-1083', f'{config} describes no FaceRecognizer',
                          where='model.type', do='give one of configs/faces')
    settings = dict(settings, head=None)
    if with_flip is not None:
        settings['flip_fusion'] = with_flip
    # Building imports every room, and libraries print notices then: stdout is for results.
    with DefaultScope.overwrite_default_scope('vision'), redirect_stdout(sys.stderr):
        model = MODELS.build(settings)
    path = zoo.resolve(checkpoint)
    state = {name: tensor for name, tensor in load_checkpoint(path)['state_dict'].items()
             if not name.startswith('head.')}
    load_state(model, state, where=str(path))
    try:
        return model.eval().embedder().to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise VisionError('VIS-ENV-1084', f'device {device!r} cannot be used: {error}',
                          do='use --device cpu') from error


@torch.inference_mode()
def embed_images(embedder: nn.Module, images: Iterable[np.ndarray], *, size: int = 112,
                 batch_size: int = 64) -> np.ndarray:
    """(N, d) float32 unit embeddings of pictures (size, size, C) uint8, BGR as they are read.

    Raises:
        VisionError: VIS-DATA-1082 for a picture of another size.
    """
    device = next(embedder.parameters()).device
    rows = []
    for batch in _batches(_checked(images, size), batch_size):
        tensor = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
        rows.append(embedder(tensor.to(device).float()).cpu().numpy())
    return np.concatenate(rows) if rows else np.zeros((0, 0), dtype=np.float32)


def _checked(images: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    for position, image in enumerate(images):
        refuse_other_size(position, image.shape[1], image.shape[0], size)
        yield image


def refuse_other_size(position: int, width: int, height: int, size: int) -> None:
    """Refuse a picture of width x height px unless it is size x size; ``position`` names it.

    Raises:
        VisionError: VIS-DATA-1082.
    """
    if (width, height) != (size, size):
        raise VisionError('VIS-DATA-1082', f'picture {position} is {width} x {height} px',
                          why=f'the embedder takes aligned faces of {size} x {size} px; '
                          'stretching would change the result',
                          do='align the faces first, or give --image-size')


def _batches(images: Iterator[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    while batch := list(islice(images, size)):
        yield batch
