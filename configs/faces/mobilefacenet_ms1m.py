"""Public MobileFaceNet weights as an embedder: nothing to train, 128 numbers per 112 px face.
Run: vision faces verify mobilefacenet --pairs PAIRS --images DIR
Cost and result: 0.989 by ten folds on 3,000 pairs of LFW (vision/faces/README.md), minutes on a
CPU. The weights were trained on MS-Celeb-1M, which its owner withdrew: research only.
"""

_base_ = ['../_base_/runtime.py']
model = dict(
    type='FaceRecognizer', flip_fusion=True,
    backbone=dict(type='MobileFaceNet', dim=128, variant='relu6'),
    data_preprocessor=dict(type='mmengine.ImgDataPreprocessor', bgr_to_rgb=True,
                           mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]))
