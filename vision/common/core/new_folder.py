"""A folder that appears complete or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vision.common.core.errors import VisionError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Fill the folder that is given; it is renamed to ``out`` when the block ends without error.

    It lies beside ``out`` (one file system, so that renaming is atomic) and is removed on error.

    Raises:
        VisionError: ``out`` exists.
    """
    if out.exists():
        raise VisionError('VIS-DATA-201', f'{out} exists already', why='a data set is written '
                          'whole or not at all, never mixed with an older one',
                          do=f'use it as it is, choose another folder, or remove it: rm -r {out}')
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}-') as scratch:
        folder = Path(scratch) / 'out'
        folder.mkdir()
        yield folder
        folder.rename(out)
