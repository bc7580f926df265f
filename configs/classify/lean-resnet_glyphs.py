"""20,000 Han characters: a lean residual trunk, cosines to a row each, all of them in the softmax.

Run: python datasets/glyphs/prepare.py --out data/glyphs
     vision train configs/classify/lean-resnet_glyphs.py
     vision test configs/classify/lean-resnet_glyphs.py \
         work_dirs/lean-resnet_glyphs/iter_9000.pth
     vision classify export configs/classify/lean-resnet_glyphs.py \
         work_dirs/lean-resnet_glyphs/iter_9000.pth hanzi.onnx
"""

_base_ = ['../_base_/runtime.py']
num_classes = 20_000
max_iters = 9_000
dim = 64
model = dict(
    type='ImageClassifier',
    backbone=dict(type='LeanResNet', width=24, dim=dim),
    head=dict(type='CosineClsHead', num_classes=num_classes, in_channels=dim, scale=32.0,
              margin=0.2),
    data_preprocessor=dict(mean=[127.5], std=[127.5]))
data_root = 'data/glyphs'
fit, pack = dict(type='FitInk'), dict(type='PackFaceInputs')
_in_process = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=64, sampler=dict(type='DefaultSampler', shuffle=True), **_in_process,
    dataset=dict(type='GlyphDataset', split='train', data_root=data_root, pipeline=[
        fit, dict(type='GlyphWarp', degrees=6, shift=1.5), dict(type='RandomInk'), pack]))
val_dataloader = dict(
    batch_size=256, sampler=dict(type='DefaultSampler', shuffle=False), **_in_process,
    dataset=dict(type='GlyphDataset', split='known', data_root=data_root, every=16,
                 pipeline=[fit, pack]))
test_dataloader = dict(
    batch_size=256, sampler=dict(type='DefaultSampler', shuffle=False), **_in_process,
    dataset=dict(type='GlyphDataset', split='known', data_root=data_root, pipeline=[fit, pack]))
val_evaluator = dict(type='TopKAccuracy', topk=(1, 5))
test_evaluator = val_evaluator
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 4)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.01, fused=True),
    paramwise_cfg=dict(custom_keys={'head.rows': dict(lr_mult=0.05, decay_mult=0.0)}))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=200),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=200, T_max=max_iters - 200,
         end=max_iters)]
default_hooks = dict(checkpoint=dict(interval=2000))
