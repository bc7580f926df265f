"""What MMEngine's registries see of this room."""

from vision.memory.mm.hooks import ActivationMemoryHook

__all__ = ['ActivationMemoryHook']
