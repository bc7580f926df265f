"""What MMEngine's registries see of this room."""

from vision.classify.mm import backbones, classifier, datasets, metrics, transforms

__all__ = ['backbones', 'classifier', 'datasets', 'metrics', 'transforms']
