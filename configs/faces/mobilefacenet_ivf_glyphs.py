"""MobileFaceNet on 20,000 characters, softmax over 1,024 active classes found by an IVF index.
Run: python tools/train.py configs/faces/mobilefacenet_ivf_glyphs.py
Cost and result: not trained to the end yet. Full softmax or Partial FC for comparison:
     --cfg-options model.head.selector.type=full (or random)
"""

_base_ = ['../_base_/datasets/glyphs.py', '../_base_/runtime.py']
num_classes = 20_000
max_iters = 20_000
model = dict(
    type='FaceRecognizer',
    backbone=dict(type='MobileFaceNet', dim=128, image_size=32, in_channels=1, stem_stride=1),
    head=dict(type='ActiveClassHead', num_classes=num_classes, in_channels=128,
              margin=dict(type='CosFace', scale=32, margin=0.2),
              selector=dict(type='ivf', num_active=1024,
                            upkeep=dict(interval=200, swap_lag=20)),
              store=dict(backend='sharded',
                         optimizer=dict(type='sgd', momentum=0.9, weight_decay=0.0))),
    data_preprocessor=dict(type='mmengine.ImgDataPreprocessor', mean=[127.5], std=[127.5]))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=500),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=500, T_max=max_iters - 500,
         end=max_iters)]
custom_hooks = [dict(type='ExactnessHook'), dict(type='NonFiniteHook'), dict(type='SignalHook'),
                dict(type='ActiveClassHook')]
