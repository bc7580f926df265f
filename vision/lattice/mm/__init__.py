"""What MMEngine's registries see of this room."""

from vision.common.mm.quiet import quieten

quieten()  # before mmdet is first imported

from vision.lattice.mm import (  # noqa: E402
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
