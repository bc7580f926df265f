"""Results as JSON that says where they come from; every figure in the docs is read from one."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vision.common.core.errors import VisionError
from vision.common.core.files import SEAL, atomic_write, broken_seal, sealed

PACKAGES = ('torch', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'numpy',
            'opencv-python', 'av')


def write_report(path: Path, rows: Sequence[dict[str, Any]], *, seed: int | None = None,
                 command: str | None = None, **extra: Any) -> None:
    """Write rows with device, versions, seed, commit and the command that made them, and a seal:
    the sha256 of all other bytes.

    Args:
        command: default: the running one.
        extra: further top-level entries.
    """
    content = dict(seal=SEAL.decode(), command=command or shown_command(), commit=commit(),
                   seed=seed, date=datetime.date.today().isoformat(), device=device(),
                   versions=versions(), **extra, rows=list(rows))
    with atomic_write(Path(path)) as file:
        file.write(sealed(json.dumps(content, indent=1).encode() + b'\n'))


def read_report(path: Path, *, code: str, maker: str, column: str | None = None
                ) -> dict[str, Any]:
    """What ``write_report`` wrote.

    Args:
        code: of the error.
        maker: the command that makes such a file.
        column: rows without this figure are left out.

    Raises:
        VisionError: it has no rows, or is not as it was written.
    """
    raw = Path(path).read_bytes()
    try:
        if fault := broken_seal(raw):
            raise ValueError(fault)
        content = dict(json.loads(raw))
    except (ValueError, TypeError) as error:
        raise VisionError(code, f'{path} is damaged', where=str(path), why=str(error),
                          do=f'make it again with {maker}') from error
    rows = [row for row in content.get('rows', [])
            if column is None or row.get(column) is not None]
    if not rows:
        raise VisionError(code, f'{path} has no rows' + (f' with {column}' if column else ''),
                          where=str(path), do=f'make it with {maker}')
    return content | dict(rows=rows)


def shown_command() -> str:
    """The running command as a user would type it, from the repository root."""
    prefix = [] if sys.argv[0].startswith('vision ') else ['python']
    return ' '.join([*prefix, *(os.path.relpath(part) if os.path.isabs(part) else part
                                 for part in sys.argv)])


def commit() -> str:
    """Short hash of the checkout, '+' when it has changes; '' outside one."""
    folder = Path(__file__).parent
    try:
        found = [subprocess.run(['git', *arguments], cwd=folder, capture_output=True, text=True,
                                check=True).stdout.strip()
                 for arguments in (('rev-parse', '--short', 'HEAD'),
                                   ('status', '--porcelain', '--untracked-files=no'))]
    except (OSError, subprocess.CalledProcessError):
        return ''
    return found[0] + ('+' if found[1] else '')


def device() -> dict[str, Any]:
    """Processor, cores that this process may use, and system."""
    name = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if info.exists():
        name = next((line.split(':', 1)[1].strip() for line in info.read_text().splitlines()
                     if line.startswith('model name')), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return dict(processor=name, cores=cores, system=platform.system(),
                python=platform.python_version())


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on, without those that are
    not there."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
