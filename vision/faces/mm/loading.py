"""A config and a checkpoint to an embedder."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from vision import zoo
from vision.common.core.errors import VisionError
from vision.common.mm.safe_files import is_data_config, read_safely
from vision.common.nn.checkpoint import load_checkpoint, load_state
from vision.common.nn.devices import find_device
from vision.faces.nn.backbones.published import is_published, renamed
from vision.registry import MODELS


def load_embedder(config: str | Path, checkpoint: str, *, with_flip: bool | None = None,
                  device: str = 'cpu') -> nn.Module:
    """Embedder of a ``FaceRecognizer`` in evaluation mode; the head is not built.

    Args:
        checkpoint: .pth, .safetensors or zoo:NAME; or the published MobileFaceNet's state.
        with_flip: flip fusion; None: as the config says.

    Raises:
        VisionError: VIS-CONFIG-1083, VIS-CONFIG-1130 for a config without a recogniser,
            VIS-ENV-515 when the device is not there, and what reading weights raises.
    """
    device = find_device(device)
    if not Path(config).is_file():
        raise VisionError('VIS-CONFIG-1083', f'there is no config {config}',
                          do='give one of configs/faces')
    path = Path(config)
    settings = (read_safely(path) if is_data_config(path) else Config.fromfile(path)
                ).get('model') or {}
    if settings.get('type') not in ('FaceRecognizer', 'vision.FaceRecognizer'):
        raise VisionError('VIS-CONFIG-1130', f'{config} describes no FaceRecognizer',
                          where='model.type', do='give one of configs/faces')
    settings = dict(settings, head=None)
    if with_flip is not None:
        settings['flip_fusion'] = with_flip
    # Building imports every room, and libraries print notices then: stdout is for results.
    with DefaultScope.overwrite_default_scope('vision'), redirect_stdout(sys.stderr):
        model = MODELS.build(settings)
    path = zoo.resolve(checkpoint)
    state = load_checkpoint(path)['state_dict']
    if is_published(state):
        state = {f'backbone.trunk.{name}': tensor
                 for name, tensor in renamed(state, str(path)).items()}
    load_state(model, {name: tensor for name, tensor in state.items()
                       if not name.startswith('head.')}, where=str(path))
    return model.eval().embedder().to(device).eval()
