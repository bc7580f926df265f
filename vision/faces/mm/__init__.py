"""What MMEngine's registries see of this room."""

from vision.faces.mm.backbones import EmbeddingNeck, IResNet, MobileFaceNet
from vision.faces.mm.head import ActiveClassHead
from vision.faces.mm.hooks import ActiveClassHook
from vision.faces.mm.recognizer import FaceRecognizer

__all__ = ['ActiveClassHead', 'ActiveClassHook', 'EmbeddingNeck', 'FaceRecognizer', 'IResNet',
           'MobileFaceNet']
