"""Budgets as people write them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from vision.common.core.errors import VisionError

UNITS = dict(B=1, KB=10**3, MB=10**6, GB=10**9, TB=10**12,
             KIB=2**10, MIB=2**20, GIB=2**30, TIB=2**40)
_TEXT = re.compile(r'\s*([+-]?\d+(?:\.\d*)?|[+-]?\.\d+)\s*([A-Za-z]+|%)\s*')
ALLOWED = ("a size such as '12GB' (10**9 bytes), '12 GiB' (2**30 bytes) or '800MB', whole bytes "
           "from 2 on, or a part of the unmanaged peak such as 0.4 or '40%'")


@dataclass(frozen=True)
class Amount:
    """Bytes, or a ratio of the unmanaged peak: one of both, the other is None."""

    bytes: int | None = None
    ratio: float | None = None


def parse_budget(value: int | float | str) -> Amount:
    """Read a budget: 0 < float <= 1 (and the whole number 1) is a ratio, an int from 2 on bytes, a
    text says its unit. Upper and lower case are the same.

    Raises:
        VisionError: VIS-CONFIG-1401 not one of these forms; VIS-CONFIG-1402 not positive, or a
            ratio above 1.
    """
    if isinstance(value, str):
        return _parse_text(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _impossible(value, f'a {type(value).__name__} is no amount')
    if not (math.isfinite(value) and value > 0):
        raise _impossible(value, 'it must be a positive number')
    if value <= 1:
        return Amount(ratio=float(value))
    if isinstance(value, float):
        raise _impossible(value, 'a number with a point is a part of the unmanaged peak, at most '
                          '1; bytes are whole')
    return Amount(bytes=value)


def _parse_text(text: str) -> Amount:
    match = _TEXT.fullmatch(text)
    unit = match[2].upper() if match else ''
    if not match or unit not in (*UNITS, '%'):
        what = f'the unit {match[2]!r} is not known' if match else 'number and unit are not there'
        raise VisionError('VIS-CONFIG-1401', f'memory budget {text!r}: {what}', why='allowed is '
                          f'{ALLOWED}', do=f'write one of these; units are {", ".join(UNITS)} and '
                          '%, in upper or lower case')
    number = float(match[1])
    if unit == '%':
        if not 0 < number <= 100:
            raise _impossible(text, 'a part must be above 0% and at most 100%')
        return Amount(ratio=number / 100)
    num_bytes = number * UNITS[unit]
    if not 0.5 < num_bytes < math.inf:
        raise _impossible(text, 'it must be at least one byte, and a number')
    return Amount(bytes=int(round(num_bytes)))


def _impossible(value: object, why: str) -> VisionError:
    return VisionError('VIS-CONFIG-1402', f'memory budget {value!r} is not possible: {why}',
                       why=f'allowed is {ALLOWED}', do="write for example budget='12GB' or "
                       'budget=0.4')


def format_bytes(num_bytes: int | float) -> str:
    """Powers of ten, one digit behind the point from kilobytes on: '1.2 GB'."""
    size = abs(num_bytes)
    for unit in ('B', 'KB', 'MB', 'GB'):
        # 999.95 would be shown as 1000.0.
        if size < (1000 if unit == 'B' else 999.95):
            break
        size /= 1000
    else:
        unit = 'TB'
    sign = '-' if num_bytes < 0 else ''
    return f'{sign}{size:.0f} B' if unit == 'B' else f'{sign}{size:.1f} {unit}'
