"""Packages that only some need: one error says which extra brings a missing one."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from vision.common.core.errors import VisionError


def import_extra(package: str, *, extra: str, needed_for: str) -> ModuleType:
    """The imported package.

    Args:
        package: its name in an import, e.g. ``pandas`` or ``safetensors.torch``.
        extra: the one of setup.cfg that holds it.
        needed_for: what the user asked for, e.g. ``to_pandas()``.

    Raises:
        VisionError: VIS-ENV-1713, it, or something that it imports, is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise VisionError('VIS-ENV-1713', f'{needed_for} needs the package {error.name}',
                          where=sys.executable, why='it is not installed',
                          do=f'pip install "frugal-vision[{extra}]"') from error
