"""Registered classes of the faces room."""

from vision.faces.mm.backbones import EmbeddingNeck, IResNet, MobileFaceNet

__all__ = ['EmbeddingNeck', 'IResNet', 'MobileFaceNet']
