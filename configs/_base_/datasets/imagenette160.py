"""Imagenette: ten classes of ImageNet in folders, shorter side 160 pixels.

Data: data/imagenette160/{train,val}/WNID/*.JPEG (fast.ai's imagenette2-160; a link is enough).
"""

data_root = 'data/imagenette160/'
prepare = {
    'data/imagenette160': 'unpack imagenette2-160 of github.com/fastai/imagenette and link it: '
    'ln -s PATH data/imagenette160'}
image_size = 128
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

train_pipeline = [
    dict(type='ReadImage'),
    dict(type='RandomResizedCrop', scale=image_size, crop_ratio_range=(0.35, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='ReadImage'),
    # 146 = int(128 / 0.875): the part of the image that the paper's test sees.
    dict(type='Resize', scale=(146, 146), keep_ratio=False),
    dict(type='CenterCrop', crop_size=(image_size, image_size)),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,  # BatchNorm on a left-over image would see one sample
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='ImageFolder', data_root=data_root, data_prefix='train',
                 pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='ImageFolder', data_root=data_root, data_prefix='val',
                 pipeline=test_pipeline, test_mode=True))
val_evaluator = dict(type='TopKAccuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
