"""Your own videos to a CocoVID data set: mp4 (or a frame folder) and CVAT or MOT annotations.

Writes OUT/NAME/%06d.jpg (frames of a folder are copied as they are) and OUT/annotations.json;
OUT appears complete or not at all. Annotations, one per video in the same order:
  .xml  CVAT for video 1.1 ("Export job dataset"): tracks with labels
  .txt  MOT text: frame (from 1), id, x, y, w, h, flag, class (from 1), visibility; the names of
        the classes come from --classes
Without annotations the frames count as unlabelled.

Examples:
  vision data from-video street.mp4 -a street.xml -o data/street
  vision data from-video a.mp4 frames_b -a a.txt b.txt \\
      --classes person car -o data/mine --stats
"""

from __future__ import annotations

from pathlib import Path

from vision.common.core.errors import command_parser, run_cli
from vision.lattice.core.cocovid import load_cocovid
from vision.lattice.core.cocovid_stats import print_statistics
from vision.stream.io.video_dataset import convert


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('videos', nargs='+', type=Path, help='video files or frame folders')
    parser.add_argument('-a', '--annotations', nargs='+', type=Path, default=[],
                        help='one .xml or .txt per video')
    parser.add_argument('-o', '--output', type=Path, required=True, help='new folder')
    parser.add_argument('--classes', nargs='+', default=[], metavar='NAME',
                        help='class names in label order (CVAT: default all labels, sorted)')
    parser.add_argument('--stats', action='store_true', help='count boxes, tracks, classes')
    args = parser.parse_args(argv)
    if args.annotations and len(args.annotations) != len(args.videos):
        parser.error(f'{len(args.videos)} videos, {len(args.annotations)} annotation files')
    if len({path.stem for path in args.videos}) != len(args.videos):
        parser.error('two videos have the same name')
    counts = convert(args.videos, args.annotations, args.output, args.classes)
    print(f'{args.output}: ' + ', '.join(f'{n} {name}' for name, n in counts.items()))
    if args.stats:
        print_statistics(load_cocovid(args.output / 'annotations.json'))
    return 0


if __name__ == '__main__':
    run_cli(main)
