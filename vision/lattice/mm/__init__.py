"""What the registries see of the lattice room; importing it needs MMEngine alone."""

from vision.lattice.mm import detector_transforms, mmdet_adapter  # noqa: F401
