"""See the samples of a data set: vision browse CONFIG

A sheet of samples of any data set of a config, before its pipeline and after it; a sample differs
from run to run of the training, here it is drawn with --seed. --mode annotations shows videos as
their annotation file has them, without a pipeline: one colour is one track, a thick red box a
crowd, a region to ignore; --mp4 makes an H.264 video of one.

Examples:
  vision browse configs/detectors/yolox-nano_moving-sprites.py
  vision browse CONFIG --phase train --mode pipeline -n 6 --sheet steps.png
  vision browse CONFIG --output-dir samples -n 200
  vision browse --ann data/moving_sprites/annotations/val.json \\
      --images data/moving_sprites/val --sheet sheet.jpg --mp4 first.mp4
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_unwritable

MODES = ('original', 'transformed', 'concat', 'pipeline', 'annotations')


def build_parser() -> argparse.ArgumentParser:
    """Options of the data set or the annotation file, and of the pictures to be made."""
    from vision.common.mm.launch import add_config_arguments
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('config', nargs='?', help='config with data loaders')
    add('--phase', '--split', choices=['train', 'val', 'test'],
        help='which data loader of the config (default: train; of annotations: val)')
    add('-m', '--mode', choices=MODES, default='concat', help='original: before the pipeline; '
        'transformed: after it; concat: both; pipeline: after each transform; annotations: see '
        'above (default: %(default)s)')
    add('-n', '--show-number', type=int, default=12, metavar='N',
        help='samples, evenly spread over the data set (default: %(default)s)')
    add('--seed', type=int, default=0, help='of random transforms (default: %(default)s)')
    add('--sheet', type=Path, help='picture to write, jpg or png (default: work_dirs/browse/'
        'NAME_PHASE.jpg)')
    add('--output-dir', type=Path, metavar='DIR', help='also a picture of each sample')
    add('--ann', type=Path, help='annotations of a CocoVID file, in place of a config')
    add('--images', type=Path, help='with --ann: folder of its file names')
    add('--mp4', type=Path, help='annotations: video to write, H.264')
    add('--video', help='annotations: name of the video for --mp4 (default: the first)')
    add('--rows', type=int, default=4, help='annotations: videos on the sheet (default: 4)')
    add('--columns', type=int, default=4, help='annotations: frames of each (default: 4)')
    add_config_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if bool(args.config) == bool(args.ann) or bool(args.ann) != bool(args.images):
        parser.error('give a config, or --ann FILE with --images DIR')
    if min(args.show_number, args.rows, args.columns) < 1 or args.seed < 0:
        parser.error('-n, --rows and --columns are at least 1, --seed 0')
    import cv2
    if args.sheet and not cv2.haveImageWriter(str(args.sheet)):
        raise VisionError('VIS-INPUT-226', f'cannot write {args.sheet}', why='the ending names '
                          'the format', do='use .jpg or .png')
    if args.ann or args.mp4 or args.mode == 'annotations':
        return show_annotations(parser, args)
    return show_samples(args)


def show_samples(args: argparse.Namespace) -> int:
    """Write a sheet of samples before and after the pipeline, and each of them if asked to."""
    from mmengine.registry import init_default_scope

    from vision.common.mm.launch import explained, read_config_alone
    from vision.common.mm.predictions import require_parts
    from vision.common.mm.samples import chosen_views, contact_sheet, row_of, views_of
    from vision.registry import DATASETS
    phase = args.phase or 'train'
    path = args.sheet or Path('work_dirs/browse') / f'{Path(args.config).stem}_{phase}.jpg'
    refuse_unwritable(path, args.output_dir and args.output_dir / 'x')
    config = read_config_alone(args.config, args.cfg_options)
    require_parts(config, f'{phase}_dataloader')
    init_default_scope(config.get('default_scope') or 'vision')
    with explained(config):
        dataset = DATASETS.build(config[f'{phase}_dataloader']['dataset'])
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
        samples = list(views_of(dataset, args.show_number, seed=args.seed))
    write(path, contact_sheet(samples, args.mode))
    print(f'{path}: {len(samples)} of {len(dataset)} samples; {samples[0][0].title} -> '
          + ' -> '.join(view.title for view in samples[0][1:]))
    if args.output_dir:
        for number, views in enumerate(samples):
            shown = chosen_views(views, args.mode)
            write(args.output_dir / f'{number:06}.jpg',
                  shown[0].image if len(shown) == 1 else row_of(shown))
        print(f'{args.output_dir}: {len(samples)} pictures')
    return 0


def show_annotations(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Write frames of a CocoVID file with their boxes, as a sheet or a video."""
    if not (args.sheet or args.mp4):
        parser.error('give --sheet and/or --mp4')
    refuse_unwritable(args.sheet, args.mp4)
    from vision.lattice.core.cocovid import load_cocovid
    from vision.lattice.mm.annotated import draw_sheet, from_config, write_mp4
    ann, images, classes = from_config(Path(args.config), args.phase or 'val') if args.config \
        else (args.ann, args.images, None)
    data = load_cocovid(ann, classes=classes)
    if args.sheet:
        sheet = draw_sheet(data, images, rows=args.rows, columns=args.columns)
        write(args.sheet, sheet)
        print(f'{args.sheet}: {sheet.shape[1]}x{sheet.shape[0]}')
    if args.mp4:
        count = write_mp4(data, images, args.video or data.videos[0].name, args.mp4)
        print(f'{args.mp4}: {count} frames')
    return 0


def write(path: Path, picture) -> None:
    """Write a picture (H, W, 3), whole or not at all; the ending names the format."""
    import cv2
    with atomic_write(path) as file:
        file.write(cv2.imencode(path.suffix, picture)[1].tobytes())


if __name__ == '__main__':
    run_cli(main)
