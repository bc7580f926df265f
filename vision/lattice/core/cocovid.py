"""CocoVID annotation files: read, check and write (standard library and numpy).

The format is mmtracking's: a COCO json with ``videos`` and, on each image, ``video_id`` and
``frame_id`` from 0; on each annotation ``instance_id``. A CocoVID file is a valid COCO file. Boxes
are [x, y, w, h] in the file and xyxy float32 in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np


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
                     width=video['width'], video_id=video['id'], frame_id=video['num_frames'],
                     **(image_fields or {}))
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
        return dict(info=self.info, categories=self.categories, videos=self.videos,
                    images=self.images, annotations=self.annotations)

    def write(self, path: Path) -> None:
        """Write the file: complete or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f'{path.name}.part')
        part.write_text(json.dumps(self.to_dict(), separators=(',', ':')), encoding='utf-8')
        part.replace(path)

    def counts(self) -> dict[str, int]:
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
