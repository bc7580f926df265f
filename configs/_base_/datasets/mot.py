"""MOT challenge, pedestrians: whole videos for training, testing frame by frame.

Make the files first: python datasets/mot/prepare.py (datasets/mot/README.md). Training uses the
first half of each training sequence, testing the second, because the test part has no boxes.
"""

data_root = 'data/MOT17/'
prepare = {
    'data/MOT17': 'python datasets/mot/prepare.py --source MOT17.zip --out data/MOT17'}
metainfo = dict(classes=('pedestrian',))
frame_pipeline = [dict(type='LoadVideoFrame'), dict(type='PackVideoFrame')]

# The pipeline of whole videos is the model's own: add it in the config that trains one.
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='VideoClipSampler', frames_per_clip=24),
    dataset=dict(
        type='CocoVideoDataset',
        data_root=data_root,
        ann_file='annotations/half-train_cocoformat.json',
        data_prefix=dict(img=''),
        metainfo=metainfo,
        on_bad_image='skip',
        pipeline=[]))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='VideoFrameSampler'),
    dataset=dict(
        type='CocoVideoDataset',
        data_root=data_root,
        ann_file='annotations/half-val_cocoformat.json',
        data_prefix=dict(img=''),
        metainfo=metainfo,
        test_mode=True,
        pipeline=frame_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='VIDMetric', protocol='ilsvrc', prefix='vid')
test_evaluator = val_evaluator
