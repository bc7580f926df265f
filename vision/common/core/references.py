"""References to files that only a room above can find, such as ``zoo:NAME``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

Finder = Callable[[str], Path]
_FINDERS: dict[str, Finder] = {}


def register_finder(prefix: str, finder: Finder) -> None:
    """Let ``finder`` find what begins with ``prefix``; it gets the whole reference."""
    _FINDERS[prefix] = finder


def find_file(reference: str | os.PathLike) -> Path:
    """Path of a file; one of a registered prefix may be fetched first."""
    text = os.fspath(reference)
    for prefix, finder in _FINDERS.items():
        if text.startswith(prefix):
            return finder(text)
    return Path(text).expanduser()
