"""PolyNet's schedule, as far as it is known. No figure here was read in the paper itself.

Second-hand summaries agree on: RMSProp, learning rate 0.45, then 0.045, then 0.0045, batches of
512 on 32 GPUs; stochastic paths only late, once over-fitting shows, at most 0.25.
Remembered by somebody and confirmed by nobody: decay 0.9, epsilon 1.0, a step every 160,000
iterations, 560,000 in all. Not known, so our choice: momentum, weight decay, augmentation, and
whether epsilon stands inside the root (TensorFlow) or outside (torch); with 1.0 that matters.

Batch size: 512 is batch_size x GPUs (16 x 32 in imagenet1k.py). For another total start with
tools/train.py --auto-scale-lr: learning rate x (batch / 512), the linear rule.
"""

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='RMSpropTF', lr=0.45, alpha=0.9, eps=1.0, momentum=0.9,
                   weight_decay=4e-5),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
max_iters = 560_000
param_scheduler = [
    # Our addition: without a warm-up the first steps of 0.45 are too long for deep presets.
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=2500),
    dict(type='MultiStepLR', by_epoch=False, milestones=[160_000, 320_000], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=512)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=10_000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
