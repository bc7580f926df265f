"""Torch modules and functions, without mmengine, mmcv or mmdet."""
