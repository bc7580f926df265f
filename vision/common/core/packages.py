"""Packages of an extra, imported where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType

from vision.common.core.errors import VisionError


def require_package(name: str, *, use: str, extra: str = '') -> ModuleType:
    """The module ``name``.

    Args:
        use: what it is needed for.
        extra: of this project that has it; '' for a package of no extra.

    Raises:
        VisionError: VIS-ENV-1796, it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition('.')[0]
        if (error.name or '').partition('.')[0] != package:
            raise
        wanted = f"'frugal-vision[{extra}]'" if extra else package
        raise VisionError('VIS-ENV-1796', f'{package} is not installed', why=f'it is for {use}',
                          do=f'pip install {wanted}') from error
