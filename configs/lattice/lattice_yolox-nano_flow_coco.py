"""Boxes carried by sparse flow over YOLOX-nano (80 COCO classes) in onnxruntime; nothing to train.

A data set joins it in a config of its own, which names this one as _base_ and adds
test_dataloader and test_evaluator (see ../_base_/datasets/moving_sprites_lattice.py):
    python tools/test.py CONFIG
"""

_base_ = ['../_base_/runtime.py']

model = dict(
    type='LatticeDetector',
    method='flow',
    detector=dict(type='OnnxDetector', path='zoo:yolox-nano_coco'),
    keyframes=dict(type='UniformKeyframes', gap_frames=8))
test_cfg = dict(type='TestLoop')
