"""Model zoo: an index of weights, and downloads that are verified before use."""

from vision.zoo.index import Entry, ModelEntry, find, find_model, load_index, load_models
from vision.zoo.store import Settings, fetch, resolve

__all__ = ['Entry', 'ModelEntry', 'Settings', 'fetch', 'find', 'find_model', 'load_index',
           'load_models', 'resolve']
