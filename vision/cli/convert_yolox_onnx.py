"""Write a YOLOX detector of mmdet as .onnx, for video without torch, and compare both.

  vision convert yolox-onnx configs/detectors/yolox-nano_moving-sprites.py CHECKPOINT \\
      out.onnx --size 320
  vision video my.mp4 --detector out.onnx

The file takes any input size that is a multiple of 32 and carries its class names. It stays only
if onnxruntime and torch give the same raw outputs.
"""

from __future__ import annotations

from pathlib import Path

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_unwritable

# Raw outputs are offsets in strides and probabilities; see vision/lattice/mm/yolox_import.py.
TOLERANCE = 2e-3


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config of a YOLOX detector')
    parser.add_argument('checkpoint', help='.pth, .safetensors or zoo:NAME')
    parser.add_argument('target', type=Path, help='.onnx file to write')
    parser.add_argument('--size', type=int, default=416,
                        help='side in px that it was trained for (default: %(default)s)')
    args = parser.parse_args(argv)
    refuse_unwritable(args.target)
    from vision.lattice.mm.mmdet_adapter import MMDetDetector
    from vision.lattice.mm.yolox_export import largest_difference, yolox_to_onnx
    detector = MMDetDetector(args.config, args.checkpoint)
    if type(detector.model).__name__ != 'YOLOX':
        raise VisionError('VIS-CONFIG-819', f'{args.config} is no YOLOX but '
                          f'{type(detector.model).__name__}', where='model.type',
                          do='other detectors run under the lattice in torch: --config')
    content = yolox_to_onnx(detector, size=args.size)
    difference = largest_difference(detector, content, size=args.size)
    if not difference <= TOLERANCE:
        raise VisionError('VIS-RUN-1018', f'the exported graph differs from PyTorch by '
                          f'{difference:.2g}', where=str(args.target),
                          why=f'allowed is {TOLERANCE:g}', do='update onnxruntime and onnx; '
                          'nothing was written')
    with atomic_write(args.target) as file:
        file.write(content)
    print(f'{args.target}: largest difference to PyTorch {difference:.2g}')
    return 0


if __name__ == '__main__':
    run_cli(main)
