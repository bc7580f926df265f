"""The small PolyNet preset from scratch on Imagenette, 128 px.

Run: python tools/train.py configs/polynet/polynet-small_imagenette160.py
Recipe: our choice, never run to its end: no figure is claimed.
"""

_base_ = ['../_base_/datasets/imagenette160.py', '../_base_/runtime.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(type='PolyNet', arch='small', padding_mode='same', residual_scale=0.3),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=2048, dropout=0.2,
              label_smoothing=0.1, topk=(1,)),
    data_preprocessor=_base_.data_preprocessor)

max_epochs = 60
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4),
    clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=max_epochs, end=max_epochs,
         convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
log_processor = dict(by_epoch=True)
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=5, save_best='accuracy/top1'))
