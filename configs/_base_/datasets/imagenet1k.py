"""ImageNet-1k for PolyNet: 331 px, the paper's test pre-processing.

Data: data/imagenet/ as datasets/imagenet/README.md shows.
Test: the published port's: the whole image resized to 378x378 without keeping its aspect ratio
(331 / 0.875), centre crop of 331; keeping the ratio costs 0.14 points top-1 with its weights.
"""

data_root = 'data/imagenet/'
prepare = {
    'data/imagenet': 'unpack ImageNet-1k, then: python datasets/imagenet/prepare.py '
    '--root data/imagenet --devkit DEVKIT (datasets/imagenet/README.md)'}
image_size = 331

train_pipeline = [
    dict(type='ReadImage'),
    dict(type='RandomResizedCrop', scale=image_size),  # our choice: the paper's is not known
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='ReadImage'),
    dict(type='Resize', scale=(378, 378), keep_ratio=False),
    dict(type='CenterCrop', crop_size=(image_size, image_size)),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='ImageNet1k', data_root=data_root, split='train', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    # A val folder with one folder per class needs no list: ann_file=''.
    dataset=dict(type='ImageNet1k', data_root=data_root, split='val', ann_file='val.txt',
                 pipeline=test_pipeline, test_mode=True))
val_evaluator = dict(type='TopKAccuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
