"""Scale-Time Lattice over YOLOX-nano (80 COCO classes) for real video; no training needed.

First: vision convert yolox zoo:yolox-nano_coco work_dirs/yolox_nano.pth
Run: vision video VIDEO --config configs/lattice/lattice_yolox-nano_t8-s2_coco.py \
         --checkpoint zoo:lattice-pru_moving-sprites
The propagation and refinement weights were trained on MovingSprites alone. The detector's are made
once by `vision convert yolox` (see configs/detectors/yolox-nano_coco.py).
"""

_base_ = ['../_base_/runtime.py']

model = dict(
    type='LatticeDetector',
    detector=dict(
        type='MMDetDetector',
        config='configs/detectors/yolox-nano_coco.py',
        checkpoint='work_dirs/yolox_nano.pth'),
    keyframes=dict(type='UniformKeyframes', gap_frames=8),
    num_stages=2,
    merge='agree',
    # Chosen on DAVIS train: the many weak boxes of this detector cost time and gain nothing.
    min_score=0.2)
test_cfg = dict(type='TestLoop')
