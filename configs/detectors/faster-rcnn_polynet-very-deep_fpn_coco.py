"""Faster R-CNN on Very Deep PolyNet, published weights; COCO 2017, 90,000 steps of 16 images.

Run: python tools/train.py configs/detectors/faster-rcnn_polynet-very-deep_fpn_coco.py
The weights are fetched by hand once: docs/zoo.md. Cost and result: not trained yet; 93 M
parameters in the backbone, activations recomputed (with_cp).
"""

_base_ = ['../_base_/models/faster-rcnn_polynet_fpn.py', '../_base_/runtime.py',
          '../_base_/datasets/coco.py']
model = dict(
    backbone=dict(
        arch='very-deep',
        path_scales='released',
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='zoo:polynet-very-deep_in1k')))

max_iters = 90000
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(max_norm=35.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=False, milestones=[60000, 80000], gamma=0.1),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=10000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(checkpoint=dict(interval=5000))
