"""Boxes on pictures: vision detect IMAGES DETECTOR [WEIGHTS]

IMAGES is a picture or a folder; DETECTOR an .onnx file or a zoo name, which need no training
software, or a config of MMDetection with its WEIGHTS. Pictures with boxes go to OUT_DIR/vis,
boxes as JSON to OUT_DIR/preds.

  vision detect street.jpg yolox-nano_coco --out-dir found
  vision detect pictures configs/detectors/yolox-nano_coco.py yolox_nano.pth --out-dir found
"""

from __future__ import annotations

import json
from pathlib import Path

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.files import refuse_unwritable


def main(argv: list[str] | None = None) -> int:
    from vision.lattice.api import find_images, load_detector
    parser = command_parser(__doc__)
    parser.add_argument('images', help='a picture, or a folder of pictures')
    parser.add_argument('detector', help='.onnx file, zoo name or config')
    parser.add_argument('weights', nargs='?', help='of a config: .pth, .safetensors or zoo:NAME')
    parser.add_argument('--out-dir', type=Path, default=Path('outputs'), metavar='DIR',
                        help='folder of pictures and boxes (default: %(default)s)')
    parser.add_argument('--pred-score-thr', '--score-thr', type=float, default=0.3, dest='score',
                        metavar='SCORE', help='boxes below are left out (default: %(default)s)')
    parser.add_argument('--batch-size', type=int, default=1, metavar='N', help='pictures that '
                        'the network sees at once (default: %(default)s)')
    parser.add_argument('--device', default='cpu', help="of a config's network, e.g. cuda:0 "
                        '(default: %(default)s)')
    parser.add_argument('--print-result', action='store_true', help='print the boxes as JSON, a '
                        'line a picture')
    args = parser.parse_args(argv)
    if args.batch_size < 1 or not 0 <= args.score <= 1:
        parser.error('--batch-size is at least 1, --pred-score-thr in [0, 1]')
    find_images(args.images)  # looked at before the detector is loaded
    refuse_unwritable(args.out_dir / 'vis' / 'x')
    model = load_detector(args.detector, args.weights, device=args.device)
    num_pictures = num_boxes = 0
    for result in model.iterate(args.images, batch_size=args.batch_size, score_thr=args.score,
                                out_dir=args.out_dir):
        num_pictures, num_boxes = num_pictures + 1, num_boxes + len(result)
        if args.print_result:
            print(json.dumps(result.to_dict()))
    print(f'{num_boxes} boxes on {num_pictures} pictures: {args.out_dir}')
    return 0


if __name__ == '__main__':
    run_cli(main)
