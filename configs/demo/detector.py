"""The detector of make demo-train: the small Faster R-CNN on a five-minute schedule.

Run: python tools/demo_train.py (about five minutes of its time on two cores)
The published figures come from configs/detectors/, which trains four times as long.
"""

_base_ = ['../detectors/faster-rcnn_r18-tiny_moving-sprites.py']

max_iters = 560
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=60, end=max_iters),
]
train_cfg = dict(max_iters=max_iters)
train_dataloader = dict(dataset=dict(data_root='demo_train_out/moving_sprites_short/'))
val_dataloader = val_evaluator = val_cfg = None
test_dataloader = dict(dataset=dict(data_root='demo_train_out/moving_sprites/'))
test_evaluator = dict(ann_file='demo_train_out/moving_sprites/annotations/val.json')
default_hooks = dict(checkpoint=dict(interval=140), logger=dict(interval=28))
