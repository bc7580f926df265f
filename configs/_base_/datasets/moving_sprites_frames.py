"""MovingSprites as still images: CocoVID files are COCO files, so mmdet's own data set reads them.

Make the data first: python datasets/moving_sprites/prepare.py (docs: datasets/moving_sprites).
Boxes reach the evaluation in original pixels; the image size stays 320 x 240.
"""

data_root = 'data/moving_sprites/'
# Many short videos: a detector needs many sprites, neighbouring frames teach it little.
train_root = 'data/moving_sprites_short/'
prepare = {  # folder -> the command that makes it; said where the folder is missing
    'data/moving_sprites': 'python datasets/moving_sprites/prepare.py',
    'data/moving_sprites_short': 'python datasets/moving_sprites/prepare.py '
    '--out data/moving_sprites_short --num-train 600 --num-val 1 --num-frames 8'}
metainfo = dict(
    classes=('disc', 'square', 'triangle', 'star', 'cross', 'ring', 'crescent', 'arrow'))
image_scale = (320, 240)  # (width, height), the size of the frames

train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='mmdet.LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=image_scale, ratio_range=(0.8, 1.3), keep_ratio=True,
         resize_type='mmdet.Resize'),
    # On a CPU a window around a sprite is worth more than the context of a whole frame.
    dict(type='vision.RandomObjectCrop', crop_size=(128, 128)),
    dict(type='mmdet.RandomFlip', prob=[0.25, 0.25, 0.25],
         direction=['horizontal', 'vertical', 'diagonal']),
    # The generator has 64 textures for training: their colours must be stretched.
    dict(type='mmdet.PhotoMetricDistortion', brightness_delta=24, hue_delta=18),
    dict(type='mmdet.PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='mmdet.Resize', scale=image_scale, keep_ratio=True),
    dict(type='mmdet.PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        _scope_='mmdet',
        type='mmdet.CocoDataset',
        data_root=train_root,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        metainfo=metainfo,
        filter_cfg=dict(filter_empty_gt=True, min_size=16),
        pipeline=train_pipeline,
        backend_args=None))
test_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        _scope_='mmdet',
        type='mmdet.CocoDataset',
        data_root=data_root,
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/'),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
        backend_args=None))
test_evaluator = dict(
    type='mmdet.CocoMetric',
    ann_file=data_root + 'annotations/val.json',
    metric='bbox',
    format_only=False,
    backend_args=None)

# Validation looks at every frame of the val videos: the metric counts whatever is not predicted.
val_dataloader = test_dataloader
val_evaluator = test_evaluator
