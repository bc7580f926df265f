"""Readers of other annotation forms: Pascal VOC / ILSVRC xml, MOT text, CVAT video xml 1.1.

Each gives plain rows; nothing is dropped here. Boxes are xyxy in pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from operator import itemgetter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.picture_files import PICTURE_SUFFIXES, is_picture
from vision.common.core.plain_values import MOST

# A day at 60 frames a second; and boxes of a file whose tracks are written out frame by frame.
MAX_FRAMES, MAX_BOXES = 5_184_000, 1_000_000
MAX_SIDE = 1 << 17  # of an image, px


@dataclass
class XmlFrame:
    """One image's xml. ``rows``: (class name, track id or -1, (x1, y1, x2, y2), occluded,
    generated)."""

    path: Path
    width: int
    height: int
    rows: list[tuple[str, int, tuple[float, float, float, float], int, int]]


@dataclass
class Track:
    """One object of a video: its name and its boxes by frame (from 0)."""

    name: str
    track_id: int
    boxes: dict[int, tuple[float, float, float, float]]
    occluded: set[int]


def named(form: str) -> Callable[[Callable], Callable]:
    """Decorate a reader: what a broken file raises becomes one error that names it.

    Args:
        form: what the file should be, after "it is no".

    Raises:
        VisionError: by the reader: VIS-DATA-229, the file is not there; VIS-DATA-239, it is
            broken.
    """
    def decorate(read: Callable) -> Callable:
        @wraps(read)
        def wrapper(path: Path, *args):
            try:
                return read(Path(path), *args)
            except FileNotFoundError as error:
                raise VisionError('VIS-DATA-229', f'{path} is not there', why='it is named by a '
                                  'list or on the command line', do='look at the path') from error
            except (ElementTree.ParseError, UnicodeDecodeError, ValueError, AttributeError,
                    LookupError, TypeError, OverflowError, OSError) as error:
                if isinstance(error, VisionError):
                    raise
                raise VisionError('VIS-DATA-239', f'{path} cannot be read: {error}',
                                  where=str(path), why=f'it is no {form}',
                                  do='open the file; was it cut short, or is it of another kind?'
                                  ) from error
        return wrapper
    return decorate


@named('XML of ImageNet or Pascal VOC')
def read_voc_xml(path: Path) -> XmlFrame:
    """ImageNet VID/DET or Pascal VOC xml of one image. w = xmax - xmin, as mmtracking."""
    root = _xml_root(path)
    rows = []
    for item in root.iter('object'):
        box = _finite(item.find('bndbox').find(key).text
                      for key in ('xmin', 'ymin', 'xmax', 'ymax'))
        flags = [_whole(item.findtext(key, '0'), 0, 1) for key in ('occluded', 'generated')]
        rows.append((item.find('name').text.strip(), _whole(item.findtext('trackid', '-1'), -1),
                     box, *flags))
    size = root.find('size')
    width, height = (_whole(size.find(key).text, 1, MAX_SIDE) for key in ('width', 'height'))
    return XmlFrame(path, width, height, rows)


def read_video_xmls(paths: list[Path]) -> list[XmlFrame]:
    """The xml files of one video (a function of the module, so that a worker process finds it)."""
    return [read_voc_xml(path) for path in paths]


@named('text of the MOT challenge (CVAT for video ends in .xml)')
def read_mot_text(path: Path) -> np.ndarray:
    """MOT challenge text: (N, 9) float64 rows frame (from 1), id, x, y, w, h, flag, class,
    visibility.

    Nine columns are MOT16 and later. In the ten columns of MOT15 the last three are world
    coordinates; class and visibility then are 1.
    """
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    table = np.full((len(lines), 9), 1.0)
    for i, line in enumerate(lines):
        values = [float(value) for value in line.replace(';', ',').split(',')]
        if not 6 <= len(values) <= 10 or not np.isfinite(values[:6]).all():
            raise ValueError(f'row {i + 1}: 6 to 10 numbers are wanted, got {line!r:.80}')
        if not 1 <= values[0] <= MAX_FRAMES or abs(values[1]) > MOST \
                or values[0] % 1 or values[1] % 1 or not np.isfinite(values).all():
            raise ValueError(f'row {i + 1}: frame (from 1) and id are whole numbers: {line!r:.80}')
        columns = 7 if len(values) == 10 else min(len(values), 9)
        table[i, :columns] = values[:columns]
    return table


@named('XML of CVAT for video')
def read_cvat_xml(path: Path) -> list[Track]:
    """CVAT for video 1.1. Between two boxes of a track that are not in the file for each frame
    the box moves linearly, as CVAT shows it; ``outside`` ends a stretch."""
    tracks, num_boxes = [], 0
    for item in _xml_root(path).iter('track'):
        shapes = sorted(((_whole(box.get('frame'), 0, MAX_FRAMES), box)
                         for box in item.iter('box')), key=itemgetter(0))
        track = Track(str(item.get('label')), _whole(item.get('id'), 0), {}, set())
        if len({frame for frame, _ in shapes}) != len(shapes):
            raise ValueError(f'track {track.track_id} has two boxes in one frame')
        for (frame, box), following in zip(shapes, [*shapes[1:], None], strict=True):
            if box.get('outside') == '1':
                continue
            here, last = _corners(box), frame + 1
            there = here
            if following is not None:
                last = following[0]
                there = here if following[1].get('outside') == '1' else _corners(following[1])
            num_boxes += last - frame
            if num_boxes > MAX_BOXES:
                raise ValueError(f'its tracks have more than {MAX_BOXES} boxes')
            for step in range(frame, last):
                part = (step - frame) / (last - frame)
                track.boxes[step] = tuple(a + (b - a) * part
                                          for a, b in zip(here, there, strict=True))
                if box.get('occluded') == '1':
                    track.occluded.add(step)
        tracks.append(track)
    return tracks


def _corners(box: ElementTree.Element) -> tuple[float, ...]:
    return _finite(box.get(key) for key in ('xtl', 'ytl', 'xbr', 'ybr'))


def _xml_root(path: Path) -> ElementTree.Element:
    data = path.read_bytes()
    if b'<!DOCTYPE' in data or b'\0' in data:  # entities may stand for each other, and for files
        raise ValueError('it declares a document type, which annotations do not need')
    return ElementTree.fromstring(data)


def _finite(texts: Iterable[str]) -> tuple[float, ...]:
    values = tuple(map(float, texts))
    if not np.isfinite(values).all():
        raise ValueError(f'a box of {values}')
    return values


def _whole(text: str, least: int, most: int = MOST) -> int:
    if len(text) > 20 or not least <= int(text) <= most:
        raise ValueError(f'{text[:40]!r} is no whole number from {least} to {most}')
    return int(text)


def numbered_frames(folder: Path) -> list[Path]:
    """Image files of a frame folder in order.

    Raises:
        VisionError: no image; the numbers at the ends of the names have a gap.
    """
    files = list(filter(is_picture, folder.iterdir())) if folder.is_dir() else []
    if not files:
        raise VisionError('VIS-DATA-216', f'no image in {folder}', why='a frame folder holds '
                          'numbered pictures: ' + ', '.join(PICTURE_SUFFIXES),
                          do='look at the path')
    numbers = [re.search(r'(\d+)\D*$', path.stem) for path in files]
    if not all(numbers):
        return sorted(files)
    order = sorted((int(match[1]), path) for match, path in zip(numbers, files, strict=True))
    for (before, _), (number, path) in zip(order, order[1:], strict=False):
        if number != before + 1:
            what = f'{path} follows number {before}'
            raise VisionError('VIS-VIDEO-246', f'{folder} has a gap: {what}', where=str(path),
                              why='motion is measured between neighbours, so a missing or doubled '
                              'frame would bend every box near it',
                              do='extract the frames again, or make two folders of it')
    return [path for _, path in order]
