"""Boxes, errors, files, seeds, timing and reports: what three rooms already needed."""
