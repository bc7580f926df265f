"""The true boxes of a data set's pictures: of videos, and of mmdet's sets of still images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vision.common.core.files import name_below
from vision.common.mm.pictures import image_root
from vision.lattice.core.vid_match import TruthFrame


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture of a data set.

    Args:
        key: (video_id, frame_id), or (img_id,) of a still image.
        path: of the image file.
        name: ``path`` below the folder that all images of the data set lie in; unique.
        group: name of its video; of still images the folder, '' where there is one alone.
        truth: in pixels of the file.
        is_labelled: is anything known about it?
    """

    key: tuple
    path: Path
    name: str
    group: str
    truth: TruthFrame
    is_labelled: bool = True


def pictures_of(dataset: Any) -> Iterator[Picture]:
    """All pictures of a test's data set in its order."""
    root = image_root(dataset)
    if hasattr(dataset, 'frame_info'):
        for video in range(len(dataset)):
            name = dataset.record(video)['video_name']
            for frame in range(dataset.get_len_per_video(video)):
                yield _of_video(dataset.frame_info(video, frame, with_instances=False),
                                str(name), root)
        return
    for index in range(len(dataset)):
        yield _of_still(dataset.get_data_info(index), index, root)


def key_of(sample: Mapping[str, Any]) -> tuple:
    """``Picture.key`` of a prediction."""
    if sample.get('video_id') is not None:
        return sample['video_id'], sample['frame_id']
    return (sample['img_id'],)


def _of_video(info: dict, video: str, root: str) -> Picture:
    truth = TruthFrame(info['video_id'], info['frame_id'], info['bboxes'], info['labels'],
                       info['instances_ids'], is_crowd=info['is_crowd'].astype(bool))
    return Picture((info['video_id'], info['frame_id']), Path(info['img_path']),
                   name_below(info['img_path'], root), video, truth, info['is_labelled'])


def _of_still(info: dict, index: int, root: str) -> Picture:
    rows = info['instances']
    truth = TruthFrame(
        0, index, np.array([row['bbox'] for row in rows], np.float32).reshape(-1, 4),
        np.array([row['bbox_label'] for row in rows], np.int64),
        np.arange(1, len(rows) + 1),
        is_crowd=np.array([row.get('ignore_flag', 0) for row in rows], bool))
    name = name_below(info['img_path'], root)
    return Picture((info['img_id'],), Path(info['img_path']), name, os.path.dirname(name), truth)
