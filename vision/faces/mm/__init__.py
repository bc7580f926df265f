"""What MMEngine's registries see of this room."""

from vision.faces.mm.backbones import EmbeddingNeck, IResNet, MobileFaceNet
from vision.faces.mm.datasets import (
    FaceBin,
    FaceFolder,
    FaceList,
    FacePairs,
    FaceRecord,
    GlyphDataset,
    GlyphWarp,
    PackFaceInputs,
    RandomMirror,
    ResizeSquare,
)
from vision.faces.mm.head import ActiveClassHead
from vision.faces.mm.hooks import ActiveClassHook
from vision.faces.mm.metrics import IdentificationMetric, VerificationMetric
from vision.faces.mm.recognizer import FaceRecognizer

__all__ = ['ActiveClassHead', 'ActiveClassHook', 'EmbeddingNeck', 'FaceBin', 'FaceFolder',
           'FaceList', 'FacePairs', 'FaceRecognizer', 'FaceRecord', 'GlyphDataset', 'GlyphWarp',
           'IResNet', 'IdentificationMetric', 'MobileFaceNet', 'PackFaceInputs', 'RandomMirror',
           'ResizeSquare', 'VerificationMetric']
