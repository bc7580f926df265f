"""Faces found, embedded and recognised with onnxruntime and OpenCV; no torch."""
