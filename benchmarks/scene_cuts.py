"""How often does the scene cut detector miss a cut, and how often does it see one that is not?

Every video of the given CocoVID files counts as free of cuts, so an alarm between two of its
frames is false; the last frame of each video followed by the first one of each other video is a
cut. False alarms are listed, because a video may hold a real cut.

Example:
    python benchmarks/scene_cuts.py --set data/moving_sprites/annotations/val.json \\
        data/moving_sprites/val --json cuts.json
"""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import cv2
import numpy as np

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.common.nn.images import read_image
from vision.lattice.core.cocovid import load_cocovid
from vision.lattice.core.scene_cut import SceneCutDetector
from vision.lattice.runtime.flow import FlowFiller


def false_alarms(detector: SceneCutDetector, greys: list[np.ndarray]) -> list[int]:
    """Indices i with a cut seen between frames i and i + 1."""
    return [i for i, (before, after) in enumerate(zip(greys, greys[1:], strict=False))
            if detector(before, after)]


def is_found(detector: SceneCutDetector, before: np.ndarray, after: np.ndarray) -> bool:
    """A cut between two videos, whose frames may differ in size (the engine always cuts then)."""
    if before.shape != after.shape:
        after = cv2.resize(after, before.shape[::-1], interpolation=cv2.INTER_AREA)
    return detector(before, after)


def measure_set(detector: SceneCutDetector, ann: Path, images: Path) -> dict:
    filler = FlowFiller()  # cuts are looked for on the small frames that it makes
    ends, alarms, num_pairs = [], [], 0
    for video in load_cocovid(ann).videos:
        greys = [filler.prepare(read_image(images / frame.file_name)).grey
                 for frame in video.frames]
        alarms += [f'{video.name}:{i}' for i in false_alarms(detector, greys)]
        num_pairs += len(greys) - 1
        ends.append((greys[0], greys[-1]))
    found = [is_found(detector, one[1], other[0]) for one, other in permutations(ends, 2)]
    return dict(dataset=ann.stem, frame_pairs=num_pairs, false_alarms=len(alarms),
                alarms=alarms, cuts=len(found), missed_cuts=len(found) - sum(found))


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('--set', type=Path, nargs=2, action='append', required=True,
                        metavar=('ANN', 'IMAGES'), dest='sets',
                        help='CocoVID file and the folder of its images; may be repeated')
    add_report_options(parser)
    args = parser.parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    rows = []
    for ann, images in args.sets:
        row = measure_set(SceneCutDetector(), ann, images)
        print('{dataset}: {false_alarms} false alarms in {frame_pairs} pairs of frames, '
              '{missed_cuts} of {cuts} cuts missed'.format(**row), *row['alarms'], flush=True)
        rows.append(row)
    if args.json:
        write_report(args.json, rows, is_recorded=args.record)
    return 0


if __name__ == '__main__':
    run_cli(main)
