"""YOLOX-nano, 80 COCO classes, 416 x 416: inference with the published weights.

Weights: vision convert yolox zoo:yolox-nano_coco yolox_nano.pth
Cost and result: 0.91 M parameters, 1.08 GFLOPs; published 25.8 mAP on COCO val2017 (README of
github.com/Megvii-BaseDetection/YOLOX), not measured by us.

The model is written out instead of inherited from mmdet's own config: that one lies in mmdet's
.mim folder, which an editable or partial installation does not have. ``_scope_`` makes mmdet's
inner names (CSPDarknet, IoULoss) resolve whatever the default scope of the process is. Input is
BGR 0-255 without normalisation, scaled to fit 416 x 416 at the top left, rest filled with 114.
"""

CLASSES = (
    'person', 'bicycle', 'car', 'motorcycle', 'airplane', 'bus', 'train', 'truck', 'boat',
    'traffic light', 'fire hydrant', 'stop sign', 'parking meter', 'bench', 'bird', 'cat', 'dog',
    'horse', 'sheep', 'cow', 'elephant', 'bear', 'zebra', 'giraffe', 'backpack', 'umbrella',
    'handbag', 'tie', 'suitcase', 'frisbee', 'skis', 'snowboard', 'sports ball', 'kite',
    'baseball bat', 'baseball glove', 'skateboard', 'surfboard', 'tennis racket', 'bottle',
    'wine glass', 'cup', 'fork', 'knife', 'spoon', 'bowl', 'banana', 'apple', 'sandwich', 'orange',
    'broccoli', 'carrot', 'hot dog', 'pizza', 'donut', 'cake', 'chair', 'couch', 'potted plant',
    'bed', 'dining table', 'toilet', 'tv', 'laptop', 'mouse', 'remote', 'keyboard', 'cell phone',
    'microwave', 'oven', 'toaster', 'sink', 'refrigerator', 'book', 'clock', 'vase', 'scissors',
    'teddy bear', 'hair drier', 'toothbrush')

default_scope = 'mmdet'
norm_cfg = dict(type='BN', momentum=0.03, eps=0.001)
act_cfg = dict(type='Swish')
model = dict(
    _scope_='mmdet',
    type='YOLOX',
    data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32, pad_value=114),
    backbone=dict(
        type='CSPDarknet', deepen_factor=0.33, widen_factor=0.25, out_indices=(2, 3, 4),
        use_depthwise=True, norm_cfg=norm_cfg, act_cfg=act_cfg),
    neck=dict(
        type='YOLOXPAFPN', in_channels=[64, 128, 256], out_channels=64, num_csp_blocks=1,
        use_depthwise=True, norm_cfg=norm_cfg, act_cfg=act_cfg),
    bbox_head=dict(
        type='YOLOXHead', num_classes=len(CLASSES), in_channels=64, feat_channels=64,
        use_depthwise=True, norm_cfg=norm_cfg, act_cfg=act_cfg),
    train_cfg=dict(assigner=dict(type='SimOTAAssigner', center_radius=2.5)),
    # 0.65 is the published threshold; 0.01 that of YOLOX's own validation.
    test_cfg=dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.65)))

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(416, 416), keep_ratio=True),
    dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0))),
    dict(type='PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        data_root='data/coco/',
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        metainfo=dict(classes=CLASSES),
        test_mode=True,
        pipeline=test_pipeline))
test_evaluator = dict(type='CocoMetric', ann_file='data/coco/annotations/instances_val2017.json',
                      metric='bbox')
test_cfg = dict(type='TestLoop')
