"""A checkpoint without what only training needs, named by its content."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

from vision.common.core.files import sha256_of
from vision.common.nn.checkpoint import class_names, load_checkpoint, save_weights

SUFFIXES = ('.safetensors', '.pth')
NUM_DIGITS = 8  # of the sha256, as in OpenMMLab's names


def publish(source: Path, target: Path) -> Path:
    """Write the tensors of ``source`` with their class names and config as ``NAME-SHA256.EXT``
    beside ``target``, which gives NAME and EXT (.safetensors or .pth); that path.

    Optimizer, schedules, logs, random state and the averaged copy of an EMA are left out. The
    same content gives the same name.

    Raises:
        VisionError: what reading the checkpoint raises.
    """
    source, target = Path(source), Path(target)
    assert target.suffix in SUFFIXES, target
    content = load_checkpoint(source)
    classes, meta = class_names(content), content.get('meta')
    config = meta.get('cfg') if isinstance(meta, dict) else None
    config = config if isinstance(config, str) else None
    # Copies: two names of one tensor are two tensors in a file.
    state = {name.removeprefix('module.'): value.clone() for name, value
             in content['state_dict'].items() if isinstance(value, torch.Tensor)}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix='.publishing-') as folder:
        path = Path(folder) / target.name
        if target.suffix == '.safetensors':
            save_weights(state, path, classes=classes, config=config)
        else:
            kept = {key: value for key, value in (
                ('cfg', config), ('dataset_meta', classes and dict(classes=classes))) if value}
            torch.save(dict(meta=kept, state_dict=state), path)
        named = target.with_name(
            f'{target.stem}-{sha256_of(path)[:NUM_DIGITS]}{target.suffix}')
        os.replace(path, named)
    return named
