"""What a training wrote down: MMEngine's ``vis_data/scalars.json``, a JSON object a line."""

from __future__ import annotations

import difflib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.plain_values import MOST

_PLACES = ('iter', 'step', 'epoch')  # columns that say where, not what
_TIMES = ('time', 'data_time')  # a validation logs its own under these names


@dataclass(frozen=True)
class RunLog:
    """Scalars of one run, by name.

    Args:
        name: of the run, for legends.
        path: of the file.
        curves: name -> (iterations, values). A metric of a validation stands at the last
            iteration that was logged before it: MMEngine writes 0, or an epoch, in its place.
        epochs: of the training lines with a time; all 1 where the run counts iterations alone.
        num_broken: lines that could not be read: the last one of a run that was killed.
    """

    name: str
    path: Path
    curves: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    epochs: list[int] = field(default_factory=list)
    num_broken: int = 0


def find_log(path: Path | str) -> Path:
    """A scalars file: the path itself, or the newest one below a work_dir.

    Raises:
        VisionError: VIS-INPUT-1794, there is none.
    """
    path = Path(path)
    if path.is_dir():
        # Folders of runs are called after their time.
        found = sorted(path.glob('**/vis_data/scalars.json'), key=lambda one: one.parts)
        path = found[-1] if found else path
    if not path.is_file():
        raise VisionError('VIS-INPUT-1794', f'{path} is no log of a training', where=str(path),
                          do='give a work_dir, or work_dir/TIMESTAMP/vis_data/scalars.json')
    return path


def read_log(path: Path | str, name: str = '') -> RunLog:
    """Read the scalars of a run.

    Raises:
        VisionError: VIS-INPUT-1794; VIS-DATA-1799, the file holds no scalars.
    """
    path = find_log(path)
    curves: dict[str, tuple[list[int], list[float]]] = {}
    epochs, num_broken, now = [], 0, 0
    for line in path.read_text(errors='replace').splitlines():
        row = _row(line)
        if row is None:
            num_broken += bool(line.strip())
            continue
        is_training = 'iter' in row
        if is_training:
            now = int(row.get('step', row['iter']))
            if 'time' in row:
                epochs.append(int(row.get('epoch', 1)))
        for key, value in row.items():
            if key not in _PLACES:
                key = f'val/{key}' if not is_training and key in _TIMES else key
                x, y = curves.setdefault(key, ([], []))
                x.append(now)
                y.append(float(value))
    if not curves:
        raise VisionError('VIS-DATA-1799', f'{path} holds no scalars', where=str(path),
                          why=f'{num_broken} lines are no JSON objects with numbers' if num_broken
                          else 'it has no lines: nothing was logged yet',
                          do='give the scalars.json below vis_data, not the .log file')
    return RunLog(name or _run_name(path), path, curves, epochs, num_broken)


def require_keys(log: RunLog, keys: Sequence[str]) -> None:
    """Refuse (VIS-INPUT-1792) names that the run did not log."""
    for key in keys:
        if key not in log.curves:
            near = difflib.get_close_matches(key, log.curves, n=3, cutoff=0.4)
            raise VisionError('VIS-INPUT-1792', f'{log.path} has no {key!r}', where='--keys',
                              why=f'it has {", ".join(sorted(log.curves))}',
                              do=f'did you mean {" or ".join(near)}?' if near else
                              'choose of these')


def default_keys(log: RunLog) -> list[str]:
    """The loss, or whatever it has first."""
    return ['loss'] if 'loss' in log.curves else list(log.curves)[:1]


def summarise(log: RunLog) -> list[dict[str, Any]]:
    """Of each scalar: name, num, first, last, min, max and the iterations of these two."""
    rows = []
    for name, (x, y) in log.curves.items():
        finite = [i for i, value in enumerate(y) if np.isfinite(value)]
        low = min(finite, key=y.__getitem__, default=None)
        high = max(finite, key=y.__getitem__, default=None)
        rows.append(dict(name=name, num=len(y), first=y[0], last=y[-1],
                         min=None if low is None else y[low],
                         min_at=None if low is None else x[low],
                         max=None if high is None else y[high],
                         max_at=None if high is None else x[high],
                         num_not_finite=len(y) - len(finite)))
    return rows


def train_times(log: RunLog, *, include_outliers: bool = False) -> list[dict[str, Any]]:
    """Seconds an iteration by epoch: epoch, num, mean_s, share of it spent waiting for data.

    Args:
        include_outliers: also the first line of an epoch, which holds its start.

    Raises:
        VisionError: VIS-INPUT-1792, the run logged no times.
    """
    require_keys(log, ['time'])
    times, data = (np.array(log.curves.get(key, ((), ()))[1]) for key in ('time', 'data_time'))
    if len(data) != len(times):  # not told on each line
        data = None
    rows = []
    for epoch in dict.fromkeys(log.epochs):
        places = np.flatnonzero(np.array(log.epochs) == epoch)
        kept = places if include_outliers or len(places) == 1 else places[1:]
        mean = float(times[kept].mean())
        rows.append(dict(epoch=int(epoch), num=len(kept), mean_s=mean,
                         data_share=None if data is None else float(data[kept].mean() / mean)))
    return rows


def _row(line: str) -> dict[str, int | float] | None:
    """The numbers of a line; None: it is no line of a log."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
    is_placed = all(abs(numbers.get(key, math.inf)) <= MOST for key in _PLACES if key in row)
    is_float = all(abs(value) <= sys.float_info.max for value in numbers.values()
                   if isinstance(value, int))
    return numbers if is_placed and is_float else None


def _run_name(path: Path) -> str:
    """work_dir/TIMESTAMP/vis_data/scalars.json -> the work_dir's name."""
    parts = path.absolute().parts
    return parts[-4] if len(parts) >= 4 and parts[-2] == 'vis_data' else path.stem
