"""MobileFaceNet on a folder of aligned 112 px faces, one sub-folder for each identity.
Run: python tools/train.py configs/faces/mobilefacenet_ivf_folder.py --cfg-options \
         train_dataloader.dataset.data_root=data/faces model.head.num_classes=10000
Cost and result: depends on the folder; none is shipped. num_active: about four times the batch,
or one in a hundred classes, whichever is more.
"""

_base_ = ['../_base_/runtime.py']
max_iters = 40_000
model = dict(
    type='FaceRecognizer', flip_fusion=True,
    backbone=dict(type='MobileFaceNet', dim=128),
    head=dict(type='ActiveClassHead', num_classes=10_000, in_channels=128,
              margin=dict(type='ArcFace', scale=64, margin=0.5),
              selector=dict(type='ivf', num_active=1024,
                            upkeep=dict(interval=500, swap_lag=50)),
              store=dict(backend='sharded',
                         optimizer=dict(type='sgd', momentum=0.9, weight_decay=5e-4))),
    data_preprocessor=dict(type='mmengine.ImgDataPreprocessor', bgr_to_rgb=True,
                           mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]))
train_dataloader = dict(
    batch_size=256, num_workers=2, persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='FaceFolder', data_root='data/faces',
                 pipeline=[dict(type='RandomMirror'), dict(type='PackFaceInputs')]))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=1000),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=1000, T_max=max_iters - 1000,
         end=max_iters)]
custom_hooks = [dict(type='ActiveClassHook')]
