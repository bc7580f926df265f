"""What MMEngine's registries see of this room."""

from vision.lattice.mm import (
    datasets,
    detector,
    detector_transforms,
    hooks,
    metrics,
    mmdet_adapter,
    samplers,
    training_data,
    transforms,
)

__all__ = [
    'datasets',
    'detector',
    'detector_transforms',
    'hooks',
    'metrics',
    'mmdet_adapter',
    'samplers',
    'training_data',
    'transforms',
]
