"""What a config's model is for, by the class that its ``type`` names."""

from __future__ import annotations

from mmengine.config import Config

from vision.common.core.config_files import TASKS
from vision.common.core.errors import VisionError
from vision.common.mm.launch import find_classes


def task_of(config: Config) -> str:
    """'video' (a lattice), 'detect' (a detector of MMDetection), 'classify' or 'faces'.

    Raises:
        VisionError: VIS-CONFIG-1793, none of these.
    """
    kind = (config.get('model') or {}).get('type')
    classes = find_classes(kind, config.get('default_scope')) if kind else []
    for one in classes:
        for base in one.__mro__ if isinstance(one, type) else ():
            if base.__name__ in TASKS and base.__module__.startswith('vision.'):
                return TASKS[base.__name__]
            if base.__name__ == 'BaseDetector':
                return 'detect'
    raise VisionError('VIS-CONFIG-1793', f'the model of {config.filename} is {kind}: what for?',
                      where='model.type', why='known are the detectors of MMDetection, '
                      f'{", ".join(TASKS)}, and classes derived from them',
                      do='give the config of such a model')
