"""Faster R-CNN on Very Deep PolyNet whose activations and gradients stay within 12 GB.

Run: python tools/train.py configs/detectors/faster-rcnn_polynet-very-deep_fpn_memory-12gb_coco.py
Instead of recomputing by hand (with_cp of the config below it); the weights are the same, bit for
bit, as without a budget. Parameters and optimizer lie beside the 12 GB.
Cost: not yet measured on a GPU; on a CPU: vision/memory/README.md.
"""

_base_ = ['faster-rcnn_polynet-very-deep_fpn_coco.py']
model = dict(backbone=dict(with_cp=False))
activation_memory = dict(budget='12GB')
