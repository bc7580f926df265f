"""Frugal Vision: research code that spends computation only where it pays."""

import os

from vision.version import __version__

# onnxruntime sends what runs to its maker: a data base under ~/.cache/Microsoft, two threads and
# connections, from its import on. It reads this once, so it must stand before that import. Nothing
# here reports anything; who wants it sets the variable to 0.
os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')

__all__ = ['__version__']
