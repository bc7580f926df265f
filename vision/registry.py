"""Registries of scope ``vision``, children of MMEngine's roots.

``vision.X`` and ``mmdet.Y`` can stand in one config. Rooms are named by strings, so that nothing
below this file is imported before a registry is asked for a name.
"""

from pathlib import Path

from mmengine import registry as root
from mmengine.registry import Registry

from vision.common.core.references import register_finder

# Only rooms that exist and register something: a missing one breaks every build.
ROOMS = ('common', 'lattice', 'polynet', 'classify', 'faces', 'memory', 'pipeline')
_LOCATIONS = [f'vision.{room}.mm' for room in ROOMS]


def _child(name: str, parent: Registry) -> Registry:
    return Registry(name, parent=parent, scope='vision', locations=_LOCATIONS)


RUNNERS = _child('runner', root.RUNNERS)
STRATEGIES = _child('strategy', root.STRATEGIES)
LOOPS = _child('loop', root.LOOPS)
HOOKS = _child('hook', root.HOOKS)
DATASETS = _child('dataset', root.DATASETS)
DATA_SAMPLERS = _child('data sampler', root.DATA_SAMPLERS)
TRANSFORMS = _child('transform', root.TRANSFORMS)
MODELS = _child('model', root.MODELS)
METRICS = _child('metric', root.METRICS)
OPTIMIZERS = _child('optimizer', root.OPTIMIZERS)
OPTIM_WRAPPERS = _child('optim_wrapper', root.OPTIM_WRAPPERS)
OPTIM_WRAPPER_CONSTRUCTORS = _child('optimizer wrapper constructor',
                                    root.OPTIM_WRAPPER_CONSTRUCTORS)
TASK_UTILS = _child('task util', root.TASK_UTILS)
# Nothing of ours is in these; without them MMEngine warns at every run that it looks further.
PARAM_SCHEDULERS = _child('parameter scheduler', root.PARAM_SCHEDULERS)
WEIGHT_INITIALIZERS = _child('weight initializer', root.WEIGHT_INITIALIZERS)
VISUALIZERS = _child('visualizer', root.VISUALIZERS)
LOG_PROCESSORS = _child('log_processor', root.LOG_PROCESSORS)
VISBACKENDS = _child('vis_backend', root.VISBACKENDS)


def _of_zoo(reference: str) -> Path:
    from vision.zoo import resolve
    return resolve(reference)


register_finder('zoo:', _of_zoo)
