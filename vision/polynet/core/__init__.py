"""Architectures as lists of module names: presets, path scales, insertion."""
