"""See what a video data set holds: frames with boxes, classes and track ids.

Writes a picture with frames of several videos (--sheet) and/or an H.264 video of one (--mp4).
One colour is one track; a thick red box is a crowd, a region to ignore.

Examples:
  python tools/browse_dataset.py --ann data/moving_sprites/annotations/val.json \\
      --images data/moving_sprites/val --sheet sheet.jpg
  python tools/browse_dataset.py configs/_base_/datasets/imagenet_vid.py --split val --mp4 a.mp4
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from rich.progress import track

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_unwritable
from vision.common.nn.images import read_image
from vision.lattice.core.cocovid import CocoFrame, CocoVid, load_cocovid

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


class Painter:
    """Draw the boxes of a frame with supervision; colours follow the track id."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        import supervision as sv
        self.classes, self._detections = classes, sv.Detections
        by_track = dict(color_lookup=sv.ColorLookup.TRACK)
        self.box = sv.BoxAnnotator(thickness=2, **by_track)
        self.label = sv.LabelAnnotator(text_scale=0.35, text_padding=2, **by_track)

    def draw(self, image: np.ndarray, frame: CocoFrame) -> np.ndarray:
        image = image.copy()
        if len(frame.labels):
            boxes = self._detections(xyxy=frame.boxes_xyxy, class_id=frame.labels,
                                  tracker_id=frame.instance_ids)
            names = [f'{self.classes[label]} {number}'
                     for label, number in zip(frame.labels, frame.instance_ids, strict=True)]
            image = self.label.annotate(self.box.annotate(image, boxes), boxes, names)
        for x1, y1, x2, y2 in frame.boxes_xyxy[frame.is_crowd].astype(int):
            cv2.rectangle(image, (x1, y1), (x2, y2), (0, 0, 255), 3)
        return image


def draw_sheet(data: CocoVid, images: Path, *, rows: int, columns: int) -> np.ndarray:
    """One video a row, its frames evenly spread over the columns."""
    painter = Painter(data.classes)
    videos = [data.videos[i] for i in np.linspace(0, len(data.videos) - 1,
                                                  min(rows, len(data.videos))).astype(int)]
    strips = []
    for video in track(videos, 'sheet'):
        tiles = []
        for index in np.linspace(0, len(video) - 1, columns).astype(int):
            frame = video.frame(int(index))
            tile = painter.draw(read_image(images / frame.file_name), frame)
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
    """Encode one video with its boxes; the number of frames."""
    video = next((one for one in data.videos if one.name == name), None)
    if video is None:
        raise VisionError('VIS-INPUT-225', f'no video {name!r} in {data.path}', why='names: '
                          + ', '.join(one.name for one in data.videos[:10]), do='--video NAME')
    painter = Painter(data.classes)
    fps = Fraction(video.record.get('fps') or 25).limit_denominator(1000)
    first = video.frame(0)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=fps, options=dict(crf='20'))
        # Browsers want 4:2:0, which has an even size.
        stream.width, stream.height = first.width // 2 * 2, first.height // 2 * 2
        stream.pix_fmt = 'yuv420p'
        for index in track(range(len(video)), path.name):
            frame = video.frame(index)
            image = painter.draw(read_image(images / frame.file_name), frame)
            image = cv2.resize(image, (stream.width, stream.height)) if image.shape[:2] != (
                stream.height, stream.width) else image
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format='bgr24')
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return len(video)


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('config', nargs='?', type=Path, help='config with data loaders')
    parser.add_argument('--split', default='val', choices=['train', 'val', 'test'],
                        help='which data loader of the config (default: %(default)s)')
    parser.add_argument('--ann', type=Path, help='instead of a config: CocoVID file')
    parser.add_argument('--images', type=Path, help='with --ann: folder of its file names')
    parser.add_argument('--sheet', type=Path, help='picture to write (jpg or png)')
    parser.add_argument('--rows', type=int, default=6, help='videos on the sheet (default: 6)')
    parser.add_argument('--columns', type=int, default=5, help='frames of each (default: 5)')
    parser.add_argument('--mp4', type=Path, help='video to write')
    parser.add_argument('--video', help='name of the video for --mp4 (default: the first)')
    args = parser.parse_args(argv)
    if (args.config is None) == (args.ann is None) or (args.ann and not args.images):
        parser.error('give a config, or --ann FILE with --images DIR')
    if not (args.sheet or args.mp4) or min(args.rows, args.columns) < 1:
        parser.error('give --sheet and/or --mp4; --rows and --columns are at least 1')
    if args.sheet and not cv2.haveImageWriter(str(args.sheet)):
        raise VisionError('VIS-INPUT-226', f'cannot write {args.sheet}', why='the ending names '
                          'the format', do='use .jpg or .png')
    refuse_unwritable(args.sheet, args.mp4)
    ann, images, classes = from_config(args.config, args.split) if args.config else (
        args.ann, args.images, None)
    data = load_cocovid(ann, classes=classes)
    if args.sheet:
        sheet = draw_sheet(data, images, rows=args.rows, columns=args.columns)
        with atomic_write(args.sheet) as file:
            file.write(cv2.imencode(args.sheet.suffix, sheet)[1].tobytes())
        print(f'{args.sheet}: {sheet.shape[1]}x{sheet.shape[0]}')
    if args.mp4:
        count = write_mp4(data, images, args.video or data.videos[0].name, args.mp4)
        print(f'{args.mp4}: {count} frames')
    return 0


if __name__ == '__main__':
    run_cli(main)
