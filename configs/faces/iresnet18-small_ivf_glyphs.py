"""A small IR-ResNet on 20,000 characters: random classes at first, then 200 (1 %) by an IVF.
Run: python datasets/glyphs/prepare.py --out data/glyphs
     python tools/train.py configs/faces/iresnet18-small_ivf_glyphs.py
Cost: 8 to 12 minutes on one CPU core. Result: 98.73 % verification on held-out font families,
     mean of three seeds; the full softmax 98.83, Partial FC 98.70 (vision/faces/README.md).
"""

_base_ = ['../_base_/datasets/glyphs.py', '../_base_/runtime.py']
num_classes = 20_000
max_iters = 5_000
model = dict(
    type='FaceRecognizer',
    backbone=dict(type='IResNet', depth=18, dim=128, image_size=32, in_channels=1, width=0.25,
                  stem_stride=2),
    head=dict(type='ActiveClassHead', num_classes=num_classes, in_channels=128,
              # Our choice, in short runs of another seed: scales 8 to 32, margins 0 and 0.2.
              margin=dict(type='Softmax', scale=16),
              selector=dict(
                  type='ivf', num_active=num_classes // 100, nprobe=32, random_frac=0.6,
                  upkeep=dict(swap_lag=20),
                  # Random rows for half of the time, then always 1 %: a comparison has to know
                  # the numbers beforehand. adaptive=dict() would decide by what it measures.
                  adaptive=dict(monitor_every=500, warm_steps=max_iters // 2, least_recall=0.01,
                                least_gain=-1.0,  # steps alone decide
                                active_range=(num_classes // 100 - 1, num_classes // 100),
                                interval_range=(200, 201), nprobe_range=(16, 64))),
              correction='sampled',  # at this scale the mass is spread over very many classes
              lr_mult=10.0,  # rows learn by SGD
              store=dict(backend='sharded',
                         optimizer=dict(type='sgd', momentum=0.9, weight_decay=0.0))),
    data_preprocessor=dict(type='mmengine.ImgDataPreprocessor', mean=[127.5], std=[127.5]))
_in_process = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(batch_size=64, **_in_process)
val_dataloader = dict(dataset=dict(every=16), **_in_process)  # a quick look
test_dataloader = dict(dataset=dict(every=2), **_in_process)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 5)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='OptimWrapper',
    # Our choice: by SGD (0.01 to 0.1) the first 500 steps of the full softmax get half as far.
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.01, fused=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=200),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=200, T_max=max_iters - 200,
         end=max_iters)]
custom_hooks = [dict(type='ActiveClassHook')]
