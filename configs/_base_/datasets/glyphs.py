"""Han characters as 20,000 classes: python datasets/glyphs/prepare.py --out data/glyphs
Training on 9 families; validation on 3 held-out ones, 2,000 unseen characters among them.
"""

glyphs = dict(type='GlyphDataset', data_root='data/glyphs')
prepare = {'data/glyphs': 'python datasets/glyphs/prepare.py --out data/glyphs'}
train_dataloader = dict(
    batch_size=256, num_workers=2, persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(split='train', pipeline=[dict(type='GlyphWarp'), dict(type='PackFaceInputs')],
                 **glyphs))
val_dataloader = dict(
    batch_size=256, num_workers=2, persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(split='val', **glyphs))
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='VerificationMetric', fars=[1e-3], num_pairs=30_000),
    dict(type='IdentificationMetric', ranks=[1, 5], fpirs=[0.01, 0.1])]
test_evaluator = val_evaluator
