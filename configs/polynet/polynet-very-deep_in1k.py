"""Very Deep PolyNet (10-20-10, mixed), on ImageNet-1k: the published network.

Weights: `vision convert polynet`. Not trained here; recipe: ../_base_/schedules.
Published error in percent, one crop: 18.71 top-1, 4.25 top-5 (authors' repository).
"""

_base_ = ['../_base_/models/polynet.py', '../_base_/datasets/imagenet1k.py',
          '../_base_/schedules/polynet_rmsprop.py', '../_base_/runtime.py']
model = dict(backbone=dict(arch='very-deep', path_scales='released', residual_scale=1.0))
