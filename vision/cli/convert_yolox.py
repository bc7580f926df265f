"""Turn the published YOLOX-nano ONNX weights into a checkpoint for mmdet.

Examples:
  vision convert yolox zoo:yolox-nano_coco yolox_nano.pth
  vision convert yolox yolox_nano.onnx yolox_nano.pth

The checkpoint is read by configs/detectors/yolox-nano_coco.py. Nothing of the ONNX file is run,
its tensors are read: the 113 convolutions in graph order go to the modules that stand in the same
place of mmdet's model, and every shape, stride, group, padding and branch is compared on the way.
The published graph has batch norm folded into its convolutions, so each BatchNorm written here is
the identity plus the bias. That is exact for inference and for fine-tuning with frozen
statistics (norm_eval), not for training with batch statistics. When onnxruntime is installed, both
are run on one image and the raw outputs are compared.
"""

from __future__ import annotations

from pathlib import Path

import vision
from vision.common.core.errors import command_parser, run_cli
from vision.common.core.files import refuse_same_file, refuse_unwritable

CONFIG = Path(vision.__file__).parent / 'configs' / 'detectors' / 'yolox-nano_coco.py'


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('source', help='published .onnx file, or zoo:yolox-nano_coco')
    parser.add_argument('target', type=Path, help='checkpoint to write (.pth)')
    parser.add_argument('--config', type=Path, default=CONFIG, help='config of the model '
                        '(default: configs/detectors/yolox-nano_coco.py)')
    args = parser.parse_args(argv)
    refuse_same_file(args.source, args.target)
    refuse_unwritable(args.target)
    from vision.lattice.mm.yolox_import import (
        build_model,
        compared,
        fill,
        read_convolutions,
        save,
    )
    from vision.zoo import resolve
    source = resolve(args.source)
    model, classes = build_model(args.config)
    fill(model, read_convolutions(source))
    print(compared(model, source))
    save(model, classes, source, args.target)
    print(f'{args.target}: {sum(p.numel() for p in model.parameters())} parameters, '
          f'{len(classes)} classes')
    return 0


if __name__ == '__main__':
    run_cli(main)
