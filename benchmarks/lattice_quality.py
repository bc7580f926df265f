"""How well do the lattice's networks move boxes? True boxes stand in for a perfect detector.

For every object seen at frames a, m = a + gap and b = a + 2 gap, the box at m is predicted by
linear interpolation, by propagation from a alone, by the merge of both sides, and by merge and
refinement; printed are mean IoU with the true box and recall at IoU 0.5 and 0.75, by speed class.

Examples:
    python benchmarks/lattice_quality.py --ann data/moving_sprites/annotations/val.json \\
        --images data/moving_sprites/val --checkpoint zoo:lattice-pru_moving-sprites
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.lattice.core.cocovid import load_cocovid
from vision.lattice.mm.quality import load_networks, measure_video, summary


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('--ann', required=True, help='CocoVID file with track ids')
    parser.add_argument('--images', type=Path, required=True, help='folder of the file names')
    parser.add_argument('--checkpoint', required=True, help='path or zoo:NAME')
    parser.add_argument('--gaps', type=int, nargs='+', default=[2, 4, 8],
                        help='frames from a to m (default: 2 4 8)')
    parser.add_argument('--step', type=int, default=8, help='frames between two values of a '
                        '(default: 8)')
    parser.add_argument('--refine-step', type=float, default=1.0, help='share of the offsets of '
                        'refinement that is applied (default: 1)')
    parser.add_argument('--max-videos', type=int, help='use the first videos only')
    add_report_options(parser)
    args = parser.parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    networks = load_networks(args.checkpoint, step=args.refine_step)
    rows = []
    print(' gap speed   method       count    IoU   R@.5  R@.75')
    for gap in args.gaps:
        overlaps = defaultdict(list)
        for video in load_cocovid(args.ann).videos[:args.max_videos]:
            for key, values in measure_video(networks, video.frames, args.images, gap,
                                             args.step).items():
                overlaps[key] += values
        for row in summary(overlaps, gap):
            print('{gap:>4} {speed:<7} {method:<11} {count:>6} {iou:6.3f} {recall50:6.3f} '
                  '{recall75:6.3f}'.format(**row), flush=True)
            rows.append(row)
    if args.json:
        write_report(args.json, rows, is_recorded=args.record, checkpoint=args.checkpoint,
                     step=args.step, refine_step=args.refine_step)
    return 0


if __name__ == '__main__':
    run_cli(main)
