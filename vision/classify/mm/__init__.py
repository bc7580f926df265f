"""What MMEngine's registries see of this room."""

from vision.classify.mm import backbones, classifier, datasets, hooks, metrics, transforms

__all__ = ['backbones', 'classifier', 'datasets', 'hooks', 'metrics', 'transforms']
