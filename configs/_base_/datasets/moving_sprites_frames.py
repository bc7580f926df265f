"""MovingSprites as still images: CocoVID files are COCO files, so mmdet's own data set reads them.

Make the data first: python datasets/moving_sprites/prepare.py (docs: datasets/moving_sprites).
Boxes reach the evaluation in original pixels; the image size stays 320 x 240.
"""

data_root = 'data/moving_sprites/'
metainfo = dict(
    classes=('disc', 'square', 'triangle', 'star', 'cross', 'ring', 'crescent', 'arrow'))
image_scale = (320, 240)  # (width, height), the size of the frames

train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='mmdet.LoadAnnotations', with_bbox=True),
    # Only some 130 tracks are in the training videos: what a sprite looks like must be stretched.
    dict(type='mmdet.PhotoMetricDistortion', brightness_delta=24, hue_delta=18),
    dict(type='RandomResize', scale=image_scale, ratio_range=(0.8, 1.3), keep_ratio=True),
    # A crop costs half a frame and holds more sprite per operation: on a CPU that is worth more
    # than context. Frames whose crop would be empty are drawn again by the data set.
    dict(type='mmdet.RandomCrop', crop_size=(192, 192), crop_type='absolute',
         allow_negative_crop=False),
    dict(type='mmdet.RandomFlip', prob=[0.25, 0.25, 0.25],
         direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='mmdet.PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='mmdet.Resize', scale=image_scale, keep_ratio=True),
    dict(type='mmdet.PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='mmdet.CocoDataset',
        data_root=data_root,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        metainfo=metainfo,
        filter_cfg=dict(filter_empty_gt=True, min_size=16),
        pipeline=train_pipeline,
        backend_args=None))
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmdet.CocoDataset',
        data_root=data_root,
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/'),
        metainfo=metainfo,
        test_mode=True,
        # Neighbours in a video look alike: one frame in twelve tells when to stop.
        indices=list(range(0, 1920, 12)),
        pipeline=test_pipeline,
        backend_args=None))
test_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmdet.CocoDataset',
        data_root=data_root,
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/'),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
        backend_args=None))
val_evaluator = dict(
    type='mmdet.CocoMetric',
    ann_file=data_root + 'annotations/val.json',
    metric='bbox',
    format_only=False,
    backend_args=None)
test_evaluator = val_evaluator
