"""Scale-Time Lattice over the small Faster R-CNN: a keyframe every 8 frames, 2 stages.

Train: python tools/train.py configs/lattice/lattice_frcnn-tiny_t8-s2_moving-sprites.py
Test:  python tools/test.py configs/lattice/lattice_frcnn-tiny_t8-s2_moving-sprites.py \
           work_dirs/lattice_frcnn-tiny_t8-s2_moving-sprites/iter_2000.pth
Training needs no detector pass; the detector's checkpoint, of configs/detectors/
faster-rcnn_r18-tiny_moving-sprites.py, is needed for testing only.
Cost and result: row t8-s2 of vision/lattice/README.md (device, minutes, commit).
"""

_base_ = ['../_base_/datasets/moving_sprites_lattice.py', '../_base_/runtime.py']

model = dict(
    type='LatticeDetector',
    detector=dict(
        type='MMDetDetector',
        config='configs/detectors/faster-rcnn_r18-tiny_moving-sprites.py',
        checkpoint='work_dirs/faster-rcnn_r18-tiny_moving-sprites/iter_2600.pth'),
    refinement=dict(num_classes=8),
    keyframes=dict(type='UniformKeyframes', gap_frames=8),
    num_stages=2,
    merge='agree')

max_iters = 2000
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-3, weight_decay=0.02),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=80),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=80, end=max_iters,
         T_max=max_iters - 80),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters + 1)
# Validation asks for the detector and the whole val split: run tools/test.py after training.
val_dataloader = val_evaluator = val_cfg = None
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=200, max_keep_ckpts=3))
log_processor = dict(by_epoch=False, window_size=20)
