"""The small PolyNet on Imagenette, cut over two pipeline ranks.

Run: bash tools/dist_train.sh configs/pipeline/polynet-small_pp2_imagenette160.py 2
As ../polynet/polynet-small_imagenette160.py, whose batch of 32 goes through as 4 micro-batches of
8. BatchNorm normalises each micro-batch by itself, as gradient accumulation does.
"""

_base_ = ['../polynet/polynet-small_imagenette160.py']

runner_type = 'ExactFlexibleRunner'
strategy = dict(type='ZeroPPStrategy', pp=2, dp=1, unit='auto', num_microbatches=4)
