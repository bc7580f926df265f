"""Version of the distribution ``frugal-vision``."""

__version__ = '0.1.0'
