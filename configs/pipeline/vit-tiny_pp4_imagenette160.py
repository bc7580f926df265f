"""ViT-Ti/16 on Imagenette, cut over four pipeline ranks: ../classify/vit-tiny_imagenette160.py.

Run: bash tools/dist_train.sh configs/pipeline/vit-tiny_pp4_imagenette160.py 4
A step's batch of 64 goes through as 8 micro-batches of 8; with dp=2 and eight processes each of
the two groups takes its own 64.
"""

_base_ = ['../classify/vit-tiny_imagenette160.py']

runner_type = 'ExactFlexibleRunner'
strategy = dict(type='ZeroPPStrategy', pp=4, dp=1, unit='auto', num_microbatches=8)
