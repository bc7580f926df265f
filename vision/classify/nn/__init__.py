"""Torch modules of image classification."""
