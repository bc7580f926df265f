"""PolyNet for MMEngine's registries."""

from vision.polynet.mm.backbone import PolyNet
from vision.polynet.mm.hooks import PathDropHook
from vision.polynet.mm.layer_decay import LearningRateDecayOptimWrapperConstructor

__all__ = ['LearningRateDecayOptimWrapperConstructor', 'PathDropHook', 'PolyNet']
