"""How well do the lattice's networks move boxes? True boxes stand in for a perfect detector.

For every object seen at frames a, m = a + gap and b = a + 2 gap, the box at m is predicted by
linear interpolation, by propagation from a alone, by the merge of both sides, and by merge and
refinement; printed are mean IoU with the true box and recall at IoU 0.5 and 0.75, by speed class.

Examples:
    python tools/analysis/lattice_quality.py --ann data/moving_sprites/annotations/val.json \\
        --images data/moving_sprites/val --checkpoint zoo:lattice-pru_moving-sprites
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from torch import nn

from vision.common.core.boxes import paired_iou
from vision.common.core.errors import command_parser, run_cli
from vision.common.core.files import refuse_unwritable
from vision.common.nn.checkpoint import load_checkpoint, load_state
from vision.common.nn.images import read_image
from vision.lattice.core.cocovid import CocoFrame, load_cocovid
from vision.lattice.core.structures import FrameBoxes
from vision.lattice.mm.networks import TorchNetworks
from vision.lattice.nn.propagation import PropagationNet
from vision.lattice.nn.refinement import RefinementNet
from vision.zoo import resolve

METHODS = ('linear', 'propagated', 'merged', 'refined')
# Classes of speed of the FGFA protocol: mean IoU of a track with itself 1 to 10 frames away.
SPEEDS = (('slow', 0.9, 1.01), ('medium', 0.7, 0.9), ('fast', -1.0, 0.7))
SPEED_OFFSETS = [offset for offset in range(-10, 11) if offset]


def motion_iou(tracks: list[dict[int, np.ndarray]], frame: int, instance: int) -> float:
    """Mean IoU of an object's box with its own boxes at offsets -10 .. 10."""
    others = [tracks[frame + offset][instance] for offset in SPEED_OFFSETS
              if 0 <= frame + offset < len(tracks) and instance in tracks[frame + offset]]
    own = np.repeat(tracks[frame][instance][None], len(others), axis=0)
    return float(paired_iou(own, np.array(others)).mean()) if others else 1.0


def load_networks(checkpoint: str, **options) -> TorchNetworks:
    """Networks of a checkpoint with propagation.* and refinement.*, without a detector."""
    state = load_checkpoint(resolve(checkpoint))['state_dict']
    modules = nn.ModuleDict(dict(propagation=PropagationNet(), refinement=RefinementNet()))
    # Boxes alone are judged here: what refinement thinks of classes is left aside.
    load_state(modules, state, where=checkpoint, unused_prefixes=('refinement.classes.',
                                                                  'detector.'))
    return TorchNetworks(None, **modules.eval(), **options)


def predict(networks: TorchNetworks, images: list[np.ndarray], left: np.ndarray,
            right: np.ndarray) -> dict[str, np.ndarray]:
    """Boxes (N, 4) on the middle one of 2 gap + 1 images by each of ``METHODS``."""
    greys = np.stack([networks.grey(image) for image in images])
    gap, size = len(images) // 2, images[0].shape[:2]

    def moved(boxes: np.ndarray, frames: np.ndarray) -> np.ndarray:
        count = len(boxes)
        wrapped = FrameBoxes(boxes, np.ones(count), np.zeros(count))
        return networks.propagate(wrapped, frames, frame_size=size, stage=0).boxes_xyxy

    linear, ahead = (left + right) / 2, moved(left, greys[:gap + 1])
    back = moved(right, greys[:gap - 1:-1])
    merged = np.median([linear, ahead, back], axis=0)
    wrapped = FrameBoxes(merged, np.ones(len(merged)), np.zeros(len(merged)))
    refined = networks.refine(wrapped, images[gap], stage=0).boxes_xyxy
    return dict(linear=linear, propagated=ahead, merged=merged, refined=refined)


def measure_video(networks: TorchNetworks, frames: list[CocoFrame], folder: Path, gap: int,
                  step: int) -> dict[tuple[str, str], list[float]]:
    """IoUs by (speed, method) of one video."""
    tracks = [{int(number): box for number, box in
               zip(frame.instance_ids, frame.boxes_xyxy, strict=True)} for frame in frames]
    overlaps = defaultdict(list)
    for start in range(0, len(frames) - 2 * gap, step):
        left, middle, right = (tracks[start + k * gap] for k in (0, 1, 2))
        shared = sorted(left.keys() & middle.keys() & right.keys())
        if not shared:
            continue
        images = [read_image(folder / frame.file_name)
                  for frame in frames[start:start + 2 * gap + 1]]
        found = predict(networks, images, *(np.stack([end[i] for i in shared])
                                            for end in (left, right)))
        truth = np.stack([middle[i] for i in shared])
        motion = [motion_iou(tracks, start + gap, i) for i in shared]
        for method, boxes in found.items():
            for overlap, iou in zip(paired_iou(boxes, truth), motion, strict=True):
                speed = next(name for name, low, high in SPEEDS if low <= iou < high)
                overlaps[speed, method].append(float(overlap))
    return overlaps


def summary(overlaps: dict[tuple[str, str], list[float]], gap: int) -> list[dict]:
    rows = []
    for speed, _, _ in SPEEDS:
        for method in METHODS:
            values = np.array(overlaps.get((speed, method), []))
            if len(values):
                rows.append(dict(gap=gap, speed=speed, method=method, count=len(values),
                                 iou=values.mean(), recall50=(values >= 0.5).mean(),
                                 recall75=(values >= 0.75).mean()))
    return rows


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
    parser.add_argument('--json', type=Path, help='write the rows here, too')
    args = parser.parse_args(argv)
    refuse_unwritable(args.json)
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
        args.json.write_text(json.dumps(rows, indent=2))
    return 0


if __name__ == '__main__':
    run_cli(main)
