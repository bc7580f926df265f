"""Video data sets in CocoVID form, and still frames mixed with still images."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmdet.datasets import BaseVideoDataset
from mmengine.dataset import Compose
from mmengine.logging import print_log
from torch.utils.data import Dataset

from vision.common.core.errors import VisionError
from vision.common.nn.images import BAD_IMAGE
from vision.lattice.core import imagenet_vid
from vision.lattice.core.cocovid import CocoVideo, load_cocovid, match_classes, read_json
from vision.registry import DATASETS


@DATASETS.register_module()
class CocoVideoDataset(BaseVideoDataset):
    """Videos of a CocoVID file; every frame is kept, in the order of ``frame_id``.

    Index (video, frame) gives one frame to the pipeline: a dict with img_path, img_id, video_id,
    frame_id, video_length, height, width, is_labelled, is_vid_train_frame, the arrays bboxes
    (N, 4) float32 xyxy in original pixels, labels, instances_ids (from 1), is_crowd, and
    ``instances`` in mmdet's form. Index video gives a whole video: video_id, video_name,
    video_length and ``images``, the list of such dicts without ``instances``.

    Args:
        ann_file, data_root, pipeline, test_mode, ...: as in mmdet's data sets.
        data_prefix: dict(img=FOLDER) that the file names start from.
        metainfo: dict(classes=(...)); ImageNet VID's 30 classes by default.
        bad_boxes: ``stop``, or ``drop`` (and count) boxes that break a rule.
        on_bad_image: ``stop``, or ``skip``: in training another video takes the place of one with
            a broken image.
        max_bad_share: of all frames; more skipped images stop the run.
        check_files: look for every image before work starts.

    Raises:
        VisionError: the file breaks a rule, has no wanted class or (in training) no box, or
            images are missing.
    """

    METAINFO = dict(classes=imagenet_vid.CLASSES)

    def __init__(self, *args, data_prefix: dict | None = None, bad_boxes: str = 'stop',
                 on_bad_image: str = 'stop', max_bad_share: float = 0.001,
                 check_files: bool = True, **kwargs) -> None:
        prefix = dict(data_prefix or dict(img=''))
        if set(prefix) != {'img'} or on_bad_image not in ('stop', 'skip'):
            raise VisionError('VIS-CONFIG-213', f'data_prefix={prefix}, '
                              f'on_bad_image={on_bad_image!r}',
                              why="data_prefix has the one key img; on_bad_image is 'stop' or "
                                  "'skip'", do='mend the data set in the config')
        self.bad_boxes, self.on_bad_image = bad_boxes, on_bad_image
        self.max_bad_share, self.check_files = max_bad_share, check_files
        self.skipped_images: set[str] = set()
        self._last: tuple[int, dict] | None = None
        super().__init__(*args, data_prefix=prefix, **kwargs)

    def load_data_list(self) -> list[dict]:
        """A record for each video; what was repaired or left out is printed.

        Raises:
            VisionError: VIS-DATA-207, no box of the wanted classes (in training); VIS-DATA-208,
                images are missing; and what ``load_cocovid`` raises.
        """
        data = load_cocovid(self.ann_file, classes=self.metainfo['classes'],
                            bad_boxes=self.bad_boxes)
        if not self.test_mode and not data.num_boxes:
            raise VisionError('VIS-DATA-207', f'{data.path} has {data.num_frames} frames but no '
                              'box of the wanted classes', why='nothing can be learned from it',
                              do='look at metainfo.classes and at the file '
                                 '(vision data check --stats)')
        records = [self._packed(video) for video in data.videos]
        if self.check_files:
            refuse_missing_images((path for record in records for path in record['img_path']),
                                  total=data.num_frames, where=f'images of {self.ann_file}')
        repaired = ', '.join(f'{rule} {count}' for rule, count in data.report.items())
        print_log(f'{data.path}: {len(records)} videos, {data.num_frames} frames, '
                  f'{data.num_boxes} boxes; repaired or left out: {repaired or "nothing"}',
                  'current', logging.WARNING if repaired else logging.INFO)
        self.num_frames = data.num_frames
        self.counts = dict(videos=len(records), frames=data.num_frames, boxes=data.num_boxes)
        return records

    def _packed(self, video: CocoVideo) -> dict:
        frames = video.frames
        first = np.cumsum([0] + [len(frame.labels) for frame in frames])

        def column(name: str) -> np.ndarray:
            return np.concatenate([getattr(frame, name) for frame in frames])

        prefix = self.data_prefix['img']
        return dict(
            video_id=video.id, video_name=video.name, first=first, bboxes=column('boxes_xyxy'),
            labels=column('labels'), instances_ids=column('instance_ids'),
            is_crowd=column('is_crowd'),
            img_path=[os.path.join(prefix, frame.file_name) for frame in frames],
            numbers=np.array([(frame.image_id, frame.height, frame.width, frame.is_labelled,
                               frame.is_vid_train_frame) for frame in frames]))

    def filter_data(self) -> list[dict]:
        """Every frame stays: without the empty ones list places would not be frame ids."""
        return self.data_list

    def record(self, video: int) -> dict:
        """The packed video; the last one is kept, since frames are mostly asked for in order."""
        if self._last is None or self._last[0] != video:
            self._last = video, self.get_data_info(video)
        return self._last[1]

    def get_len_per_video(self, idx: int) -> int:
        """Frames of a video."""
        return len(self.record(idx)['img_path'])

    def frame_info(self, video: int, frame: int, *, with_instances: bool = True) -> dict:
        """One frame as the pipeline gets it (see the class)."""
        record = self.record(video)
        frame = range(len(record['img_path']))[frame]
        part = slice(*record['first'][frame:frame + 2])
        image, height, width, labelled, for_training = record['numbers'][frame].tolist()
        info = dict(img_id=image, img_path=record['img_path'][frame], height=height, width=width,
                    video_id=record['video_id'], frame_id=frame, sample_idx=video,
                    video_length=len(record['img_path']), is_labelled=bool(labelled),
                    is_vid_train_frame=bool(for_training))
        arrays = {name: record[name][part].copy()
                  for name in ('bboxes', 'labels', 'instances_ids', 'is_crowd')}
        if with_instances:
            info['instances'] = [
                dict(bbox=box, bbox_label=label, instance_id=number, ignore_flag=int(crowd))
                for box, label, number, crowd in zip(*(a.tolist() for a in arrays.values()),
                                                     strict=True)]
        return info | arrays

    def video_info(self, video: int) -> dict:
        """A whole video as the pipeline gets it (see the class)."""
        record = self.record(video)
        length = len(record['img_path'])
        return dict(video_id=record['video_id'], video_name=record['video_name'],
                    video_length=length, sample_idx=video,
                    images=[self.frame_info(video, frame, with_instances=False)
                            for frame in range(length)])

    def prepare_data(self, idx: int | tuple[int, int]):
        """A frame (video, frame) or a whole video through the pipeline; None where a broken image
        is skipped, and another one is drawn."""
        info = self.frame_info(*idx) if isinstance(idx, tuple) else self.video_info(idx)
        try:
            return self.pipeline(info)
        except VisionError as error:
            skips = self.on_bad_image == 'skip' and not self.test_mode and isinstance(idx, int)
            if error.code != BAD_IMAGE or not skips:
                raise
            count_bad_image(self.skipped_images, error,
                            limit=max(1, int(self.max_bad_share * self.num_frames)))
            return None  # the caller draws another item

    def get_cat_ids(self, index: int | tuple[int, int]) -> list[int]:
        """Labels of the boxes of a frame (video, frame), or of all frames of a video."""
        if isinstance(index, tuple):
            return self.frame_info(*index)['labels'].tolist()
        return self.record(index)['labels'].tolist()


def refuse_missing_images(paths, *, total: int, where: str) -> None:
    """Stop before work starts when image files are not there (lists folders, opens nothing).

    Args:
        total: images of the data set, for the error.
        where: what names them, for the error.

    Raises:
        VisionError: VIS-DATA-208.
    """
    wanted = defaultdict(list)
    for path in paths:
        folder, name = os.path.split(path)
        wanted[folder].append(name)
    missing = []
    for folder, names in wanted.items():
        there = set(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else set()
        missing += [os.path.join(folder, name) for name in names if name not in there]
    if missing:
        raise VisionError('VIS-DATA-208', f'{len(missing)} of {total} images are not there: '
                          + ', '.join(missing[:10]), where=where,
                          why='the run would fail when it comes to them',
                          do='look at data_root and data_prefix=dict(img=...); '
                             'datasets/README.md has the tree of each data set')


def count_bad_image(seen: set[str], error: VisionError, *, limit: int) -> None:
    """Note a skipped image of this process; stop when there are too many.

    Args:
        seen: what was skipped so far; grows.
        limit: most that may be.

    Raises:
        VisionError: VIS-DATA-209, it is one more.
    """
    seen.add(error.what)
    print_log(f'skipped (number {len(seen)}, limit {limit}): {error.what}', 'current')
    if len(seen) > limit:
        raise VisionError('VIS-DATA-209', f'{len(seen)} images are broken, the limit is {limit}',
                          where='; '.join(sorted(seen)[:10]), why='this is no rare accident',
                          do='get the files again, or raise max_bad_share of the data set')


@DATASETS.register_module()
class MixedVideoImageDataset(Dataset):
    """Still images for a detector: chosen frames of videos, then images of still data sets.

    The usual recipe for ImageNet VID is 15 frames of each training video and the images of
    ImageNet DET (mmtracking's ``ref_img_sampler`` world; FGFA, arXiv:1703.10025). Indices are
    plain integers, so that any sampler and any wrapper works.

    Args:
        videos: configs of ``CocoVideoDataset``. images: configs of still data sets (mmdet's
            ``CocoDataset``), with an empty pipeline.
        pipeline: transforms of all samples, e.g. LoadVideoFrame, LoadAnnotations, ...
        frames: ``train`` takes frames with is_vid_train_frame; ``all`` takes every frame.
        filter_empty: leave out frames without a box, as mmdet's data sets do.
        on_bad_image, max_bad_share: as in ``CocoVideoDataset``, of all samples.
        max_refetch: how often another sample is drawn when the pipeline gives none.

    Raises:
        VisionError: the parts have different classes; a part gives no sample.
    """

    def __init__(self, videos: Sequence[dict], images: Sequence[dict] = (), *,
                 pipeline: Sequence = (), frames: str = 'train', filter_empty: bool = True,
                 on_bad_image: str = 'stop', max_bad_share: float = 0.001,
                 max_refetch: int = 100) -> None:
        if frames not in ('train', 'all') or on_bad_image not in ('stop', 'skip'):
            raise ValueError("frames must be 'train' or 'all', on_bad_image 'stop' or 'skip', got "
                             f'{frames!r}, {on_bad_image!r}')
        self.pipeline, self.max_refetch = Compose(pipeline), max_refetch
        self.on_bad_image, self.max_bad_share = on_bad_image, max_bad_share
        self.skipped_images: set[str] = set()
        self.videos = [DATASETS.build(config) for config in videos]
        self.images = [DATASETS.build(config) for config in images]
        self.metainfo = (self.videos + self.images)[0].metainfo
        for part in self.images:
            match_classes(read_json(Path(part.ann_file)), part.metainfo['classes'],
                          where=part.ann_file)
        self.places: list[tuple[int, tuple[int, int] | int]] = []  # (part, index inside it)
        for number, part in enumerate(self.videos + self.images):
            indices = (self._frames_of(part, frames, filter_empty) if number < len(self.videos)
                       else range(len(part)))
            self._refuse_part(part, len(indices))
            self.places += [(number, index) for index in indices]

    @staticmethod
    def _frames_of(part: CocoVideoDataset, frames: str, filter_empty: bool) -> list:
        chosen = []
        for video in range(len(part)):
            record = part.record(video)
            keep = np.diff(record['first']) > 0 if filter_empty else True
            keep = keep & ((record['numbers'][:, 4] == 1) | (frames == 'all'))
            chosen += [(video, int(frame)) for frame in np.flatnonzero(keep)]
        return chosen

    def _refuse_part(self, part: Dataset, num_samples: int) -> None:
        if tuple(part.metainfo['classes']) != tuple(self.metainfo['classes']):
            raise VisionError('VIS-CONFIG-214', f'{part.ann_file} is read with classes '
                              f'{part.metainfo["classes"]}, the first part with '
                              f'{self.metainfo["classes"]}', why='label i must mean one class',
                              do='give every part the same metainfo=dict(classes=(...))')
        if not num_samples:
            raise VisionError('VIS-DATA-228', f'no sample can be taken from {part.ann_file}',
                              why='no frame is marked is_vid_train_frame, or none has a box',
                              do="make the file again with the train split's list, or set "
                                 "frames='all'")

    def full_init(self) -> None:
        """Parts are complete once built; wrappers of MMEngine call this."""

    def __len__(self) -> int:
        return len(self.places)

    def get_data_info(self, idx: int) -> dict:
        """The dict of one sample before the pipeline, as its part gives it, and ``sample_idx``."""
        number, place = self.places[idx]
        if number < len(self.videos):
            return self.videos[number].frame_info(*place) | dict(sample_idx=idx)
        info = self.images[number - len(self.videos)].get_data_info(place)
        return info | dict(sample_idx=idx)

    def get_cat_ids(self, idx: int) -> list[int]:
        """Labels of the boxes of one sample."""
        return [row['bbox_label'] for row in self.get_data_info(idx)['instances']]

    def __getitem__(self, idx: int):
        for _ in range(self.max_refetch + 1):
            sample = self._sample(idx)
            if sample is not None:
                return sample
            idx = int(np.random.randint(len(self)))
        raise VisionError('VIS-DATA-215', f'{self.max_refetch + 1} samples in a row gave nothing',
                          why='the pipeline returned None for each', do='look at the pipeline')

    def _sample(self, idx: int):
        try:
            return self.pipeline(self.get_data_info(idx))
        except VisionError as error:
            if error.code != BAD_IMAGE or self.on_bad_image == 'stop':
                raise
            count_bad_image(self.skipped_images, error,
                            limit=max(1, int(self.max_bad_share * len(self))))
            return None
