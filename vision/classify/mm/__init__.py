"""What MMEngine's registries see of this room."""

from vision.classify.mm import classifier, datasets, metrics, transforms

__all__ = ['classifier', 'datasets', 'metrics', 'transforms']
