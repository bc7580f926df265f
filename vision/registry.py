"""Registries of scope ``vision``, children of MMEngine's roots.

``vision.X`` and ``mmdet.Y`` can stand in one config. Rooms are named by strings, so that nothing
below this file is imported before a registry is asked for a name, and large rooms only for names
of their own.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from mmengine import registry as root
from mmengine.registry import Registry

from vision.common.core.references import register_finder

# Only rooms that exist and register something: a missing one breaks every build.
ROOMS = ('common', 'polynet', 'classify', 'faces', 'memory')
# Rooms that import large libraries, torch's pipelines and mmdet (0.7 and 1.8 s, as python -X
# importtime says), with all names that they register: they are imported when one is asked for.
LARGE_ROOMS = {
    'pipeline': ('ZeroPPStrategy',),
    'lattice': ('CocoVideoDataset', 'DrawDetections', 'LatticeDetector', 'LatticeTrainingSample',
                'LoadVideoFrame', 'MMDetDetector', 'MixedVideoImageDataset', 'OnnxDetector',
                'PackVideoFrame', 'RandomObjectCrop', 'VIDMetric', 'VideoClipSampler',
                'VideoFrameSampler')}
_ROOM_OF = {name: room for room, names in LARGE_ROOMS.items() for name in names}


class RoomRegistry(Registry):
    """MMEngine's registry, but for when rooms are imported."""

    def get(self, key: str) -> Any:
        """As ``Registry.get``: what is registered under ``key``, or None."""
        self.import_room_of(key.rpartition('.')[2])
        return super().get(key)

    def import_room_of(self, name: str) -> None:
        """Import the rooms that may have registered ``name``."""
        self.import_from_location()
        if name in _ROOM_OF:
            importlib.import_module(f'vision.{_ROOM_OF[name]}.mm')


def import_rooms() -> None:
    """All of them; in a process that forks, so that its children need not."""
    for room in (*ROOMS, *LARGE_ROOMS):
        importlib.import_module(f'vision.{room}.mm')


def _child(name: str, parent: Registry) -> RoomRegistry:
    return RoomRegistry(name, parent=parent, scope='vision',
                        locations=[f'vision.{room}.mm' for room in ROOMS])


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
