"""MovingSprites as videos: spans of frames for training, frames in order for testing.

Make the data first (docs: datasets/moving_sprites):
    python datasets/moving_sprites/prepare.py
    python datasets/moving_sprites/prepare.py --out data/moving_sprites_clips --num-train 300 \
        --num-val 1 --num-frames 24
The second is what is trained on: short clips, since refinement needs many different sprites.
Boxes stay in original pixels everywhere; the frames are not scaled.
"""

data_root = 'data/moving_sprites/'
train_root = 'data/moving_sprites_clips/'
prepare = {  # folder -> the command that makes it; said where the folder is missing
    'data/moving_sprites': 'python datasets/moving_sprites/prepare.py',
    'data/moving_sprites_clips': 'python datasets/moving_sprites/prepare.py '
    '--out data/moving_sprites_clips --num-train 300 --num-val 1 --num-frames 24'}
metainfo = dict(
    classes=('disc', 'square', 'triangle', 'star', 'cross', 'ring', 'crescent', 'arrow'))

train_dataloader = dict(
    batch_size=4,  # videos; each gives two directions of 8 boxes and 8 boxes of F_S's own
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='CocoVideoDataset',
        data_root=train_root,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        metainfo=metainfo,
        # Spans without an object at both ends give nothing; another video is drawn.
        max_refetch=100,
        pipeline=[dict(type='LatticeTrainingSample', max_gap=8)]))
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='VideoFrameSampler'),
    dataset=dict(
        type='CocoVideoDataset',
        data_root=data_root,
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/'),
        metainfo=metainfo,
        test_mode=True,
        pipeline=[dict(type='LoadVideoFrame'), dict(type='PackVideoFrame')]))
test_dataloader = val_dataloader
val_evaluator = dict(type='VIDMetric', protocol='ilsvrc')
test_evaluator = val_evaluator
