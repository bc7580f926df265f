"""RetinaNet on the small PolyNet (3-6-3, poly-3 and 2-way) for MovingSprites, from scratch.

Run: python tools/train.py configs/detectors/retinanet_polynet-small_fpn_moving-sprites.py
Cost and result: not trained yet. 33 M parameters in the backbone; meant for one small GPU.
"""

_base_ = ['../_base_/models/retinanet_polynet_fpn.py', '../_base_/runtime.py',
          '../_base_/datasets/moving_sprites_frames.py']
num_classes = 8
model = dict(
    # From random weights the sum of so many terms grows large for a pyramid without norms.
    backbone=dict(residual_scale=0.3),
    neck=dict(out_channels=128, num_outs=4, norm_cfg=dict(type='BN', requires_grad=True)),
    bbox_head=dict(
        num_classes=num_classes,
        in_channels=128,
        stacked_convs=2,
        feat_channels=128,
        # Sprites measure 20 to 160 pixels.
        anchor_generator=dict(octave_base_scale=3, ratios=[0.6, 1.0, 1.67],
                              strides=[8, 16, 32, 64])),
    test_cfg=dict(nms_pre=300, score_thr=0.01, max_per_img=50))

max_iters = 2600
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=10.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=100, end=max_iters),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
