"""Generate MovingSprites-VID: videos of moving textured shapes with boxes and track ids.

Licence: Apache-2.0, as this repository (every pixel is computed from the seed; no foreign data).

Writes OUT/{train,val}/VIDEO/%06d.jpg and OUT/annotations/{train,val}.json (CocoVID). OUT appears
complete or not at all. About half a minute and 125 MB for the default size on two cores.

Example: python datasets/moving_sprites/prepare.py --out data/moving_sprites
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
from rich.progress import track

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.new_folder import new_folder
from vision.common.core.workers import ordered_map
from vision.lattice.core.cocovid import CocoVidWriter
from vision.lattice.core.sprites import CLASSES, SpriteConfig, make_video

JPEG_QUALITY = 90


def write_video(job: tuple[SpriteConfig, int, Path]) -> dict:
    """Render one video and write its frames; everything the annotations need, without pixels."""
    config, index, folder = job
    video = make_video(config, index)
    (folder / video.name).mkdir(parents=True)
    for frame, image in enumerate(video.frames):
        path = folder / video.name / f'{frame:06d}.jpg'
        if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
            raise OSError(f'cannot write {path}')
    video.frames = []
    return vars(video)


def write_split(config: SpriteConfig, out: Path, workers: int) -> dict[str, int]:
    """Generate one split; its counts."""
    jobs = [(config, index, out / config.split) for index in range(config.num_videos)]
    writer = CocoVidWriter(CLASSES, info=dict(description='MovingSprites-VID', seed=config.seed))
    videos = ordered_map(write_video, jobs, workers)
    for video in track(videos, f'MovingSprites {config.split}', total=len(jobs)):
        writer.add_video(video['name'], width=config.width, height=config.height, fps=25,
                         camera_motion=video['camera_motion'])
        rows = zip(video['boxes'], video['labels'], video['instance_ids'], video['occluded'],
                   strict=True)
        for frame, (boxes, labels, ids, occluded) in enumerate(rows):
            writer.add_frame(f'{video["name"]}/{frame:06d}.jpg', boxes_xyxy=boxes,
                             labels=labels, instance_ids=ids, occluded=occluded)
    writer.write(out / 'annotations' / f'{config.split}.json')
    return writer.counts()


def prepare(out: Path, *, num_train: int, num_val: int, num_frames: int, seed: int,
            workers: int) -> dict[str, dict[str, int]]:
    """Generate both splits into a new folder ``out``.

    Raises:
        VisionError: ``out`` exists.
    """
    counts = {}
    with new_folder(out) as folder:
        for split, num_videos in (('train', num_train), ('val', num_val)):
            config = SpriteConfig(seed, num_videos, num_frames, split=split)
            counts[split] = write_split(config, folder, workers)
    return counts


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('--out', type=Path, default=Path('data/moving_sprites'),
                        help='new folder (default: %(default)s)')
    parser.add_argument('--num-train', type=int, default=40, help='videos (default: %(default)s)')
    parser.add_argument('--num-val', type=int, default=20, help='videos (default: %(default)s)')
    parser.add_argument('--num-frames', type=int, default=96,
                        help='frames a video (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='default: %(default)s')
    parser.add_argument('--workers', type=int, default=len(os.sched_getaffinity(0)),
                        help='processes (default: all cores, here %(default)s)')
    args = parser.parse_args(argv)
    if min(args.num_train, args.num_val, args.num_frames, args.workers) < 1 or args.seed < 0:
        parser.error('counts must be >= 1 and the seed >= 0')
    counts = prepare(args.out, num_train=args.num_train, num_val=args.num_val, seed=args.seed,
                     num_frames=args.num_frames, workers=args.workers)
    for split, values in counts.items():
        print(f'{split}: ' + ', '.join(f'{value} {name}' for name, value in values.items()))
    print(f'written to {args.out}')
    return 0


if __name__ == '__main__':
    run_cli(main)
