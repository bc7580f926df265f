"""What MMEngine's registries see of this room; importing it needs MMEngine and mmcv, not mmdet."""

from vision.lattice.mm import (
    datasets,
    detector_transforms,
    metrics,
    mmdet_adapter,
    samplers,
    transforms,
)

__all__ = [
    'datasets',
    'detector_transforms',
    'metrics',
    'mmdet_adapter',
    'samplers',
    'transforms',
]
