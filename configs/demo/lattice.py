"""The lattice of make demo-train: propagation and refinement on a three-minute schedule.

Run: python tools/demo_train.py (about three minutes of its time on two cores)
"""

_base_ = ['../lattice/lattice_frcnn-tiny_t8-s2_moving-sprites.py']

max_iters = 260
model = dict(
    detector=dict(config='configs/demo/detector.py',
                  checkpoint='demo_train_out/detector/iter_560.pth'),
    refinement=dict(num_classes=0))  # three minutes do not teach it to tell classes apart
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=40, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters + 1)
train_dataloader = dict(dataset=dict(data_root='demo_train_out/moving_sprites/'))
test_dataloader = dict(dataset=dict(data_root='demo_train_out/moving_sprites/'))
default_hooks = dict(checkpoint=dict(interval=130))
