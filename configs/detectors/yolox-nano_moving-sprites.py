"""YOLOX-nano for 320 x 240 MovingSprites, trained from scratch; exported, it runs in onnxruntime.

Run:    python tools/train.py configs/detectors/yolox-nano_moving-sprites.py
Cost: 3,000 iterations took 30 minutes with one thread on a shared two-core machine. Result: in no
file yet.
Export: vision convert yolox-onnx \
            configs/detectors/yolox-nano_moving-sprites.py CHECKPOINT sprites.onnx --size 320
"""

_base_ = ['../_base_/runtime.py', '../_base_/datasets/moving_sprites_frames.py']

num_classes = 8
norm_cfg = dict(type='BN', momentum=0.03, eps=0.001)
act_cfg = dict(type='Swish')
model = dict(
    _scope_='mmdet',
    type='mmdet.YOLOX',
    data_preprocessor=dict(type='mmdet.DetDataPreprocessor', pad_size_divisor=32, pad_value=114),
    backbone=dict(
        type='CSPDarknet', deepen_factor=0.33, widen_factor=0.25, out_indices=(2, 3, 4),
        use_depthwise=True, norm_cfg=norm_cfg, act_cfg=act_cfg),
    neck=dict(
        type='YOLOXPAFPN', in_channels=[64, 128, 256], out_channels=64, num_csp_blocks=1,
        use_depthwise=True, norm_cfg=norm_cfg, act_cfg=act_cfg),
    bbox_head=dict(
        type='YOLOXHead', num_classes=num_classes, in_channels=64, feat_channels=64,
        use_depthwise=True, norm_cfg=norm_cfg, act_cfg=act_cfg),
    train_cfg=dict(assigner=dict(type='SimOTAAssigner', center_radius=2.5)),
    test_cfg=dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.65)))

max_iters = 3000
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=10.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=100, end=max_iters),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters + 1)
val_dataloader = val_evaluator = val_cfg = None
test_cfg = dict(type='TestLoop')
default_hooks = dict(checkpoint=dict(interval=500, max_keep_ckpts=2))
