"""Scale-Time Lattice over Faster R-CNN on the small PolyNet: a keyframe every 8 frames, 2 stages.

Run: python tools/test.py configs/lattice/lattice_frcnn-polynet-small_t8-s2_moving-sprites.py \
         zoo:lattice-pru_moving-sprites
The propagation and refinement weights see boxes and images, never the detector's features, so
those trained beside another detector on MovingSprites serve here. Train the detector first:
configs/detectors/faster-rcnn_polynet-small_fpn_moving-sprites.py. Result: not measured yet.
"""

_base_ = ['../_base_/datasets/moving_sprites_lattice.py', '../_base_/runtime.py']

model = dict(
    type='LatticeDetector',
    detector=dict(
        type='MMDetDetector',
        config='configs/detectors/faster-rcnn_polynet-small_fpn_moving-sprites.py',
        checkpoint='work_dirs/faster-rcnn_polynet-small_fpn_moving-sprites/iter_2600.pth'),
    keyframes=dict(type='UniformKeyframes', gap_frames=8),
    num_stages=2,
    merge='agree')
train_dataloader = None
val_dataloader = val_evaluator = val_cfg = None
test_cfg = dict(type='TestLoop')
