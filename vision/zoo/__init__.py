"""Model zoo: an index of weights, and downloads that are verified before use."""

from vision.zoo.index import Entry, find, load_index
from vision.zoo.store import Settings, fetch, resolve

__all__ = ['Entry', 'Settings', 'fetch', 'find', 'load_index', 'resolve']
