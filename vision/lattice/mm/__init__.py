"""What MMEngine's registries see of this room."""

from vision.lattice.mm import (
    datasets,
    detector,
    mmdet_adapter,
    samplers,
    training_data,
    transforms,
)

__all__ = [
    'datasets',
    'detector',
    'mmdet_adapter',
    'samplers',
    'training_data',
    'transforms',
]
