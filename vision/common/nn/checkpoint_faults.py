"""What is wrong with a checkpoint, be it a file or a folder that several ranks wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

from vision.common.core.errors import VisionError


def damaged(path: Path | None, why: str) -> VisionError:
    """VIS-CKPT-303: it is not what was written; ``path`` None where it is not known."""
    return VisionError('VIS-CKPT-303', f'checkpoint {path.name if path else ""} is damaged',
                       where=str(path or ''), why=why, do='use an earlier checkpoint (--resume '
                       'without a path finds the newest whole one), or fetch the file again')


def disk_full(path: Path, why: str, needed_bytes: int | None = None) -> VisionError:
    """VIS-CKPT-301: no room to write it."""
    space = f'{shutil.disk_usage(path.parent).free} bytes free'
    if needed_bytes is not None:
        space += f', about {needed_bytes} needed'
    return VisionError('VIS-CKPT-301', f'{path.name} could not be written: the disk is full',
                       where=f'{path.parent} ({space})', why=why,
                       do='make room; checkpoints written before are untouched')
