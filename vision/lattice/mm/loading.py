"""A trained lattice from a config file and a checkpoint, as the tools use it."""

from __future__ import annotations

import argparse

from mmengine.registry import DefaultScope

from vision import zoo
from vision.common.core.errors import VisionError
from vision.common.mm.launch import read_config
from vision.common.nn.checkpoint import load_checkpoint, load_model, require_no_weights
from vision.common.nn.devices import find_device
from vision.lattice.mm.detector import LatticeDetector
from vision.registry import MODELS


def load_lattice(config: str, checkpoint: str | None = None, *, cfg_options: dict | None = None,
                 device: str = 'cpu') -> LatticeDetector:
    """The model in evaluation mode.

    Args:
        config: path of a config whose model is a ``LatticeDetector``.
        checkpoint: weights of propagation and refinement: .pth, .safetensors or zoo:NAME; None
            for a method without networks. The detector's own weights are those that the config
            names.
        cfg_options: dotted key -> value, as ``--cfg-options`` gives it.

    Raises:
        VisionError: VIS-CONFIG-514 another model, VIS-CONFIG-324 no weights for networks,
            VIS-ENV-515 no such device, and what reading config and weights raises.
    """
    device = find_device(device)
    content = read_config(argparse.Namespace(config=config, cfg_options=cfg_options, local_rank=0,
                                             launcher='none', work_dir=None))
    if content.get('model', {}).get('type') not in ('LatticeDetector', 'vision.LatticeDetector'):
        raise VisionError('VIS-CONFIG-514', f'{config} describes no LatticeDetector',
                          where='model.type', do='use one of configs/lattice/')
    # Whoever ran in this process before may have left another library's scope.
    with DefaultScope.overwrite_default_scope('vision'):
        model = MODELS.build(content.model)
    if checkpoint is None:
        require_no_weights(model)
    else:
        path = zoo.resolve(checkpoint)
        load_model(model, load_checkpoint(path), where=str(path))
    return model.to(device).eval()
