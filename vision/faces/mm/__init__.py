"""What MMEngine's registries see of this room."""

from vision.faces.mm.backbones import EmbeddingNeck, IResNet, MobileFaceNet
from vision.faces.mm.recognizer import FaceRecognizer

__all__ = ['EmbeddingNeck', 'FaceRecognizer', 'IResNet', 'MobileFaceNet']
