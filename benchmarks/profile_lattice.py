"""Where the milliseconds of the lattice go, part by part, on one video.

Time inside a part that another part takes is counted there alone, so the parts add up to the
whole.

  prepare          resize and grey
  cut              the test for scene cuts
  flow forward     points followed as frames arrive
  flow backward    points followed from the next keyframe back
  bridge           boxes from points (numpy), pairing included
  link             track ids
  detect           the detector, on keyframes
  engine           what is left of push and flush

  python benchmarks/profile_lattice.py demo_out/clip/photo_clip.mp4 \\
      --detector zoo:yolox-nano_coco --json out/profile.json
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import cv2

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.common.core.tables import print_table
from vision.lattice.runtime.detectors import as_detector
from vision.lattice.runtime.methods import METHODS
from vision.lattice.runtime.timing import profile, rows_of
from vision.stream.io.opening import open_source


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('source', help='video file or folder of frames')
    add('--detector', default='zoo:yolox-nano_coco', help='.onnx file or zoo:NAME '
        '(default: %(default)s)')
    add('--method', choices=METHODS, default='flow', help='(default: %(default)s)')
    add('--gap', type=int, help='frames between keyframes (default: as shipped)')
    add('--max-frames', type=int, default=200, help='(default: %(default)s)')
    add('--repeats', type=int, default=3, help='the run with the median total is shown '
        '(default: %(default)s)')
    add('--threads', type=int, default=2, help='(default: %(default)s)')
    add_report_options(parser)
    args = parser.parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    if min(args.max_frames, args.repeats, args.threads) < 1:
        parser.error('--max-frames, --repeats and --threads are at least 1')
    cv2.setNumThreads(args.threads)
    detector = as_detector(args.detector, threads=args.threads)
    images = [frame.image_bgr for frame in islice(open_source(args.source), args.max_frames)]
    for image in images[:3]:  # the first calls of a network are slower than all others
        detector.detect(image)
    runs = sorted((profile(images, detector, args.method, args.gap) for _ in range(args.repeats)),
                  key=lambda run: sum(run[0].seconds.values()))
    clock, engine = runs[len(runs) // 2]
    rows = rows_of(clock, len(images))
    print_table(('part', 'ms per frame', 'share', 'calls'), [
        [row['part'], f'{row["ms_per_frame"]:.3f}', f'{row["share"]:.1%}', str(row['calls'])]
        for row in rows], title=f'{args.source}: {args.method}, {len(images)} frames, '
        f'{engine.stats.num_keyframes} keyframes')
    if args.json:
        write_report(args.json, rows, is_recorded=args.record, source=Path(args.source).name,
                     method=args.method, gap=args.gap, frames=len(images), threads=args.threads,
                     keyframe_rate=engine.stats.keyframe_rate, frame_size=images[0].shape[:2])
    return 0


if __name__ == '__main__':
    run_cli(main)
