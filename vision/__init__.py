"""Frugal Vision: research code that spends computation only where it pays."""

from vision.version import __version__

__all__ = ['__version__']
