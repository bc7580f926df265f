"""Installed fonts with Han characters: where they are, their Debian packages, what they hold.

The character map of an OpenType file is read here directly (tables ``cmap`` of formats 4 and 12,
which every font in use has): it needs no font library and takes milliseconds. In TrueType files
``loca`` tells which glyphs have no outline: some fonts map characters to blanks (AR PL UKai: 37).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError

FOLDERS = ('/usr/share/fonts', '/usr/local/share/fonts', '~/.local/share/fonts', '~/.fonts')
MAX_FONT_BYTES = 1 << 28  # the largest in use, Noto's collections, have 20 MB
# Character maps name each code point once. Some old fonts repeat segments of the small map.
MAX_POINTS, MAX_REPEATED = 0x110000, 4 * 0x10000
FOLDERS_VARIABLE = 'VISION_FONT_DIR'  # more folders, divided as in PATH; searched first


@dataclass(frozen=True)
class FontFamily:
    """One design: its files (weights) and the package that brings them.

    Attributes:
        face: position in a collection (.ttc); the Noto collections begin with Japanese forms, 2 is
            simplified Chinese.
        licence: of the fonts, as their package states it.
    """

    name: str
    package: str
    files: tuple[str, ...]
    licence: str
    face: int = 0


def _by_name(*families: FontFamily) -> dict[str, FontFamily]:
    return {family.name: family for family in families}


FAMILIES = _by_name(
    FontFamily('noto-sans', 'fonts-noto-cjk', ('NotoSansCJK-Regular.ttc', 'NotoSansCJK-Bold.ttc'),
               'OFL-1.1', face=2),
    FontFamily('noto-serif', 'fonts-noto-cjk',
               ('NotoSerifCJK-Regular.ttc', 'NotoSerifCJK-Bold.ttc'), 'OFL-1.1', face=2),
    FontFamily('wqy-zenhei', 'fonts-wqy-zenhei', ('wqy-zenhei.ttc',), 'GPL-2 with font exception'),
    FontFamily('hanazono', 'fonts-hanazono', ('HanaMinA.ttf',), 'OFL-1.1'),
    FontFamily('babelstone', 'fonts-babelstone-han', ('BabelStoneHan.ttf',), 'Arphic'),
    FontFamily('cns-kai', 'fonts-cns11643-kai', ('TW-Kai-98_1.ttf',), 'OFL-1.1'),
    FontFamily('cns-sung', 'fonts-cns11643-sung', ('TW-Sung-98_1.ttf',), 'OFL-1.1'),
    FontFamily('uming', 'fonts-arphic-uming', ('uming.ttc',), 'Arphic'),
    FontFamily('ukai', 'fonts-arphic-ukai', ('ukai.ttc',), 'Arphic'),
    FontFamily('ipa-mincho', 'fonts-ipafont-mincho', ('ipam.ttf',), 'IPA'),
    FontFamily('droid', 'fonts-droid-fallback', ('DroidSansFallbackFull.ttf',), 'Apache-2.0'),
    FontFamily('unifont', 'fonts-unifont', ('unifont.otf',), 'GPL-2 with font exception'))


def find_font_files(family: FontFamily, folders: Sequence[str] | None = None) -> list[Path]:
    """The files of a family; VIS-ENV-1074 names the package when one is not installed."""
    if folders is None:
        more = [part for part in os.environ.get(FOLDERS_VARIABLE, '').split(os.pathsep) if part]
        folders = [*more, *FOLDERS]
    found: dict[str, Path] = {}
    for folder in folders:
        for base, _, names in os.walk(os.path.expanduser(folder)):
            for name in set(names) & set(family.files):
                found.setdefault(name, Path(base) / name)
    missing = [name for name in family.files if name not in found]
    if missing:
        raise VisionError('VIS-ENV-1074', f'the font family {family.name} is not installed: '
                          f'{missing[0]} is not there', where=', '.join(folders),
                          why='another font would give other images without a word',
                          do=f'apt install {family.package}, set {FOLDERS_VARIABLE} to the folder '
                          'of the file, or leave the family out of the config')
    return [found[name] for name in family.files]


def read_characters(path: Path, face: int = 0) -> np.ndarray:
    """Sorted int64 code points that have a glyph of their own, with an outline.

    Glyph 0 is the box for unknown characters and does not count.

    Raises:
        VisionError: VIS-DATA-1076 when the file is no font, or has no table that can be read.
    """
    try:
        data = Path(path).read_bytes()
        if len(data) > MAX_FONT_BYTES:
            raise ValueError(f'{len(data)} bytes')
        start = _face_start(data, face)
        points, glyphs = _best_map(data, _table_start(data, start, b'cmap'))
        has_ink = glyphs != 0
        if _table_start(data, start, b'loca', default=0):
            has_ink &= _has_outline(data, start)[glyphs]
    except (OSError, struct.error, ValueError, IndexError) as error:
        raise VisionError('VIS-DATA-1076', f'cannot read the characters of face {face}: {error}',
                          where=str(path), why='not an OpenType font, or a damaged one',
                          do='install the font package again') from error
    return np.unique(points[has_ink])


def _face_start(data: bytes, face: int) -> int:
    if data[:4] != b'ttcf':
        return 0
    count, = struct.unpack_from('>I', data, 8)
    if face >= count:
        raise ValueError(f'the collection has {count} faces')
    return struct.unpack_from('>I', data, 12 + 4 * face)[0]


def _table_start(data: bytes, start: int, name: bytes, default: int | None = None) -> int:
    count, = struct.unpack_from('>H', data, start + 4)
    for entry in range(count):
        tag, _, offset, _ = struct.unpack_from('>4sIII', data, start + 12 + 16 * entry)
        if tag == name:
            return offset
    if default is None:
        raise ValueError(f'no table {name.decode()}')
    return default


def _has_outline(data: bytes, start: int) -> np.ndarray:
    """(num_glyphs,) bool of a TrueType font: an empty glyph takes no room in the outlines."""
    num_glyphs, = struct.unpack_from('>H', data, _table_start(data, start, b'maxp') + 4)
    is_long, = struct.unpack_from('>h', data, _table_start(data, start, b'head') + 50)
    places = np.frombuffer(data, '>u4' if is_long else '>u2', num_glyphs + 1,
                           _table_start(data, start, b'loca'))
    return places[1:] != places[:-1]


def _best_map(data: bytes, table: int) -> tuple[np.ndarray, np.ndarray]:
    """(code points, glyph numbers); all Unicode before the basic plane only."""
    count, = struct.unpack_from('>H', data, table + 2)
    maps = {}
    for entry in range(count):
        platform, encoding, offset = struct.unpack_from('>HHI', data, table + 4 + 8 * entry)
        kind, = struct.unpack_from('>H', data, table + offset)
        is_unicode = platform == 0 or (platform == 3 and encoding in (1, 10))
        if is_unicode and kind in (4, 12):
            maps[kind] = table + offset
    if 12 in maps:
        return _map_of_ranges(data, maps[12])
    if 4 in maps:
        return _map_of_segments(data, maps[4])
    raise ValueError('no Unicode character map of format 4 or 12')


def _map_of_ranges(data: bytes, start: int) -> tuple[np.ndarray, np.ndarray]:
    count, = struct.unpack_from('>I', data, start + 12)
    groups = np.frombuffer(data, '>u4', 3 * count, start + 16).reshape(-1, 3).astype(np.int64)
    if (groups[:, 1] < groups[:, 0]).any() or (groups[:, 1] > 0x10FFFF).any():
        raise ValueError('a range of the character map is turned round or outside of Unicode')
    lengths = groups[:, 1] + 1 - groups[:, 0]
    if lengths.sum() > MAX_POINTS:
        raise ValueError(f'{len(groups)} ranges of the character map hold {lengths.sum()} points')
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(groups[:, 0], lengths) + within, np.repeat(groups[:, 2], lengths) + within


def _map_of_segments(data: bytes, start: int) -> tuple[np.ndarray, np.ndarray]:
    count = struct.unpack_from('>H', data, start + 6)[0] // 2
    ends, starts, deltas, places = (
        np.frombuffer(data, '>u2', count, start + 14 + 2 * (row * count) + 2 * (row > 0))
        .astype(np.int64) for row in range(4))
    if (num_points := np.maximum(ends + 1 - starts, 0).sum()) > MAX_REPEATED:
        raise ValueError(f'{count} segments of the character map hold {num_points} points')
    all_points, all_glyphs = [], []
    for segment in range(count):
        points = np.arange(starts[segment], ends[segment] + 1)
        if places[segment] == 0:
            glyphs = (points + deltas[segment]) & 0xFFFF
        else:  # the offset counts from its own place in the table
            at = start + 16 + 2 * (3 * count + segment) + places[segment]
            inner = np.frombuffer(data, '>u2', len(points), at).astype(np.int64)
            glyphs = np.where(inner == 0, 0, (inner + deltas[segment]) & 0xFFFF)
        all_points.append(points)
        all_glyphs.append(np.where(points == 0xFFFF, 0, glyphs))  # the end mark is no character
    return np.concatenate(all_points), np.concatenate(all_glyphs)
