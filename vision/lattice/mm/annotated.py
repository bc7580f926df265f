"""Annotations of videos as pictures: frames with boxes, classes and track ids."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from rich.progress import track

from vision.common.core.errors import VisionError
from vision.common.nn.images import read_image
from vision.common.runtime.drawing import class_colour, draw_boxes
from vision.lattice.core.cocovid import CocoFrame, CocoVid

TILE_WIDTH = 320


def from_config(path: Path, split: str) -> tuple[Path, Path, tuple[str, ...] | None]:
    """(annotation file, image folder, classes) of a data loader in a config.

    Raises:
        VisionError: the config has no such data loader with an annotation file.
    """
    from mmengine.config import Config

    from vision.common.mm.safe_files import read_plain_files_everywhere
    read_plain_files_everywhere()  # a YAML config is data
    config = Config.fromfile(str(path))
    data = config.get(f'{split}_dataloader', {}).get('dataset', {})
    while 'ann_file' not in data and ('dataset' in data or 'videos' in data):
        data = data.get('dataset') or data['videos'][0]
    if 'ann_file' not in data:
        raise VisionError('VIS-CONFIG-224', f'{path} has no {split}_dataloader.dataset.ann_file',
                          why='the data set is looked for there', do='choose another --split, or '
                          'give --ann and --images')
    root = Path(data.get('data_root') or '')
    classes = data.get('metainfo', {}).get('classes')
    return root / data['ann_file'], root / data.get('data_prefix', {}).get('img', ''), classes


def draw_frame(image: np.ndarray, frame: CocoFrame, classes: tuple[str, ...]) -> np.ndarray:
    """A copy of the picture (H, W, 3) uint8 BGR with the boxes of a frame; one colour is one
    track, red a crowd."""
    crowds = frame.boxes_xyxy[frame.is_crowd]
    image = draw_boxes(image, frame.boxes_xyxy,
                       [f'{classes[label]} {number}' for label, number in
                        zip(frame.labels, frame.instance_ids, strict=True)],
                       [class_colour(int(number)) for number in frame.instance_ids])
    return draw_boxes(image, crowds, [''] * len(crowds), [(0, 0, 255)] * len(crowds), width=3)


def draw_sheet(data: CocoVid, images: Path, *, rows: int, columns: int) -> np.ndarray:
    """One video a row, its frames evenly spread over the columns: (H, W, 3) uint8 BGR."""
    videos = [data.videos[i] for i in np.linspace(0, len(data.videos) - 1,
                                                  min(rows, len(data.videos))).astype(int)]
    strips = []
    for video in track(videos, 'sheet'):
        tiles = []
        for index in np.linspace(0, len(video) - 1, columns).astype(int):
            frame = video.frame(int(index))
            tile = draw_frame(read_image(images / frame.file_name), frame, data.classes)
            height = max(1, round(frame.height * TILE_WIDTH / frame.width))
            tile = cv2.resize(tile, (TILE_WIDTH, height), interpolation=cv2.INTER_AREA)
            text = f'{video.name} #{frame.frame_id}' + ('' if frame.is_labelled else ' unlabelled')
            for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
                cv2.putText(tile, text[-44:], (4, height - 6), 0, 0.4, colour, width, cv2.LINE_AA)
            tiles.append(tile)
        strips.append(np.concatenate([_fit(tile, len(tiles[0])) for tile in tiles], 1))
    return np.concatenate(strips)


def _fit(tile: np.ndarray, height: int) -> np.ndarray:
    return tile if len(tile) == height else cv2.resize(tile, (TILE_WIDTH, height))


def write_mp4(data: CocoVid, images: Path, name: str, path: Path) -> int:
    """Encode one video with its boxes; the number of frames.

    Raises:
        VisionError: the file has no video of this name.
    """
    video = next((one for one in data.videos if one.name == name), None)
    if video is None:
        raise VisionError('VIS-INPUT-225', f'no video {name!r} in {data.path}', why='names: '
                          + ', '.join(one.name for one in data.videos[:10]), do='--video NAME')
    fps = Fraction(video.record.get('fps') or 25).limit_denominator(1000)
    first = video.frame(0)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=fps, options=dict(crf='20'))
        # Browsers want 4:2:0, which has an even size.
        stream.width, stream.height = first.width // 2 * 2, first.height // 2 * 2
        stream.pix_fmt = 'yuv420p'
        for index in track(range(len(video)), path.name):
            frame = video.frame(index)
            image = draw_frame(read_image(images / frame.file_name), frame, data.classes)
            image = cv2.resize(image, (stream.width, stream.height)) if image.shape[:2] != (
                stream.height, stream.width) else image
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format='bgr24')
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return len(video)
