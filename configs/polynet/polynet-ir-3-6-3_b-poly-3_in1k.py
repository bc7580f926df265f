"""Inception-ResNet 3-6-3 with poly-3 in stage B (ablation), on ImageNet-1k.

Not trained here; what of the recipe is known: ../_base_/schedules/polynet_rmsprop.py
"""

_base_ = ['../_base_/models/polynet.py', '../_base_/datasets/imagenet1k.py',
          '../_base_/schedules/polynet_rmsprop.py', '../_base_/runtime.py']
model = dict(backbone=dict(arch='ir-3-6-3_b-poly-3'))
