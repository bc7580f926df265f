"""What MMEngine's registries see of this room."""

from vision.lattice.mm import (
    datasets,
    samplers,
    transforms,
)

__all__ = [
    'datasets',
    'samplers',
    'transforms',
]
