"""PolyNet as a classifier for ImageNet-1k; a config names the preset with backbone.arch."""

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='PolyNet',
        # Factor of every Inception term: 0.3, from a second-hand summary of the paper. The
        # published weights want 1 and path_scales='released' instead (polynet-very-deep_in1k.py).
        residual_scale=0.3),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=2048,
        dropout=0.2,  # of the published port
        label_smoothing=0.1),  # our choice: the paper's is not known
    # RGB, as the published port's weights want it.
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
                           to_rgb=True))
