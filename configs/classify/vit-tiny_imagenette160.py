"""ViT-Ti/16 from scratch on Imagenette, 128 px: 64 patches and a class token.

Run: python tools/train.py configs/classify/vit-tiny_imagenette160.py
Recipe: our choice, never run to its end: no figure is claimed.
"""

_base_ = ['../_base_/datasets/imagenette160.py', '../_base_/runtime.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(type='VisionTransformer', arch='tiny', img_size=_base_.image_size,
                  drop_path_rate=0.1),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=192, label_smoothing=0.1,
              topk=(1,)),
    data_preprocessor=_base_.data_preprocessor)

max_epochs = 100
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(
    type='OptimWrapper',
    # DeiT's 5e-4 for batches of 512 would be 6e-5 here: too slow for ten thousand images.
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=500),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=max_epochs, end=max_epochs,
         convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
log_processor = dict(by_epoch=True)
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=5, save_best='accuracy/top1'))
