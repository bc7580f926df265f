"""The rules of a CocoVID file, checked over whole columns so that a million boxes take seconds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from vision.common.core.plain_values import stays_inside

TABLES = ('categories', 'videos', 'images', 'annotations')
INTEGER_KEYS = dict(categories=('id',), videos=('id',),
                    images=('id', 'height', 'width', 'video_id', 'frame_id'),
                    annotations=('id', 'image_id', 'category_id', 'instance_id'))
OTHER_KEYS = dict(categories=('name',), videos=('name',), images=('file_name',),
                  annotations=('bbox',))
TEXT_KEYS = dict(categories=('name', 'encode_name'), videos=('name',), images=(), annotations=())
# Broken by one box alone: a reader may leave that box out and keep the rest.
BOX_RULES = ('box-form', 'box-nan', 'box-empty', 'box-outside', 'unknown-category',
             'duplicate-instance')
LARGEST_ID = 2**63 - 2
MAX_SIDE = 1 << 17  # of an image, px: larger ones cannot be decoded


@dataclass(frozen=True)
class Problem:
    """One broken rule.

    Args:
        rule: its short name, as in datasets/README.md.
        table: categories, videos, images, annotations or file.
        record: the record's id, or ``#i`` for its place when it has no usable id.
        text: what came and what is wanted.
        is_note: legitimate to repair (the reader does and counts it); not an error.
    """

    rule: str
    table: str
    record: int | str
    text: str
    is_note: bool = False

    def __str__(self) -> str:
        return f'{self.table} {self.record}: {self.rule}: {self.text}'


def check_cocovid(data: dict) -> list[Problem]:
    """Every broken rule of a parsed CocoVID file, errors and notes (``is_note``)."""
    if not isinstance(data, dict):
        return [Problem('missing-table', 'file', '', f'an object is wanted, got {type(data)}')]
    problems = [Problem('missing-table', 'file', name, 'a list of records is wanted, got '
                        f'{type(data.get(name)).__name__}')
                for name in TABLES if not isinstance(data.get(name), list)]
    if problems:
        return problems
    good = {}
    for name in TABLES:
        found = list(_check_keys(name, data[name]))
        bad = {problem.record for problem in found}
        good[name] = [row for i, row in enumerate(data[name]) if f'#{i}' not in bad]
        problems += found
        problems += _duplicates(name, good[name])
    problems += _check_frames(good)
    problems += _check_references(good)
    problems += _check_boxes(good['images'], good['annotations'])
    problems += _check_tracks(good)
    return problems


def _check_keys(table: str, rows: list) -> Iterator[Problem]:
    integers, others = INTEGER_KEYS[table], OTHER_KEYS[table]
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            yield Problem('record-form', table, f'#{i}', f'an object is wanted, got {row!r:.60}')
            continue
        name = f' (id {row["id"]})' if 'id' in row else ''
        missing = [key for key in integers + others if key not in row]
        if missing:
            yield Problem('missing-key', table, f'#{i}', f'no {", ".join(missing)}{name}')
            continue
        wrong = [key for key in integers
                 if type(row[key]) is not int or not 0 <= row[key] <= LARGEST_ID]
        if wrong:
            values = ', '.join(f'{key}={row[key]!r:.40}' for key in wrong)
            yield Problem('key-type', table, f'#{i}',
                          f'integers >= 0 are wanted, got {values}{name}')
        elif table == 'images' and not 1 <= min(row['height'], row['width']) \
                <= max(row['height'], row['width']) <= MAX_SIDE:
            yield Problem('key-type', table, f'#{i}', f'size {row["width"]}x{row["height"]}{name}')
        elif table == 'images' and not stays_inside(row['file_name']):
            yield Problem('file-name', table, f'#{i}', 'a path inside of the image folder is '
                          f'wanted, got {row["file_name"]!r:.80}{name}')
        elif bad := [key for key in TEXT_KEYS[table] if not isinstance(row.get(key, ''), str)]:
            yield Problem('key-type', table, f'#{i}', f'text is wanted, got '
                          f'{bad[0]}={row[bad[0]]!r:.40}{name}')
        elif table == 'annotations' and row.get('iscrowd') not in (None, 0, 1):
            yield Problem('key-type', table, f'#{i}', f'0 or 1 is wanted, got '
                          f'iscrowd={row["iscrowd"]!r:.40}{name}')


def _duplicates(table: str, rows: list[dict]) -> list[Problem]:
    count = Counter(row['id'] for row in rows)
    problems = [Problem('duplicate-id', table, key, f'{n} records have this id')
                for key, n in count.items() if n > 1]
    if table in ('categories', 'videos'):
        names = Counter(str(row['name']) for row in rows)
        problems += [Problem('duplicate-name', table, row['id'], f'name {row["name"]!r} is '
                             f'used {names[str(row["name"])]} times')
                     for row in rows if names[str(row['name'])] > 1]
    return problems


def _check_frames(tables: dict[str, list[dict]]) -> Iterator[Problem]:
    videos = {row['id'] for row in tables['videos']}
    frames = defaultdict(list)
    for row in tables['images']:
        if row['video_id'] not in videos:
            yield Problem('unknown-video', 'images', row['id'],
                          f'video_id {row["video_id"]} is not among the videos')
        frames[row['video_id']].append((row['frame_id'], row['id']))
    for video in sorted(videos - set(frames)):
        yield Problem('empty-video', 'videos', video, 'no image belongs to it', is_note=True)
    for video, rows in frames.items():
        rows.sort()
        expected = 0
        for frame, image in rows:
            if frame < expected:
                yield Problem('duplicate-frame', 'images', image,
                              f'video {video} has frame_id {frame} twice')
            elif frame > expected:
                yield Problem('frame-gap', 'images', image, f'video {video}: frame_id {frame} '
                              f'comes where {expected} is wanted (consecutive from 0)')
            expected = frame + 1


def _check_references(tables: dict[str, list[dict]]) -> Iterator[Problem]:
    video_of = {row['id']: row['video_id'] for row in tables['images']}
    categories = {row['id'] for row in tables['categories']}
    for row in tables['annotations']:
        image = row['image_id']
        if image not in video_of:
            yield Problem('unknown-image', 'annotations', row['id'],
                          f'image_id {image} is not among the images')
        elif row.get('video_id', video_of[image]) != video_of[image]:
            yield Problem('other-video', 'annotations', row['id'], f'video_id {row["video_id"]}, '
                          f'but its image {image} belongs to video {video_of[image]}')
        if row['category_id'] not in categories:
            yield Problem('unknown-category', 'annotations', row['id'],
                          f'category_id {row["category_id"]} is not among the categories')


def box_array(values: Iterable) -> np.ndarray:
    """[x, y, w, h] records as (N, 4) float64; a record of another form becomes four NaN."""
    rows = [value if _is_box(value) else [np.nan] * 4 for value in values]
    return np.array(rows, np.float64).reshape(-1, 4)


def _is_box(value) -> bool:
    return (isinstance(value, (list, tuple)) and len(value) == 4
            and all(type(number) is float or (type(number) is int and abs(number) < LARGEST_ID)
                    for number in value))


def _check_boxes(images: list[dict], annotations: list[dict]) -> Iterator[Problem]:
    size_of = {row['id']: (row['width'], row['height']) for row in images}
    rows = [row for row in annotations if row['image_id'] in size_of]
    box = box_array(row['bbox'] for row in rows)
    size = np.array([size_of[row['image_id']] for row in rows], np.float64).reshape(-1, 2)
    end = box[:, :2] + box[:, 2:]
    broken = ~np.isfinite(box).all(1)
    empty = ~broken & (box[:, 2:] <= 0).any(1)
    outside = ~broken & ~empty & ((end <= 0) | (box[:, :2] >= size)).any(1)
    over = ~broken & ~empty & ~outside & ((box[:, :2] < 0) | (end > size)).any(1)
    for i in np.flatnonzero(broken):
        rule = 'box-nan' if _is_box(rows[i]['bbox']) else 'box-form'
        yield Problem(rule, 'annotations', rows[i]['id'],
                      f'four finite numbers are wanted, got {rows[i]["bbox"]!r:.80}')
    cases = ((empty, 'box-empty', 'width and height must be positive', False),
             (outside, 'box-outside', 'no part of it is in the image', False),
             (over, 'box-over-edge', 'clipped to the image', True))
    for mask, rule, text, is_note in cases:
        for i in np.flatnonzero(mask):
            where = f'{rows[i]["bbox"]} in {size[i, 0]:g}x{size[i, 1]:g}'
            yield Problem(rule, 'annotations', rows[i]['id'], f'{text}: {where}', is_note)


def _check_tracks(tables: dict[str, list[dict]]) -> Iterator[Problem]:
    video_of = {row['id']: row['video_id'] for row in tables['images']}
    seen: set[tuple[int, int]] = set()
    home: dict[int, tuple[int, int]] = {}
    told: set[int] = set()
    for row in tables['annotations']:
        key = row['image_id'], row['instance_id']
        if key in seen and not row.get('iscrowd'):
            yield Problem('duplicate-instance', 'annotations', row['id'],
                          f'image {key[0]} has instance_id {key[1]} twice')
        seen.add(key)
        place = video_of.get(row['image_id'], -1), row['category_id']
        first = home.setdefault(row['instance_id'], place)
        if first != place and row['instance_id'] not in told:
            told.add(row['instance_id'])
            what = 'two videos' if first[0] != place[0] else 'two categories'
            yield Problem('shared-instance', 'annotations', row['id'],
                          f'instance_id {row["instance_id"]} is used in {what}', is_note=True)
    if 0 in home:
        yield Problem('instance-zero', 'annotations', '*', 'instance ids start at 0: all are '
                      'raised by 1 on reading, because mmdet takes 0 for "no id"', is_note=True)
