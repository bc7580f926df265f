"""20,000 Han characters of any font: a lean residual trunk, trained as a recogniser, exported as a
classifier of one ONNX file (``vision.load('hanzi')``).

Run: python datasets/glyphs/prepare.py --out data/glyphs
     vision train configs/classify/lean-resnet_glyphs.py
     vision classify export configs/classify/lean-resnet_glyphs.py \
         work_dirs/lean-resnet_glyphs/iter_7000.pth hanzi.onnx --half-rows
Cost and result: vision/classify/README.md.
"""

_base_ = ['../_base_/runtime.py']
num_classes = 20_000
max_iters = 7_000
dim = 64
model = dict(
    type='FaceRecognizer',
    backbone=dict(type='LeanResNet', width=24, dim=dim),
    head=dict(type='ActiveClassHead', num_classes=num_classes, in_channels=dim,
              margin=dict(type='CosFace', scale=32, margin=0.2),
              # A random tenth, weighed: half a point below all of them (vision/faces/README.md).
              selector=dict(type='random', num_active=num_classes // 10), correction='sampled',
              # By AdamW the rows of all classes move together, until all cosines are one.
              store=dict(backend='sharded', optimizer=dict(type='sgd', momentum=0.9))),
    data_preprocessor=dict(type='mmengine.ImgDataPreprocessor', mean=[127.5], std=[127.5]))
fit, pack = dict(type='FitInk'), dict(type='PackFaceInputs')
glyphs = dict(type='GlyphDataset', data_root='data/glyphs')
_in_process = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=64, sampler=dict(type='DefaultSampler', shuffle=True), **_in_process,
    dataset=dict(split='train', **glyphs, pipeline=[
        fit, dict(type='GlyphWarp', degrees=4.0, scale=0.08, shear=0.08, shift=1.0),
        dict(type='RandomInk'), pack]))
val_dataloader = dict(
    batch_size=256, sampler=dict(type='DefaultSampler', shuffle=False), **_in_process,
    dataset=dict(split='val', every=16, **glyphs, pipeline=[fit, pack]))
test_dataloader = dict(
    batch_size=256, sampler=dict(type='DefaultSampler', shuffle=False), **_in_process,
    dataset=dict(split='known', **glyphs, pipeline=[fit, pack]))
val_evaluator = dict(type='IdentificationMetric', ranks=[1, 5], fpirs=[0.1])
test_evaluator = dict(type='IdentificationMetric', ranks=[1, 5])
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 2)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.01, fused=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=200),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=200, T_max=max_iters - 200,
         end=max_iters)]
custom_hooks = [dict(type='ActiveClassHook')]
default_hooks = dict(checkpoint=dict(interval=1000))
