"""Results as JSON that says where they come from; every figure in the docs is read from one.

A command that measures takes ``--json FILE`` and ``--record`` (``add_report_options``). Files in
``docs/results`` are evidence: they are written only with ``--record``, and that only from a
checkout without changes, so that the commit in the file is what ran.
"""

from __future__ import annotations

import argparse
import datetime
import functools
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
from vision.common.core.files import (
    SEAL,
    atomic_write,
    broken_seal,
    refuse_unwritable,
    sealed,
)

PACKAGES = ('torch', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'numpy',
            'opencv-python', 'av')


ROOT = Path(__file__).resolve().parents[3]
EVIDENCE = ('docs', 'results')
CODE = ('vision', 'benchmarks', 'configs', 'tools', 'datasets')  # a new file there may have run


def add_report_options(parser: argparse.ArgumentParser, *, what: str = 'rows',
                       is_required: bool = False) -> None:
    """--json FILE and --record; ``refuse_no_evidence`` judges them before the work."""
    parser.add_argument('--json', type=Path, metavar='FILE', required=is_required,
                        help=f'write the {what} here, with device, versions and commit')
    parser.add_argument('--record', action='store_true',
                        help='as evidence: needs a checkout without changes, and may write into '
                        'docs/results')


def refuse_no_evidence(path: Path | None, *, is_recorded: bool) -> None:
    """Before long work and before each writing: may its results be written to ``path``?

    Raises:
        VisionError: VIS-INPUT-1750, a path in docs/results without --record; VIS-RUN-1751,
            --record with changes in the checkout, outside of one, or without a file;
            VIS-ENV-109, the file cannot be written.
    """
    if is_recorded and (path is None or running_commit()[-1:] in ('', '+')):
        raise VisionError('VIS-RUN-1751', 'these results could not be evidence',
                          where='--record', why='no --json FILE was given' if path is None else
                          f'the commit would be {running_commit() or "unknown"!r}: evidence is '
                          'made by code that a commit holds ("+": there are changes)',
                          do='give --json FILE' if path is None else 'commit what git status '
                          'shows and run again, or leave --record out and write elsewhere')
    if path is not None and not is_recorded and is_evidence(path):
        raise VisionError('VIS-INPUT-1750', f'{path} would become evidence without --record',
                          where='--json', why='files in docs/results are quoted in the docs',
                          do='add --record (on a commit without changes), or give a path '
                          'elsewhere, such as out/rows.json')
    refuse_unwritable(path)


def is_evidence(path: Path) -> bool:
    """Does a file lie in docs/results of a checkout (of any)?"""
    parts = Path(path).resolve().parent.parts
    return EVIDENCE in zip(parts, parts[1:], strict=False)


def write_report(path: Path, rows: Sequence[dict[str, Any]], *, seed: int | None = None,
                 command: str | None = None, is_recorded: bool = False, **extra: Any) -> None:
    """Write rows with device, versions, seed, commit and the command that made them, and a seal:
    the sha256 of all other bytes.

    Args:
        command: default: the running one.
        is_recorded: --record was given.
        extra: further top-level entries.

    Raises:
        VisionError: as ``refuse_no_evidence``.
    """
    refuse_no_evidence(path, is_recorded=is_recorded)
    content = dict(seal=SEAL.decode(), command=command or shown_command(),
                   commit=running_commit(), seed=seed, date=datetime.date.today().isoformat(),
                   device=device(), versions=versions(), **extra, rows=list(rows))
    with atomic_write(Path(path)) as file:
        file.write(sealed(json.dumps(content, indent=1).encode() + b'\n'))


def earlier_report(path: Path) -> dict[str, Any]:
    """What an experiment that goes on row by row wrote before, or {}: it may start from these
    rows because each of them says which commit made it (its key ``commit``).

    Raises:
        VisionError: VIS-DATA-1752, the file is damaged, or a row without its commit would pass
            for one of this run.
    """
    if not Path(path).exists():
        return {}
    content, fault = {}, ''
    try:
        content = _content(path)
        nameless = sum('commit' not in row for row in content.get('rows', []))
        fault = f'{nameless} rows do not say which commit made them' if nameless else ''
    except ValueError as error:
        fault = str(error)
    if fault:
        raise VisionError('VIS-DATA-1752', f'this run cannot go on from {path}', where=str(path),
                          why=fault, do='give another --json, or remove the file')
    return content


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
    try:
        content = _content(path)
    except (OSError, ValueError) as error:
        raise VisionError(code, f'{path} cannot be read', where=str(path), why=str(error),
                          do=f'make it again with {maker}') from error
    rows = [row for row in content.get('rows', [])
            if column is None or row.get(column) is not None]
    if not rows:
        raise VisionError(code, f'{path} has no rows' + (f' with {column}' if column else ''),
                          where=str(path), do=f'make it with {maker}')
    return content | dict(rows=rows)


def _content(path: Path) -> dict[str, Any]:
    """The whole file.

    Raises:
        ValueError: it is not as it was written.
    """
    raw = Path(path).read_bytes()
    if fault := broken_seal(raw):
        raise ValueError(fault)
    try:
        content = json.loads(raw)
    except RecursionError as error:
        raise ValueError('it is nested too deeply') from error
    rows = content.get('rows', []) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError('it holds no rows of names and values')
    return content


def shown_command() -> str:
    """The running command as a user would type it, from the repository root."""
    prefix = [] if sys.argv[0].startswith('vision ') else ['python']
    return ' '.join([*prefix, *(os.path.relpath(part) if os.path.isabs(part) else part
                                 for part in sys.argv)])


@functools.cache
def running_commit() -> str:
    """``commit()`` when this process first asked: of what runs; the checkout may go on."""
    return commit()


def commit() -> str:
    """Short hash of the checkout, '' outside of one; '+' when it has changes. Results are no
    changes (a command may write several), new files among the code are."""
    def git(*arguments: str) -> str:
        return subprocess.run(['git', *arguments], cwd=ROOT, capture_output=True, text=True,
                              check=True).stdout.strip()
    try:
        if Path(git('rev-parse', '--show-toplevel')).resolve() != ROOT:
            return ''  # installed below somebody else's repository
        found = git('rev-parse', '--short', 'HEAD')
        changes = git('status', '--porcelain', '--untracked-files=no', '--', '.',
                      f':(exclude){"/".join(EVIDENCE)}')
        new = git('ls-files', '--others', '--exclude-standard', '--', *CODE)
    except (OSError, subprocess.CalledProcessError):
        return ''
    return found + ('+' if changes or new else '')


def device() -> dict[str, Any]:
    """Processor, cores that this process may use, and system; the accelerator, if the process has
    used one."""
    name = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if info.exists():
        name = next((line.split(':', 1)[1].strip() for line in info.read_text().splitlines()
                     if line.startswith('model name')), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    cuda = getattr(sys.modules.get('torch'), 'cuda', None)  # nothing here imports it
    gpu = dict(accelerator=cuda.get_device_name()) if cuda and cuda.is_initialized() else {}
    return dict(processor=name, cores=cores, system=platform.system(),
                python=platform.python_version(), **gpu)


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
