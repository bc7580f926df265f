"""CocoVID annotation files: read and write (standard library and numpy).

The format is mmtracking's: a COCO json with ``videos`` and, on each image, ``video_id`` and
``frame_id`` from 0; on each annotation ``instance_id``. A CocoVID file is a valid COCO file. Boxes
are [x, y, w, h] in the file and xyxy float32 in memory. The rules are in ``cocovid_check``.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError
from vision.lattice.core.cocovid_check import BOX_RULES, Problem, box_array, check_cocovid

__all__ = ['CocoFrame', 'CocoVid', 'CocoVidWriter', 'CocoVideo', 'Problem', 'check_cocovid',
           'load_cocovid', 'match_classes', 'read_json']


@dataclass(frozen=True, eq=False)
class CocoFrame:
    """One frame; row i of every array is box i.

    Shapes: boxes_xyxy (N, 4) float32 in pixels, inside the image; labels (N,) int64 from 0;
        instance_ids (N,) int64, from 1; is_crowd (N,) bool: a region to ignore.
    """

    image_id: int
    file_name: str
    height: int
    width: int
    frame_id: int
    is_vid_train_frame: bool
    is_labelled: bool  # False: no statement about this frame, so it is not scored
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    instance_ids: np.ndarray
    is_crowd: np.ndarray


class CocoVideo:
    """One video: frames in the order of ``frame_id``, boxes in four arrays for all frames."""

    def __init__(self, record: dict, images: list[dict], rows: list[list[tuple]]) -> None:
        self.id, self.name, self.record = record['id'], record['name'], record
        self._images = images
        self._first = np.cumsum([0] + [len(part) for part in rows])
        flat = [row for part in rows for row in part]
        self._boxes = np.array([row[0] for row in flat], np.float32).reshape(-1, 4)
        self._numbers = np.array([row[1:] for row in flat], np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def num_boxes(self) -> int:
        """In all frames together, crowd regions included."""
        return len(self._boxes)

    @property
    def labels(self) -> np.ndarray:
        """Labels of all boxes of the video, (M,) int64."""
        return self._numbers[:, 0]

    def frame(self, index: int) -> CocoFrame:
        """Frame at place ``index`` (its frame_id)."""
        index = range(len(self))[index]
        image, part = self._images[index], slice(*self._first[index:index + 2])
        labels, instances, crowd = self._numbers[part].T
        return CocoFrame(image['id'], image['file_name'], image['height'], image['width'],
                         image['frame_id'], bool(image.get('is_vid_train_frame', False)),
                         bool(image.get('is_labelled', True)), self._boxes[part], labels,
                         instances, crowd.astype(bool))

    @property
    def frames(self) -> list[CocoFrame]:
        """All frames in order; made anew at each access."""
        return [self.frame(i) for i in range(len(self))]


@dataclass
class CocoVid:
    """A whole file. ``report`` counts what was repaired or left out, by rule."""

    path: Path
    classes: tuple[str, ...]
    categories: list[dict]
    videos: list[CocoVideo]
    report: dict[str, int] = field(default_factory=dict)

    @property
    def num_frames(self) -> int:
        """In all videos together."""
        return sum(len(video) for video in self.videos)

    @property
    def num_boxes(self) -> int:
        """In all videos together, crowd regions included."""
        return sum(video.num_boxes for video in self.videos)


def read_json(path: Path) -> dict:
    """Parse an annotation file.

    Raises:
        VisionError: no such file; not JSON (with line and column).
    """
    path = Path(path)
    if not path.is_file():
        raise VisionError('VIS-DATA-202', f'annotation file {path} is not there',
                          why='tried ' + str(path.absolute()),
                          do='look at data_root and ann_file of the data set; '
                             'datasets/README.md has the command that makes each')
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except UnicodeDecodeError as error:
        where, text = f'byte {error.start}', error.reason
    except json.JSONDecodeError as error:
        where, text = f'line {error.lineno}, column {error.colno}', error.msg
    except RecursionError:
        where, text = 'anywhere', 'nested too deeply'
    except ValueError:  # the only other one: Python reads no number of more than 4,300 digits
        where, text = 'anywhere', 'a number of thousands of digits'
    except OSError as error:
        where, text = 'anywhere', str(error)
    raise VisionError('VIS-DATA-203', f'{path} is not a JSON file: {text}',
                      where=f'{path}, {where}', do='make the file again; was it cut short?')


def load_cocovid(path: Path | str, *, classes: Sequence[str] | None = None,
                 bad_boxes: str = 'stop') -> CocoVid:
    """Read and check one file.

    Args:
        classes: names (or WordNet ids) in label order; boxes of other categories are left out and
            counted. None takes every category, in the order of their ids.
        bad_boxes: ``stop``, or ``drop`` (and count) single boxes that break a rule.

    Raises:
        VisionError: a rule is broken; a class name is not in the file; nothing is in the file.
    """
    if bad_boxes not in ('stop', 'drop'):
        raise ValueError(f'bad_boxes must be stop or drop, got {bad_boxes!r}')
    path = Path(path)
    data = read_json(path)
    problems = check_cocovid(data)
    dropped = [p for p in problems if bad_boxes == 'drop' and p.rule in BOX_RULES]
    left = [p for p in problems if not p.is_note and (bad_boxes == 'stop'
                                                      or p.rule not in BOX_RULES)]
    _refuse(path, left)
    if not data['videos'] or not data['images']:
        raise VisionError('VIS-DATA-205', f'{path} has {len(data["videos"])} videos and '
                          f'{len(data["images"])} images', why='an empty data set proves nothing',
                          do='was it written by the right converter, for the right split?')
    names, label_of = match_classes(data, classes, where=str(path))
    report = Counter(p.rule for p in problems)  # all of them are excused now
    skip = {p.record for p in dropped}
    rows, report['other-class'] = _box_rows(data, label_of, skip, report['instance-zero'])
    frames = defaultdict(list)
    for image in data['images']:
        frames[image['video_id']].append(image)
    videos = []
    for record in sorted(data['videos'], key=lambda row: row['id']):
        images = sorted(frames[record['id']], key=lambda image: image['frame_id'])
        videos.append(CocoVideo(record, images, [rows[image['id']] for image in images]))
    report = {rule: count for rule, count in sorted(report.items()) if count}
    return CocoVid(path, names, data['categories'], [v for v in videos if len(v)], report)


def _refuse(path: Path, errors: list[Problem]) -> None:
    if not errors:
        return
    count = ', '.join(f'{rule} {n}' for rule, n in Counter(p.rule for p in errors).items())
    boxes_only = all(p.rule in BOX_RULES for p in errors)
    raise VisionError(
        'VIS-DATA-204', f'{len(errors)} problems in {path} ({count}); first: {errors[0]}',
        where='; '.join(str(problem) for problem in errors[1:10]),
        why='these records would be dropped or misread without a word',
        do=f'vision data check {path} lists all; mend the file'
           + (", or leave these boxes out with bad_boxes='drop'" if boxes_only else ''))


def match_classes(data: dict, classes: Sequence[str] | None, *,
                  where: str = '') -> tuple[tuple[str, ...], dict[int, int]]:
    """(class names, label by category id) of a parsed file.

    Raises:
        VisionError: a wanted name is not among the categories (with the histogram of boxes and the
            nearest names).
    """
    categories = sorted(data['categories'], key=lambda row: row['id'])
    if classes is None:
        names = tuple(row['name'] for row in categories)
        return names, {row['id']: i for i, row in enumerate(categories)}
    known = {row['name']: row['id'] for row in categories}
    known = {row['encode_name']: row['id'] for row in categories if 'encode_name' in row} | known
    unknown = [name for name in classes if name not in known]
    if unknown:
        close = (difflib.get_close_matches(name.strip().lower(), known, 1)
                 for name in unknown[:10])
        near = [f'{name!r} -> {names or "nothing near"}'
                for name, names in zip(unknown, close, strict=False)]
        count = Counter(row['category_id'] for row in data['annotations'])
        histogram = ', '.join(f'{row["name"]} {count[row["id"]]}' for row in categories)
        raise VisionError(
            'VIS-DATA-206', f'{len(unknown)} of {len(classes)} class names are not in the file: '
            + ', '.join(near), where=where, why=f'categories and boxes of the file: {histogram}',
            do='write the names as in the file: metainfo=dict(classes=(...)) of the data set')
    return tuple(classes), {known[name]: i for i, name in enumerate(classes)}


def _box_rows(data: dict, label_of: dict[int, int], skip: set,
              shift: int) -> tuple[dict[int, list[tuple]], int]:
    """Boxes by image id: (xyxy, label, instance id, is crowd); and how many have other classes."""
    kept = [row for row in data['annotations'] if row['id'] not in skip]
    wanted = [row for row in kept if row['category_id'] in label_of]
    size_of = {row['id']: (row['width'], row['height']) for row in data['images']}
    boxes = box_array(row['bbox'] for row in wanted)
    size = np.array([size_of[row['image_id']] for row in wanted]).reshape(-1, 2)
    boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    boxes = np.clip(boxes, 0, np.tile(size, 2)).astype(np.float32)
    rows = defaultdict(list)
    for row, box in zip(wanted, boxes, strict=True):
        rows[row['image_id']].append((box, label_of[row['category_id']],
                                      row['instance_id'] + shift, int(row.get('iscrowd') or 0)))
    return rows, len(kept) - len(wanted)


class CocoVidWriter:
    """Collect videos frame by frame and write one CocoVID file.

    Ids of images, videos and annotations are given here, from 1. ``instance_ids`` are numbers
    from 1 inside their video; in the file they are unique over the whole set.

    Args:
        classes: names in the order of the labels; category i gets id i + 1.
        info: anything for the file's ``info``.
    """

    def __init__(self, classes: Sequence[str], *, info: dict | None = None,
                 encode_names: Sequence[str] = ()) -> None:
        self.categories = [dict(id=i + 1, name=name) for i, name in enumerate(classes)]
        for category, encoded in zip(self.categories, encode_names, strict=bool(encode_names)):
            category['encode_name'] = encoded
        self.info = info or {}
        self.videos: list[dict] = []
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self._instances: dict[tuple[int, int], int] = {}

    def add_video(self, name: str, *, width: int, height: int, **fields) -> None:
        """Begin a video; the frames that follow are its own. ``fields``: fps, tags, ..."""
        self.videos.append(dict(id=len(self.videos) + 1, name=name, width=int(width),
                                height=int(height), num_frames=0, **fields))

    def add_frame(self, file_name: str, *, boxes_xyxy=(), labels=(), instance_ids=(),
                  image_fields: dict | None = None, **flags) -> None:
        """The next frame of the video; ``flags``: one sequence per box, e.g. occluded=[...]."""
        video = self.videos[-1]
        image = dict(id=len(self.images) + 1, file_name=file_name, height=video['height'],
                     width=video['width'], video_id=video['id'], frame_id=video['num_frames'])
        image |= image_fields or {}
        self.images.append(image)
        video['num_frames'] += 1
        boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
        for i, (box, label, instance) in enumerate(zip(boxes, labels, instance_ids, strict=True)):
            x1, y1, x2, y2 = (round(float(value), 3) for value in box)
            key = video['id'], int(instance)
            self.annotations.append(dict(
                id=len(self.annotations) + 1, image_id=image['id'], video_id=video['id'],
                category_id=int(label) + 1,
                instance_id=self._instances.setdefault(key, len(self._instances) + 1),
                bbox=[x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)],
                area=round((x2 - x1) * (y2 - y1), 3), iscrowd=0,
                **{name: _plain(values[i]) for name, values in flags.items()}))

    def to_dict(self) -> dict:
        """What the file will hold, so far: ``info``, ``categories``, ``videos``, ``images``,
        ``annotations``."""
        return dict(info=self.info, categories=self.categories, videos=self.videos,
                    images=self.images, annotations=self.annotations)

    def write(self, path: Path) -> None:
        """Write the file: complete or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f'{path.name}.part')
        part.write_text(json.dumps(self.to_dict(), separators=(',', ':')), encoding='utf-8')
        part.replace(path)

    def counts(self) -> dict[str, int]:
        """Videos, frames, boxes and tracks so far; a track is one instance of one video."""
        return dict(videos=len(self.videos), frames=len(self.images),
                    boxes=len(self.annotations), tracks=len(self._instances))

    def boxes_per_class(self) -> dict[str, int]:
        """Number of boxes by class name, every class listed."""
        count = Counter(row['category_id'] for row in self.annotations)
        return {category['name']: count[category['id']] for category in self.categories}


def _plain(value):
    """JSON number of a numpy scalar; flags become 0 or 1 as in ImageNet VID."""
    value = getattr(value, 'item', lambda: value)()
    return int(value) if isinstance(value, bool) else value
