"""PolyNet for MMEngine's registries."""

from vision.polynet.mm.backbone import PolyNet

__all__ = ['PolyNet']
