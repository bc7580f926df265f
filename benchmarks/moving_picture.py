"""A video as an animated WebP, for pages: frames left out, scaled down.

  python benchmarks/moving_picture.py demo_out/video/photo_clip.mp4 docs/images/demo.webp

makes the picture of the README from what `make demo` left.
"""

from __future__ import annotations

from pathlib import Path

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_unwritable


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('video', type=Path, help='.mp4 file')
    parser.add_argument('target', type=Path, help='.webp file')
    parser.add_argument('--width', type=int, default=360, help='px (default: %(default)s)')
    parser.add_argument('--every', type=int, default=2,
                        help='keep one frame in so many (default: %(default)s)')
    parser.add_argument('--max-frames', type=int, default=40, help='(default: %(default)s)')
    args = parser.parse_args(argv)
    refuse_unwritable(args.target)
    from PIL import Image

    from vision.stream.io.sources import VideoFile
    source = VideoFile(args.video)
    pictures = []
    for number, frame in enumerate(source):
        if number % args.every:
            continue
        image = Image.fromarray(frame.image_bgr[:, :, ::-1])
        height = round(args.width * image.height / image.width)
        pictures.append(image.resize((args.width, height), Image.Resampling.LANCZOS))
        if len(pictures) == args.max_frames:
            break
    if not pictures:
        raise VisionError('VIS-INPUT-1830', f'{args.video} has no frames', do='give another video')
    with atomic_write(args.target) as file:
        pictures[0].save(file, 'webp', save_all=True, append_images=pictures[1:], loop=0,
                         duration=round(1000 * args.every / source.fps), quality=30, method=6)
    print(f'{args.target}: {len(pictures)} frames, {args.target.stat().st_size / 1e3:.0f} kB')
    return 0


if __name__ == '__main__':
    run_cli(main)
