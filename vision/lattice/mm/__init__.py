"""What MMEngine's registries see of this room; importing it needs MMEngine and mmdet's base."""

from vision.lattice.mm import (
    datasets,
    mmdet_adapter,
    samplers,
    transforms,
)

__all__ = [
    'datasets',
    'mmdet_adapter',
    'samplers',
    'transforms',
]
