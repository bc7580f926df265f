"""What the registries see of the lattice room; importing it needs MMEngine alone."""

from vision.lattice.mm import mmdet_adapter  # noqa: F401
