"""ImageNet VID: training as still images (15 frames a video + DET), testing frame by frame.

Make the files first: python datasets/imagenet_vid/prepare.py (datasets/imagenet_vid/README.md).
Boxes and frames reach the lattice in original pixels; a still-image detector's own test pipeline
(mmdet.Resize, mmdet.PackDetInputs) may stand in its place.
"""

data_root = 'data/ILSVRC/'
prepare = {
    'data/ILSVRC': 'unpack ImageNet VID (and DET) there, then: '
    'python datasets/imagenet_vid/prepare.py --root data/ILSVRC (datasets/imagenet_vid/README.md)'}
still_pipeline = [
    dict(type='LoadVideoFrame'),
    dict(type='mmdet.LoadAnnotations', with_bbox=True),
    dict(type='mmdet.Resize', scale=(1000, 600), keep_ratio=True),
    dict(type='mmdet.RandomFlip', prob=0.5),
    dict(type='mmdet.PackDetInputs'),
]
frame_pipeline = [dict(type='LoadVideoFrame'), dict(type='PackVideoFrame')]
classes = (
    'airplane', 'antelope', 'bear', 'bicycle', 'bird', 'bus', 'car', 'cattle', 'dog',
    'domestic_cat', 'elephant', 'fox', 'giant_panda', 'hamster', 'horse', 'lion', 'lizard',
    'monkey', 'motorcycle', 'rabbit', 'red_panda', 'sheep', 'snake', 'squirrel', 'tiger', 'train',
    'turtle', 'watercraft', 'whale', 'zebra')

train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='mmdet.AspectRatioBatchSampler'),
    dataset=dict(
        type='MixedVideoImageDataset',
        frames='train',
        on_bad_image='skip',
        pipeline=still_pipeline,
        videos=[dict(
            type='CocoVideoDataset',
            data_root=data_root,
            ann_file='annotations/imagenet_vid_train.json',
            data_prefix=dict(img='Data/VID/'))],
        images=[dict(
            type='mmdet.CocoDataset',
            data_root=data_root,
            ann_file='annotations/imagenet_det_30plus1cls.json',
            data_prefix=dict(img='Data/DET/'),
            metainfo=dict(classes=classes),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=[])]))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='VideoFrameSampler'),
    dataset=dict(
        type='CocoVideoDataset',
        data_root=data_root,
        ann_file='annotations/imagenet_vid_val.json',
        data_prefix=dict(img='Data/VID/'),
        test_mode=True,
        pipeline=frame_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='VIDMetric', protocol='ilsvrc', prefix='vid')
test_evaluator = val_evaluator
